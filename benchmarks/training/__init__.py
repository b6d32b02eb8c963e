"""A training step measured: time and peak memory."""
