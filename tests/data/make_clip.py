"""Writes `clip_tiny.safetensors`: a small CLIP of open_clip and what it computes.

    python tests/data/make_clip.py      (needs the extra `parity`)

The state dict under open_clip's own names; inputs and outputs under `reference.`.
"""

import pathlib

import open_clip
import torch
from safetensors.torch import save_file

OUTPUT = pathlib.Path(__file__).with_name("clip_tiny.safetensors")
VISION = {"image_size": 16, "patch_size": 4, "width": 32, "layers": 3, "head_width": 8}
TEXT = {"context_length": 9, "vocab_size": 50, "width": 24, "heads": 3, "layers": 2}
EOT = 49


def make_model(seed: int = 0) -> open_clip.CLIP:
    """Every parameter random, so that none hides behind a zero or a one."""
    model = open_clip.CLIP(
        embed_dim=20,
        vision_cfg=open_clip.CLIPVisionCfg(**VISION),
        text_cfg=open_clip.CLIPTextCfg(**TEXT),
        quick_gelu=True,
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            is_scale = ".ln_" in f".{name}" and name.endswith("weight")
            value.copy_(0.2 * noise + (1.0 if is_scale else 0.0))
        model.logit_scale.fill_(2.5)
    return model


def block_outputs(blocks: torch.nn.ModuleList) -> list[torch.Tensor]:
    """A list that fills with each block's output (B, N, D) during a forward pass."""
    outputs: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    return outputs


def main() -> None:
    """Runs the model on fixed inputs and writes everything."""
    model = make_model()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((3, 3, 16, 16), generator=generator)
    tokens = torch.randint(1, EOT, (3, 9), generator=generator)
    for row, end in enumerate((2, 5, 8)):  # texts of different lengths, zero-padded
        tokens[row, end], tokens[row, end + 1 :] = EOT, 0
    image_blocks = block_outputs(model.visual.transformer.resblocks)
    text_blocks = block_outputs(model.transformer.resblocks)
    with torch.no_grad():
        reference = {
            "images": images.permute(0, 2, 3, 1),
            "tokens": tokens,
            "image_embedding": model.encode_image(images),
            "text_embedding": model.encode_text(tokens),
        }
        for name, blocks in (("image", image_blocks), ("text", text_blocks)):
            reference |= {f"{name}_block_{i}": x for i, x in enumerate(blocks)}
        z = model.encode_image(images, normalize=True)
        t = model.encode_text(tokens, normalize=True)
        scale = model.logit_scale.exp()
        reference |= {"image_normalized": z, "text_normalized": t, "logit_scale": scale}
        reference["logits"] = scale * z @ t.T
    tensors = dict(model.state_dict())
    tensors |= {f"reference.{name}": value for name, value in reference.items()}
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, OUTPUT)


if __name__ == "__main__":
    main()
