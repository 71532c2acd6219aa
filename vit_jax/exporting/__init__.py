"""Models for inference without this package: programs, weights, preprocessing and a model card."""
