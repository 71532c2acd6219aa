"""Sources, transforms, batches and tokenizers. No model and no training knowledge."""
