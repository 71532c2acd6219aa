"""Writes the reference activations of the Swin Transformer, from timm.

    python tests/data/make_swin.py

writes `swin_tiny.safetensors` (timm's names) beside itself. Every weight is random, so that none
hides behind a zero or a one, and relative-position biases are as large as logits.

The weights are those of a model for 32 px, whose second stage is no larger than its window. Beside
them there are, under `reference.`: images (2, H, W, 3), float16 for size; stage_0 and stage_1
(2, h, w, C), channels last; pooled (2, D); logits (2, classes). The same for other sizes, under
    reference.fitted.        44 x 60, by timm's model created for that size: maps that the window
                             does not divide, an odd map to merge, shifts in both stages;
    reference.fixed.         the same images by timm's model created for 32 px with
                             `dynamic_img_size`: no shift in the second stage;
    reference.fitted_small.  20 x 32, created for that size: a window of 3 x 4, whose bias table is
                             resized;
    reference.fixed_small.   the same images with `dynamic_img_size`: windows are padded.
`reference.table.geometric` and `reference.table.bicubic` are the bias table of the first block
resized from a window of 4 x 4 to one of 6 x 3, by timm's function and by torch with antialias.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import resize_rel_pos_bias_table
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import nn

PATH = pathlib.Path(__file__).parent / "swin_tiny.safetensors"
IMAGE_SIZE, WINDOW, NEW_WINDOW = 32, 4, (6, 3)


def make_model(image_size: int | tuple[int, int], dynamic: bool = False) -> SwinTransformer:
    model = SwinTransformer(
        img_size=image_size,
        patch_size=4,
        embed_dim=8,
        depths=(5, 2),
        num_heads=(2, 4),
        window_size=WINDOW,
        num_classes=5,
        dynamic_img_size=dynamic,
    )
    return model.eval()


def randomise(model: nn.Module) -> None:
    """Random weights that keep activations near one."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("relative_position_bias_table"):
            parameter.data = noise
        elif parameter.ndim > 1:
            parameter.data = noise * parameter[0].numel() ** -0.5
        else:
            parameter.data = 0.3 * noise + float("norm" in name and name.endswith("weight"))


def pictures(height: int, width: int) -> torch.Tensor:
    noise = np.random.default_rng(height).normal(size=(2, height, width, 3))
    return torch.from_numpy(noise.astype(np.float16))


def outputs(model: SwinTransformer, images: torch.Tensor) -> dict[str, torch.Tensor]:
    x = images.float().permute(0, 3, 1, 2)
    found = {"images": images}
    y = model.patch_embed(x)
    for i, layer in enumerate(model.layers):
        y = found[f"stage_{i}"] = layer(y)
    found["pooled"] = model.forward_head(model.norm(y), pre_logits=True)
    found["logits"] = model(x)
    return found


def tables(table: torch.Tensor) -> dict[str, torch.Tensor]:
    sides = [2 * side - 1 for side in NEW_WINDOW]
    grid = table.T.reshape(1, -1, 2 * WINDOW - 1, 2 * WINDOW - 1)
    bicubic = F.interpolate(grid, sides, mode="bicubic", antialias=True, align_corners=False)
    shape = (sides[0] * sides[1], table.shape[1])
    return {
        "table.geometric": resize_rel_pos_bias_table(table, NEW_WINDOW, shape),
        "table.bicubic": bicubic.reshape(shape[1], shape[0]).T,
    }


def main() -> None:
    model = make_model(IMAGE_SIZE)
    randomise(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    reference = outputs(model, pictures(IMAGE_SIZE, IMAGE_SIZE))
    for suffix, size in {"": (44, 60), "_small": (20, 32)}.items():
        fitted, fixed = make_model(size), make_model(IMAGE_SIZE, dynamic=True)
        fitted.load_state_dict(checkpoint_filter_fn(dict(state), fitted))
        fixed.load_state_dict(state)
        for name, other in {"fitted": fitted, "fixed": fixed}.items():
            found = outputs(other, pictures(*size))
            reference |= {f"{name}{suffix}.{key}": value for key, value in found.items()}
    reference |= tables(state["layers.0.blocks.0.attn.relative_position_bias_table"])
    tensors = {**state, **{f"reference.{key}": value for key, value in reference.items()}}
    save_file({key: value.contiguous() for key, value in tensors.items()}, PATH)


if __name__ == "__main__":
    with torch.no_grad():
        main()
