"""The bodies of requests and responses, and what every error is on the wire."""
