"""From a request as it comes to its answer: context, middleware, the service and its steps, results, metrics, logs."""
