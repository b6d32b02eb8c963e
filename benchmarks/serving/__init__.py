"""The endpoint measured over HTTP: one process under load, and replicas on Ray Serve."""
