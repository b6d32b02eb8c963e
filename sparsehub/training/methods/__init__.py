"""One small file a training method: its formula, source and cost, its options, and `prepare`."""
