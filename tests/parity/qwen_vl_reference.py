"""Qwen-VL's tower and resampler in torch, written from the specification.

Bai et al. 2023, section 2.1, and the layout of the published weights: names and shapes of the state
dict are those of the checkpoints below `transformer.visual.`. Nothing is from this library.
"""

import math

import torch
from torch import nn
from torch.nn import functional

EPSILON = 1e-6


def resized(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Positions (side^2, D) on another grid, bicubic without antialias: (rows * columns, D)."""
    side = math.isqrt(len(table))
    if (rows, columns) == (side, side):
        return table
    grid = table.T.reshape(1, -1, side, side)
    grid = functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T


def fixed_positions(side: int, width: int) -> torch.Tensor:
    """Sine and cosine of the column in the first half of the features, of the row in the second."""
    rates = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(*[torch.arange(side).double()] * 2, indexing="ij")
    angles = [x.reshape(-1, 1) * rates for x in (columns, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax attention of (B, N, H, hd)."""
    scores = torch.einsum("bnhd,bmhd->bhnm", query, key) / math.sqrt(query.shape[-1])
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), value).flatten(2)


class Interleaved(nn.Module):
    """Self-attention whose fused projection holds q, k and v head by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.in_proj(x).unflatten(-1, (self.heads, -1))
        return self.out_proj(attend(*heads.chunk(3, dim=-1)))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(functional.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, eps=EPSILON) for _ in range(2))
        self.attn, self.mlp = Interleaved(width, heads), Mlp(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, depth: int, *sizes: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*sizes) for _ in range(depth))


class Resampler(nn.Module):
    def __init__(self, side: int, width: int, heads: int, patch_width: int) -> None:
        super().__init__()
        self.side = side
        self.query = nn.Parameter(torch.randn(side**2, width))
        self.pos_embed = nn.Parameter(fixed_positions(side, width), requires_grad=False)
        self.kv_proj = nn.Linear(patch_width, width, bias=False)
        self.ln_q, self.ln_kv = (nn.LayerNorm(width, eps=EPSILON) for _ in range(2))
        self.attn = nn.MultiheadAttention(width, heads)

    def forward(self, patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        patches = self.ln_kv(self.kv_proj(patches))
        query = (self.ln_q(self.query) + self.pos_embed).expand(len(patches), -1, -1)
        key = patches + resized(self.pos_embed, rows, columns)
        weights = self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3)
        heads = [
            functional.linear(x, weight, bias).unflatten(-1, (self.attn.num_heads, -1))
            for x, weight, bias in zip((query, key, patches), *weights, strict=True)
        ]
        return self.attn.out_proj(attend(*heads))


class QwenVL(nn.Module):
    """Images (B, 3, H, W) to embeddings (B, side^2, width)."""

    def __init__(
        self,
        *,
        positions: int,
        patch_size: int,
        patch_width: int,
        depth: int,
        patch_heads: int,
        hidden: int,
        side: int,
        width: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, patch_width, patch_size, patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(positions, patch_width))
        self.ln_pre = nn.LayerNorm(patch_width, eps=EPSILON)
        self.transformer = Blocks(depth, patch_width, patch_heads, hidden)
        self.attn_pool = Resampler(side, width, heads, patch_width)
        self.ln_post = nn.LayerNorm(width, eps=EPSILON)
        self.proj = nn.Parameter(torch.randn(width, width))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the outputs of all blocks, and the embeddings."""
        x = self.conv1(images)
        rows, columns = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + resized(self.positional_embedding, rows, columns)
        x, found = self.ln_pre(x), {}
        for i, block in enumerate(self.transformer.resblocks):
            x = found[f"image_block_{i}"] = block(x)
        found["resampled"] = self.attn_pool(x, rows, columns)
        found["embeddings"] = self.ln_post(found["resampled"]) @ self.proj
        return found
