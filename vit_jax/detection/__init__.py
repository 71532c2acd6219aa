"""Detection by words or by an example image: files in, boxes in pixels out. See `vit_jax.detect`.

| module | content |
| --- | --- |
| `detect` | the public function |
| `regions` | given boxes by words, see `vit_jax.classify_boxes` |
| `images` | files, folders and arrays; tiles of large images |
| `finder` | what a search needs of a detector |
| `runner`, `caption_runner` | compiled calls of models that read class prompts or captions |
| `runners` | the runner of a model |
| `search` | a detector over images or tiles; boxes in pixels |
| `selection` | thresholds, non-maximum suppression |
| `coco` | COCO's JSON |
| `command` | detections as `vit-jax evaluate --detect` prints and draws them |
"""
