"""Compiled passes: the backbone's forward as one program, made beside serving, proved, and used where it is faster."""
