"""SAM of Hugging Face's transformers (SamModel), and of its authors.

The names of the authors' files (`sam_vit_b_01ec64.pth` and others) were established from their code
(github.com/facebookresearch/segment-anything: `image_encoder.py`, `prompt_encoder.py`,
`mask_decoder.py`, `transformer.py`, `common.py`). No such file was at hand.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.layers.grids import DEFAULT_RULE
from vit_jax.models.layers.weights import FitText, ResizePositions
from vit_jax.models.sam.encoder import SamEncoderConfig
from vit_jax.models.sam.model import SamConfig
from vit_jax.models.sam.prompts import NUM_KINDS
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers import transformers as layers
from vit_jax.weights.layers.torch import attention_out, conv, linear, norm
from vit_jax.weights.transforms import ENLARGING, LEADING_ONE, one_to_one, stack

_FREQUENCIES = "shared_image_embedding.positional_embedding"
_TIED = "prompt_encoder.shared_embedding.positional_embedding"
_FIRST_BLOCK = "layers.0.attn.rel_pos_h"
# Names of the authors, and of transformers; the first pattern that matches is replaced.
_AUTHORS = (
    (r"^shared_image_embedding\.positional_embedding$",
     "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"mask_embed\.conv1\.", "mask_downscaling.0."),
    (r"mask_embed\.layer_norm1\.", "mask_downscaling.1."),
    (r"mask_embed\.conv2\.", "mask_downscaling.3."),
    (r"mask_embed\.layer_norm2\.", "mask_downscaling.4."),
    (r"mask_embed\.conv3\.", "mask_downscaling.6."),
    (r"vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"vision_encoder\.layers\.(.*?)\.layer_norm", r"image_encoder.blocks.\1.norm"),
    (r"vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"vision_encoder\.", "image_encoder."),
    (r"transformer\.layer_norm_final_attn\.", "transformer.norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"upscale_conv1\.", "output_upscaling.0."),
    (r"upscale_layer_norm\.", "output_upscaling.1."),
    (r"upscale_conv2\.", "output_upscaling.3."),
    (r"\.layers\.0\.(weight|bias)$", r".layers.1.\1"),  # of the three layers of a head
    (r"\.proj_in\.", ".layers.0."),
    (r"\.proj_out\.", ".layers.2."),
)  # fmt: skip
# Fields by the keys of `config.json`, and the defaults of the library.
_IMAGE_FIELDS = {
    "image_size": ("image_size", 1024),
    "patch_size": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "window_size": ("window_size", 14),
    "out_width": ("output_channels", 256),
    "norm_epsilon": ("layer_norm_eps", 1e-6),
}
_DECODER_FIELDS = {
    "depth": ("num_hidden_layers", 2),
    "num_heads": ("num_attention_heads", 8),
    "mlp_dim": ("mlp_dim", 2048),
    "num_masks": ("num_multimask_outputs", 3),
    "decoder_epsilon": ("layer_norm_eps", 1e-6),
}


class TransformersSam(Format):
    """Models with prompts. The file may have the random frequencies under one or two names."""

    name = layers.NAME
    architectures = (SamConfig,)
    ignored = (_TIED,)
    position_resize = DEFAULT_RULE  # the library takes images of one size

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has an image encoder under the names of the library."""
        return f"vision_encoder.{_FIRST_BLOCK}" in file and "mask_decoder.iou_token.weight" in file

    def view(self, file: TensorFile, architecture: SamConfig) -> TensorFile:
        """Returns the file with the random frequencies under their first name."""
        del architecture
        if _FREQUENCIES in file:
            return file
        return file.renamed(lambda key: _FREQUENCIES if key == _TIED else key)

    def entries(self, architecture: SamConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        return [
            *_encoder_entries(architecture.image),
            *_prompt_entries(),
            *_decoder_entries(architecture),
        ]

    def architecture(self, file: TensorFile, config: layers.Settings | None) -> SamConfig | None:
        """Returns the architecture described by `config.json`; see `Format.architecture`."""
        del file
        if config is None:
            return None
        if (kind := config.get("model_type")) != "sam":
            raise UserError(f"config.json: expected model_type 'sam'; found {kind!r}")
        image = {"hidden_act": "gelu", **(config.get("vision_config") or {})}
        prompts = config.get("prompt_encoder_config") or {}
        decoder = config.get("mask_decoder_config") or {}
        fields = _fields(image, _IMAGE_FIELDS)
        mlp_dim = image.get("mlp_dim") or int(fields["width"] * image.get("mlp_ratio", 4.0))
        encoder = SamEncoderConfig(
            **fields,
            mlp_dim=mlp_dim,
            num_global=len(image.get("global_attn_indexes", range(4))),
            activation=layers.activation(image),
        )
        _check("vision_config", image, {
            "use_abs_pos": True,
            "use_rel_pos": True,
            "qkv_bias": True,
            "num_pos_feats": encoder.out_width // 2,
            "global_attn_indexes": list(encoder.global_blocks),
        })  # fmt: skip
        _check("prompt_encoder_config", prompts, {
            "hidden_size": encoder.out_width,
            "image_size": image.get("image_size", 1024),
            "patch_size": encoder.patch_size,
            "num_point_embeddings": NUM_KINDS,
            "hidden_act": "gelu",
            "layer_norm_eps": encoder.norm_epsilon,
        })  # fmt: skip
        _check("mask_decoder_config", decoder, {
            "hidden_size": encoder.out_width,
            "hidden_act": "relu",
            "attention_downsample_rate": 2,
            "iou_head_depth": 3,
            "iou_head_hidden_dim": encoder.out_width,
        })  # fmt: skip
        return SamConfig(
            image=encoder,
            mask_width=prompts.get("mask_input_channels", 16),
            **_fields(decoder, _DECODER_FIELDS),
        )


class OfficialSam(Format):
    """The authors' files."""

    name = "segment_anything"
    architectures = (SamConfig,)
    position_resize = DEFAULT_RULE

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has an image encoder under the authors' names."""
        return (
            "image_encoder.blocks.0.attn.rel_pos_h" in file
            and "mask_decoder.iou_token.weight" in file
        )

    def entries(self, architecture: SamConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        return [
            dataclasses.replace(entry, keys=tuple(map(_authors_name, entry.keys)))
            for entry in TransformersSam().entries(architecture)
        ]

    def settle(self, architecture: SamConfig, file: TensorFile) -> SamConfig:
        """Returns the architecture with the epsilon of the authors' decoder."""
        settled = super().settle(architecture, file)
        return dataclasses.replace(settled, decoder_epsilon=1e-5)


def _authors_name(key: str) -> str:
    for pattern, name in _AUTHORS:
        found, count = re.subn(pattern, name, key)
        if count:
            return found
    return key


def _fields(settings: layers.Settings, names: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    return {field: settings.get(key, default) for field, (key, default) in names.items()}


def _check(part: str, settings: layers.Settings, expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if (found := settings.get(key, value)) != value:
            raise UserError(f"config.json: expected {part}.{key}={value!r}; found {found!r}")


def _encoder_entries(config: SamEncoderConfig) -> list[Entry]:
    key = "vision_encoder"
    rows, columns = config.grid
    grid = one_to_one(
        lambda x, shape: np.reshape(x, (-1, x.shape[-1])),
        lambda x: x.reshape(1, rows, columns, -1),
    )
    resize = ResizePositions(config.grid, rule=config.position_resize)
    return [
        *conv("image/patch_embed", f"{key}.patch_embed.projection"),
        Entry("image/positions", f"{key}.pos_embed", grid, resize=resize),
        *_block_entries("image/window_blocks", config.window_blocks, None),
        # Tables of the whole map are resized as positions of texts are.
        *_block_entries("image/global_blocks", config.global_blocks, FitText("linear")),
        *conv("image/neck1", f"{key}.neck.conv1", bias=False),
        *norm("image/neck_norm1", f"{key}.neck.layer_norm1"),
        *conv("image/neck2", f"{key}.neck.conv2", bias=False),
        *norm("image/neck_norm2", f"{key}.neck.layer_norm2"),
    ]


def _block_entries(path: str, stack: tuple[int, ...], resize: FitText | None) -> list[Entry]:
    key = "vision_encoder.layers.{i}"
    return [
        *norm(f"{path}/norm1", f"{key}.layer_norm1", stack),
        *linear(f"{path}/attention/qkv", f"{key}.attn.qkv", stack),
        *attention_out(f"{path}/attention/out", f"{key}.attn.proj", stack),
        Entry(f"{path}/attention/rows", f"{key}.attn.rel_pos_h", layers=stack, resize=resize),
        Entry(f"{path}/attention/columns", f"{key}.attn.rel_pos_w", layers=stack, resize=resize),
        *norm(f"{path}/norm2", f"{key}.layer_norm2", stack),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.lin1", stack),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.lin2", stack),
    ]


def _prompt_entries() -> list[Entry]:
    key = "prompt_encoder"
    kinds = tuple(f"{key}.point_embed.{i}.weight" for i in range(NUM_KINDS))
    return [
        Entry("prompts/frequencies", _FREQUENCIES),
        Entry("prompts/kinds", kinds, stack(0, LEADING_ONE)),
        Entry("prompts/no_point", f"{key}.not_a_point_embed.weight", LEADING_ONE),
        Entry("prompts/no_mask", f"{key}.no_mask_embed.weight", LEADING_ONE),
        *(e for i in (1, 2, 3) for e in conv(f"prompts/mask_conv{i}", f"{key}.mask_embed.conv{i}")),
        *(
            e
            for i in (1, 2)
            for e in norm(f"prompts/mask_norm{i}", f"{key}.mask_embed.layer_norm{i}")
        ),
    ]


def _decoder_entries(config: SamConfig) -> list[Entry]:
    path, key, masks = "decoder", "mask_decoder", range(config.num_masks + 1)
    return [
        Entry(f"{path}/quality_token", f"{key}.iou_token.weight"),
        Entry(f"{path}/mask_tokens", f"{key}.mask_tokens.weight"),
        *_two_way_entries(f"{path}/blocks", f"{key}.transformer.layers.{{i}}", range(config.depth)),
        *_attention(f"{path}/to_image", f"{key}.transformer.final_attn_token_to_image"),
        *norm(f"{path}/norm", f"{key}.transformer.layer_norm_final_attn"),
        *conv(f"{path}/upscale1", f"{key}.upscale_conv1", kernel=ENLARGING),
        *norm(f"{path}/upscale_norm", f"{key}.upscale_layer_norm"),
        *conv(f"{path}/upscale2", f"{key}.upscale_conv2", kernel=ENLARGING),
        *_head(f"{path}/mask_heads", f"{key}.output_hypernetworks_mlps.{{i}}", masks),
        *_head(f"{path}/quality_head", f"{key}.iou_prediction_head"),
    ]


def _two_way_entries(path: str, key: str, stack: range) -> list[Entry]:
    return [
        *_attention(f"{path}/attention", f"{key}.self_attn", stack),
        *_attention(f"{path}/to_image", f"{key}.cross_attn_token_to_image", stack),
        *_attention(f"{path}/to_tokens", f"{key}.cross_attn_image_to_token", stack),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.lin1", stack),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.lin2", stack),
        *(e for i in (1, 2, 3, 4) for e in norm(f"{path}/norm{i}", f"{key}.layer_norm{i}", stack)),
    ]


def _attention(path: str, key: str, stack: range | None = None) -> list[Entry]:
    entries = attention_out(f"{path}/out", f"{key}.out_proj", stack)
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
        entries += linear(f"{path}/{ours}", f"{key}.{theirs}_proj", stack)
    return entries


def _head(path: str, key: str, stack: range | None = None) -> list[Entry]:
    names = {"fc1": "proj_in", "fc2": "layers.0", "fc3": "proj_out"}
    return [
        e for ours, name in names.items() for e in linear(f"{path}/{ours}", f"{key}.{name}", stack)
    ]


FORMATS: tuple[Format, ...] = (TransformersSam(), OfficialSam())
