"""Packages from what others have trained, out of packages, and for other tools: checkpoints, PEFT adapters, merges."""
