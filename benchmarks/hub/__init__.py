"""Hubs and the package format measured: push, pull, listings, bytes an entry."""
