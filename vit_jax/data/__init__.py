"""Data sources, augmentation, batches and tokenizers."""
