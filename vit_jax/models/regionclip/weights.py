"""RegionCLIP of its authors (github.com/microsoft/RegionCLIP), checkpoints of detectron2.

No checkpoint was at hand. The names were established from the authors' code and from code of others
that reads the published files:

- `backbone.*` has the names of CLIP's `visual.*`, the attention pooling included. Frozen batch
  norms are buffers with the names of torch's batch norm, without a counter of batches.
- `lang_encoder.*` has the names of CLIP's text tower, without `logit_scale`: the temperature is
  0.01. Only checkpoints of pre-training have it. Those of detectors, fine-tuned on COCO or LVIS,
  hold embeddings of their classes in `roi_heads.box_predictor.cls_score` instead.
- `teacher_backbone.*`, `offline_backbone.*` and `offline_proposal_generator.*` are the teacher and
  the detector of proposals, and `roi_heads.*` regresses boxes; they are not read.

Weights of OpenAI's or open_clip's RN50 and RN50x4 are read as the format openai_clip.
"""

import dataclasses
import math

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.clip.weights.openai import OpenAIClip
from vit_jax.models.regionclip.model import RegionCLIPConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format

_CLIP = OpenAIClip()
_TEXT, _SCALE = "lang_encoder.", "lang_encoder.logit_scale"


class RegionCLIPFormat(Format):
    """Checkpoints of pre-training: CLIP's tensors under other prefixes."""

    name = "regionclip"
    architectures = (RegionCLIPConfig,)
    ignored = (
        *("teacher_backbone.*", "offline_backbone.*", "offline_proposal_generator.*"),
        *("roi_heads.*", "pixel_mean", "pixel_std", "*concept_emb", "*attn_mask"),
    )
    position_resize = _CLIP.position_resize

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the image tower with its attention pooling."""
        return "backbone.conv1.weight" in file and "backbone.attnpool.c_proj.weight" in file

    def view(self, file: TensorFile, architecture: RegionCLIPConfig) -> TensorFile:
        """Returns the file with the published temperature; see `Format.view`."""
        del architecture
        if not any(key.startswith(_TEXT) for key in file):
            raise UserError(
                f"{file}: expected a text tower under {_TEXT}*, as in the checkpoints of "
                "pre-training; checkpoints of fine-tuned detectors have none"
            )
        if _SCALE in file:
            return file
        return file.with_tensor(_SCALE, np.full((), math.log(100.0), np.float32))

    def entries(self, architecture: RegionCLIPConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        return [
            dataclasses.replace(entry, keys=tuple(map(_renamed, entry.keys)))
            for entry in _CLIP.entries(architecture)
        ]


def _renamed(key: str) -> str:
    """Name of a tensor of CLIP in these checkpoints."""
    visual = key.startswith("visual.")
    return key.replace("visual.", "backbone.", 1) if visual else _TEXT + key


FORMATS: tuple[Format, ...] = (RegionCLIPFormat(),)
