"""What a switch and a training step cost, measured; nothing here is part of the package."""
