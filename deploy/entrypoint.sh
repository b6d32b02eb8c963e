#!/bin/sh
# `serve` takes its settings from variables, as the image of `bentoml containerize` does, so that compose and Kubernetes run
# either; flags are those of `sparsehub serve`.
if [ "$1" = serve ]; then
    shift
    exec python -m bentoml serve serving.service:SparsehubService "$@"
fi
exec sparsehub serve "$@"
