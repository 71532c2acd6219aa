"""Masks by points, boxes, masks or words: files in, masks in pixels out. See `vit_jax.segment`.

| module | content |
| --- | --- |
| `segment` | the public function |
| `automatic` | all objects of an image, see `vit_jax.generate_masks` |
| `crops` | parts of an image and grids of points |
| `prompts` | checks of prompts, and their conversion to inputs of a model |
| `sam_runner` | compiled calls of SAM |
| `text_to_mask` | masks by words of CLIPSeg and of dual encoders |
| `runners` | the runner of a model |
| `downscaling` | masks of an image as prompts of a model |
| `results` | masks of an image |
| `command` | masks as `vit-jax evaluate --segment` prints, writes and draws them |
"""
