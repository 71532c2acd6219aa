"""Models for inference without this package: programs, weights, preprocessing and a model card."""

DESCRIPTION = "export.json"  # file of an exported model that describes it
