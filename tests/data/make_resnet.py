"""Writes the reference activations of the convolutional towers, from timm and open_clip.

    python tests/data/make_resnet.py

writes `resnet_tiny.safetensors` (timm's names) and `clip_resnet_tiny.safetensors` (OpenAI's names,
under `visual.`, convolutions and linear layers in float16 as OpenAI released them) beside itself.
Every weight is random, so that none hides behind a zero or a one.

Beside the weights there are, under `reference.`:
    images (2, 64, 64, 3), float16 for size; pooled (2, D); logits (2, classes) for timm's;
    other_images (1, H, W, 3) of another shape; other_pooled (1, D);
    stage_0 .. stage_3 (1, h, w, C), channels last, of the other images;
    train_pooled (2, D), with batch statistics, and updated.KEY, the running averages after that.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import save_file
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

FOLDER = pathlib.Path(__file__).parent
DEPTHS, WIDTH, IMAGE_SIZE = (3, 2, 1, 1), 4, 64
PREFIX = "visual."


def narrow_resnet() -> nn.Module:
    """timm's ResNet v1.5 of width 4; timm fixes the stem at 64, so the four layers it meets are
    replaced."""
    channels = tuple(WIDTH << i for i in range(4))
    model = ResNet(Bottleneck, DEPTHS, num_classes=10, channels=channels)
    model.conv1 = nn.Conv2d(3, WIDTH, 7, stride=2, padding=3, bias=False)
    model.bn1 = nn.BatchNorm2d(WIDTH)
    first = model.layer1[0]
    first.conv1 = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
    first.downsample[0] = nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False)
    return model


def randomise(model: nn.Module, half: bool) -> None:
    """Random weights that keep activations near one; `half` rounds matrices to float16."""
    generator = torch.Generator().manual_seed(0)

    def normal(shape, scale):
        return scale * torch.randn(shape, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 1 + normal(module.weight.shape, 0.2)
            module.bias.data = normal(module.bias.shape, 0.2)
            module.running_mean = normal(module.running_mean.shape, 0.2)
            module.running_var = torch.rand(module.running_var.shape, generator=generator) + 0.5
            module.num_batches_tracked += 7
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = normal(module.weight.shape, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.data = normal(module.bias.shape, 0.2)
            if half:
                for parameter in module.parameters():
                    parameter.data = parameter.data.half().float()
    if hasattr(model, "attnpool"):
        positions = model.attnpool.positional_embedding
        positions.data = normal(positions.shape, 0.3)


def stage_outputs(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        getattr(model, f"layer{i + 1}").register_forward_hook(
            lambda _, __, out, i=i: outputs.update({f"stage_{i}": out.permute(0, 2, 3, 1)})
        )
        for i in range(4)
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return outputs


def resize_positions(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """As open_clip's `resize_pos_embed`: the grid bicubic with antialias, the first row kept."""
    side = IMAGE_SIZE // 32
    square = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:1], square.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1)])


def running(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"updated.{k}": v.clone() for k, v in state.items() if ".running_" in k}


def save(name: str, state: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> None:
    tensors = {**state, **{f"reference.{key}": value for key, value in reference.items()}}
    save_file({key: value.contiguous() for key, value in tensors.items()}, FOLDER / name)


def pictures(*shape: int) -> torch.Tensor:
    noise = np.random.default_rng(sum(shape)).normal(size=shape)
    return torch.from_numpy(noise.astype(np.float16))


def channels_first(images: torch.Tensor) -> torch.Tensor:
    return images.float().permute(0, 3, 1, 2)


def make_resnet(images: torch.Tensor) -> None:
    model = narrow_resnet().eval()
    randomise(model, half=False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    other = pictures(1, 64, 40, 3)

    def pool(x: torch.Tensor) -> torch.Tensor:
        return model.forward_head(model.forward_features(channels_first(x)), pre_logits=True)

    reference = {
        "images": images,
        "other_images": other,
        **stage_outputs(model, channels_first(other)),
        "pooled": pool(images),
        "logits": model(channels_first(images)),
        "other_pooled": pool(other),
    }
    model.train()
    reference["train_pooled"] = pool(images)
    save("resnet_tiny.safetensors", state, {**reference, **running(model.state_dict())})


def make_clip_resnet(images: torch.Tensor) -> None:
    model = ModifiedResNet(DEPTHS, output_dim=12, heads=4, image_size=IMAGE_SIZE, width=WIDTH)
    model.eval()
    randomise(model, half=True)
    state = {f"{PREFIX}{key}": value.clone() for key, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            for key, value in module.named_parameters():
                state[f"{PREFIX}{name}.{key}"] = value.half()
    other = pictures(1, 32, 64, 3)
    reference = {
        "images": images,
        "other_images": other,
        "pooled": model(channels_first(images)),
    }
    model.train()
    reference["train_pooled"] = model(channels_first(images))
    updated = {f"{PREFIX}{key}": value for key, value in model.state_dict().items()}
    reference.update(running(updated))
    model.load_state_dict({key.removeprefix(PREFIX): value for key, value in state.items()})
    model.eval()
    positions = model.attnpool.positional_embedding
    positions.data = resize_positions(positions.data, (1, 2))
    reference.update(stage_outputs(model, channels_first(other)))
    reference["other_pooled"] = model(channels_first(other))
    save("clip_resnet_tiny.safetensors", state, reference)


if __name__ == "__main__":
    with torch.no_grad():
        pair = pictures(2, IMAGE_SIZE, IMAGE_SIZE, 3)
        make_resnet(pair)
        make_clip_resnet(pair)
