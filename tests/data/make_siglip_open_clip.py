"""Writes `siglip_open_clip_tiny.safetensors`: a small SigLIP of open_clip and what it computes.

    python -m tests.data.make_siglip_open_clip      (needs the extra `parity`)

open_clip's `CustomTextCLIP`, whose image tower can only be one of timm's registered models and is
therefore replaced by a smaller one of the same class.
"""

import pathlib

import open_clip
import torch
from open_clip.model import CustomTextCLIP
from timm.models.vision_transformer import VisionTransformer

from tests.data.make_timm import pictures, randomise, record, save

PATH = pathlib.Path(__file__).with_name("siglip_open_clip_tiny.safetensors")
VISION = {
    "image_size": 16,
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_pool": "map",
    "timm_proj": "none",
}
TEXT = {
    "context_length": 9,
    "vocab_size": 50,
    "width": 12,
    "heads": 3,
    "layers": 2,
    "mlp_ratio": 2.0,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}


def make_model() -> CustomTextCLIP:
    model = CustomTextCLIP(
        embed_dim=16,
        vision_cfg=open_clip.CLIPVisionCfg(**VISION),
        text_cfg=open_clip.CLIPTextCfg(**TEXT),
        init_logit_bias=-10,
    )
    model.visual.trunk = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=3,
        num_heads=2,
        mlp_ratio=2.0,
        class_token=False,
        global_pool="map",
        num_classes=0,
    )
    randomise(model)
    model.logit_scale.fill_(2.5)
    model.logit_bias.fill_(-9.5)
    return model.eval()


def main() -> None:
    model = make_model()
    images = pictures(3, 16, 16, 3)
    tokens = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(2))
    blocks = {
        "image": record(model.visual.trunk.blocks),
        "text": record(model.text.transformer.resblocks),
    }
    reference = {
        "images": images,
        "tokens": tokens,
        "image_embedding": model.encode_image(images.permute(0, 3, 1, 2)),
        "text_embedding": model.encode_text(tokens),
    }
    for name, outputs in blocks.items():
        reference |= {f"{name}_block_{i}": x for i, x in enumerate(outputs)}
    image_logits, _ = model.get_logits(images.permute(0, 3, 1, 2), tokens)
    save(PATH, model.state_dict(), {**reference, "logits": image_logits})


if __name__ == "__main__":
    with torch.no_grad():
        main()
