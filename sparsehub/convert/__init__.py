"""Conversion to and from packages: fine-tuned checkpoints and PEFT adapters in, merges of packages, adapters out."""
