"""The endpoint on Ray Serve: an ingress that places requests, and replicas that answer them."""
