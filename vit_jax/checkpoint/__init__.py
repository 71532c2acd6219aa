"""Checkpoints: saving and restoring, integrity on disk, and whether a changed config may resume."""
