"""Writes `timm_*.safetensors`: small vision transformers of timm and what they compute.

    python tests/data/make_timm.py      (needs the extra `parity`)

The state dicts under timm's names; images (B, H, W, 3), outputs of all blocks, pooled features and
logits under `reference.`. Swin and ResNet have scripts of their own.
"""

import pathlib
from collections.abc import Iterable

import torch
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

FOLDER = pathlib.Path(__file__).parent
Tensors = dict[str, torch.Tensor]

SIZES = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "num_classes": 5,
}
MODELS = {
    "vit": {"qk_norm": True},
    "gap": {"global_pool": "avg"},
    "mean": {"global_pool": "avg", "fc_norm": False, "class_token": False, "pre_norm": True},
    "map": {"global_pool": "map", "class_token": False},
    "deit3": {"init_values": 0.1, "no_embed_class": True},
    "dinov2": {"init_values": 0.1, "no_embed_class": True, "reg_tokens": 3, "num_classes": 0},
}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Every parameter random, so that none hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and name.endswith("weight"):
            parameter.data = noise * parameter[0].numel() ** -0.5
        else:
            is_norm = "norm" in name or "ln_" in name
            is_factor = name.endswith("gamma") or (is_norm and name.endswith("weight"))
            parameter.data = 0.3 * noise + float(is_factor)


def pictures(*shape: int) -> torch.Tensor:
    """Noise, channels last."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def record(blocks: Iterable[nn.Module]) -> list[torch.Tensor]:
    """A list that fills with each block's output during a forward pass."""
    outputs: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    return outputs


def save(path: pathlib.Path, state: Tensors, reference: Tensors) -> None:
    """Weights as they are, the rest under `reference.`."""
    tensors = {**state, **{f"reference.{key}": value for key, value in reference.items()}}
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)


def make(name: str, model: VisionTransformer) -> None:
    model.eval()
    randomise(model)
    images = pictures(2, 16, 16, 3)
    outputs = record(model.blocks)
    logits = model(images.permute(0, 3, 1, 2))
    reference = {"images": images} | {f"block_{i}": x for i, x in enumerate(outputs)}
    tokens = model.norm(outputs[-1])
    if name == "deit":  # timm's pooled features are the mean of two tokens'
        reference["pooled"] = tokens[:, 0]
    else:
        reference["pooled"] = model.forward_head(tokens, pre_logits=True)
    if model.num_classes:
        reference["logits"] = logits
    save(FOLDER / f"timm_{name}.safetensors", model.state_dict(), reference)


if __name__ == "__main__":
    with torch.no_grad():
        for name, options in MODELS.items():
            make(name, VisionTransformer(**{**SIZES, **options}))
        make("deit", VisionTransformerDistilled(**SIZES))
