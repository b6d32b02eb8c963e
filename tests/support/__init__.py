"""Servers, processes, checkpoints and packages that tests of more than one folder need."""
