"""Self-distillation with a moving-average teacher: DINO, iBOT and DINOv2."""
