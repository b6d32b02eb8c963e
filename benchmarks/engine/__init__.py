"""The engine measured: switching, mixed batches, traffic over many tasks, waiting, text generation, a GPU."""
