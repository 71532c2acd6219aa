"""Files of tensors: safetensors, NumPy archives and torch archives. Nothing in them is executed."""
