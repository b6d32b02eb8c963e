"""The training methods of `--method`, one file each: formula, source, cost, options, and `prepare`, called by `fit`."""
