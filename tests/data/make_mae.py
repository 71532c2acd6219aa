"""Writes `mae_tiny.safetensors`: a small masked autoencoder and what it computes.

    python tests/data/make_mae.py      (needs the extra `parity`)

The original (github.com/facebookresearch/mae, models_mae.py) is no package and asks for an old
timm. `MaskedAutoencoder` has its names and its order of operations, from timm's blocks of today.
Under `reference.`: images (B, H, W, 3) and noise (B, N); of whole images the outputs of all
blocks and the pooled class token; latent, pixels and mask of images of which a quarter is shown.
"""

import functools
import pathlib

import numpy as np
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import nn

from tests.data.make_timm import pictures, randomise, record, save

PATH = pathlib.Path(__file__).with_name("mae_tiny.safetensors")
MASK_RATIO = 0.75


class MaskedAutoencoder(nn.Module):
    """The original's model, with the masking's noise as an argument."""

    def __init__(
        self,
        img_size=224,
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
        mlp_ratio=4.0,
    ):
        super().__init__()

        norm = functools.partial(nn.LayerNorm, eps=1e-6)

        def blocks(count: int, width: int, heads: int) -> nn.ModuleList:
            block = {"mlp_ratio": mlp_ratio, "qkv_bias": True, "norm_layer": norm}
            return nn.ModuleList([Block(width, heads, **block) for _ in range(count)])

        def positions(width: int) -> nn.Parameter:
            table = sincos(width, img_size // patch_size)
            return nn.Parameter(table, requires_grad=False)

        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = positions(embed_dim)
        self.blocks = blocks(depth, embed_dim, num_heads)
        self.norm = norm(embed_dim)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = positions(decoder_embed_dim)
        self.decoder_blocks = blocks(decoder_depth, decoder_embed_dim, decoder_num_heads)
        self.decoder_norm = norm(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * 3)

    def encode(self, images: torch.Tensor, shown: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, 1 + K, D) of images (B, 3, H, W) of which (B, K) patches are shown."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        if shown is not None:
            x = torch.gather(x, 1, shown[..., None].expand(-1, -1, x.shape[-1]))
        token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([token, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, x: torch.Tensor, ids_restore: torch.Tensor) -> torch.Tensor:
        """Pixels (B, N, patch_size^2 * 3)."""
        x = self.decoder_embed(x)
        hidden = ids_restore.shape[1] + 1 - x.shape[1]
        masked = self.mask_token.expand(len(x), hidden, -1)
        patches = torch.cat([x[:, 1:], masked], dim=1)
        patches = torch.gather(patches, 1, ids_restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward(self, images: torch.Tensor, noise: torch.Tensor, mask_ratio: float = MASK_RATIO):
        """Latent, pixels, and mask (B, N) with 1 where a patch was hidden."""
        keep = int(noise.shape[1] * (1 - mask_ratio))
        ids_shuffle = torch.argsort(noise, dim=1)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        mask = torch.ones_like(noise)
        mask[:, :keep] = 0
        latent = self.encode(images, ids_shuffle[:, :keep])
        return latent, self.decode(latent, ids_restore), torch.gather(mask, 1, ids_restore)


def sincos(width: int, side: int) -> torch.Tensor:
    """`get_2d_sincos_pos_embed` with a zero row for the class token: (1, 1 + side^2, width)."""

    def one(positions: np.ndarray) -> np.ndarray:
        omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
        angles = np.einsum("m,d->md", positions.reshape(-1), omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    columns, rows = np.meshgrid(np.arange(side), np.arange(side))
    table = np.concatenate([one(columns), one(rows)], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, width)), table])[None]).float()


def randomise_all_but_positions(model: MaskedAutoencoder) -> None:
    fixed = {name: p.data for name, p in model.named_parameters() if not p.requires_grad}
    randomise(model)
    for name, value in fixed.items():
        model.get_parameter(name).data = value


def main() -> None:
    model = MaskedAutoencoder(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=3,
        num_heads=2,
        decoder_embed_dim=8,
        decoder_depth=2,
        decoder_num_heads=2,
        mlp_ratio=2.0,
    )
    model.eval()
    randomise_all_but_positions(model)
    images, noise = pictures(2, 16, 16, 3), pictures(2, 16)
    outputs = record(model.blocks)
    pooled = model.encode(images.permute(0, 3, 1, 2))[:, 0]
    reference = {"images": images, "noise": noise, "pooled": pooled}
    reference |= {f"block_{i}": x for i, x in enumerate(outputs)}
    results = model(images.permute(0, 3, 1, 2), noise)
    reference |= dict(zip(("latent", "pixels", "mask"), results, strict=True))
    save(PATH, model.state_dict(), reference)


if __name__ == "__main__":
    with torch.no_grad():
        main()
