"""GLIP of its authors (github.com/microsoft/GLIP), checkpoints of maskrcnn-benchmark.

No checkpoint was at hand. The names and shapes were established from the authors' code
(`vldyhead.py`, `fuse_helper.py`, `fpn.py`, `swint.py`, `bert_model.py` and the configuration
`glip_Swin_T_O365_GoldG.yaml`), and their prefixes from mmdetection's `glip_to_mmdet.py`, which
reads the published files. Below a common prefix `module.`:

- `backbone.body.*` has the names of the original Swin, and `norm1` to `norm3` for the outputs of
  the stages; `backbone.fpn.*` is the feature pyramid. The channels of images are blue, green, red;
  the kernel of the patch embedding is reversed here.
- `language_backbone.body.model.*` has the names of transformers' BERT.
- `rpn.head.dyhead_tower.*` counts the three parts of a layer: 3 i is the fusion, 3 i + 1 the layer
  of the text, 3 i + 2 the dynamic block. Checkpoints without fusion, as GLIP-T (A), have other
  numbers and are not read.
- `rpn.head.cls_logits`, `rpn.head.mlm_head`, BERT's pooler and buffers are not used and not
  written.

The weights expect that offsets for the coarser level are read as by the original kernel, see
`dynamic.Taps`.
"""

import dataclasses

import numpy as np

from vit_jax.models.bert.weights import bert_entries, block_entries
from vit_jax.models.glip.model import GlipConfig
from vit_jax.models.glip.pyramid import EXTRA_LEVELS
from vit_jax.models.swin.weights import original_entries
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.torch import attention_out, conv, linear, norm
from vit_jax.weights.transforms import one_to_one

_BODY, _FPN = "backbone.body.", "backbone.fpn."
_TEXT, _HEAD = "language_backbone.body.model.", "rpn.head."
_PARTS = 3  # of a layer of the tower: fusion, text, image
# (out, in, height, width) of blue, green, red <-> (height, width, in, out) of red, green, blue.
_BGR_CONV = one_to_one(
    lambda x, shape: x[:, ::-1].transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1)[:, ::-1],
)
# (out, in, 1, 1) <-> (in, out).
_POINTWISE = one_to_one(
    lambda x, shape: np.reshape(x, x.shape[:2]).T, lambda x: x.T[:, :, None, None]
)


class OfficialGlip(Format):
    """Checkpoints with deep fusion."""

    name = "glip"
    architectures = (GlipConfig,)
    ignored = (
        "*.position_ids",
        "*.relative_position_index",
        f"{_TEXT}pooler.*",
        f"{_HEAD}cls_logits.*",
        f"{_HEAD}mlm_head.*",
        "rpn.anchor_generator.*",
    )
    position_resize = "bicubic"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the fusion of the first layer."""
        return f"{_HEAD}dyhead_tower.0.b_attn.gamma_v" in file

    def entries(self, architecture: GlipConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        config = architecture
        return [
            *map(_reversed_channels, original_entries(config.image, "image/", _BODY)),
            *_pyramid_entries(config),
            *bert_entries(config.text, "text/", _TEXT),
            *_tower_entries(config.depth),
            *linear("head/box", f"{_HEAD}bbox_pred", kernel=_POINTWISE),
            *linear("head/centerness", f"{_HEAD}centerness", kernel=_POINTWISE),
            *linear("head/token", f"{_HEAD}dot_product_projection_text"),
            Entry("head/token_bias", f"{_HEAD}bias_lang"),
            Entry("head/bias", f"{_HEAD}bias0"),
            Entry("head/log_scale", f"{_HEAD}log_scale"),
            Entry("head/scales", f"{_HEAD}scales.{{i}}.scale", layers=range(len(config.strides))),
        ]


def _reversed_channels(entry: Entry) -> Entry:
    if entry.paths != ("image/patch_embed/kernel",):
        return entry
    return dataclasses.replace(entry, transform=_BGR_CONV)


def _pyramid_entries(config: GlipConfig) -> list[Entry]:
    entries = []
    for i, stage in enumerate(config.stages):
        entries += [
            *norm(f"pyramid/norm{i}", f"{_BODY}norm{stage}"),
            *conv(f"pyramid/inner{i}", f"{_FPN}fpn_inner{stage + 1}"),
            *conv(f"pyramid/output{i}", f"{_FPN}fpn_layer{stage + 1}"),
        ]
    for i in range(EXTRA_LEVELS):
        entries += conv(f"pyramid/extra{i}", f"{_FPN}top_blocks.p{6 + i}")
    return entries


def _tower_entries(depth: int) -> list[Entry]:
    fusion, text, image = (range(part, _PARTS * depth, _PARTS) for part in range(_PARTS))
    path, key = "tower/blocks", f"{_HEAD}dyhead_tower.{{i}}"
    entries = block_entries(f"{path}/text", key, text)
    attention = f"{key}.b_attn.attn"
    for ours, theirs in (("image", "v"), ("text", "l")):
        part = f"{path}/fusion/{ours}"
        entries += [
            *norm(f"{part}/norm", f"{key}.b_attn.layer_norm_{theirs}", fusion),
            *linear(f"{part}/key", f"{attention}.{theirs}_proj", fusion),
            *linear(f"{part}/value", f"{attention}.values_{theirs}_proj", fusion),
            *attention_out(f"{part}/out", f"{attention}.out_{theirs}_proj", fusion),
            Entry(f"{part}/scale/gamma", f"{key}.b_attn.gamma_{theirs}", layers=fusion),
        ]
    block = f"{path}/image"
    for i, name in enumerate(("coarser", "same", "finer")):
        entries += conv(f"{block}/{name}/conv", f"{key}.DyConv.{i}.conv", image)
        entries += norm(f"{block}/{name}/norm", f"{key}.DyConv.{i}.bn", image)
    return [
        *entries,
        *conv(f"{block}/taps", f"{key}.offset", image),
        *conv(f"{block}/level_weight", f"{key}.AttnConv.1", image),
        *linear(f"{block}/activation/fc1", f"{key}.relu.fc.0", image),
        *linear(f"{block}/activation/fc2", f"{key}.relu.fc.2", image),
    ]


FORMATS: tuple[Format, ...] = (OfficialGlip(),)
