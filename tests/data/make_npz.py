"""Writes `npz_*.npz`: random weights as JAX libraries name them and what timm computes with them.

    python tests/data/make_npz.py       (needs the extra `parity`)

The names and shapes are those of google-research/vision_transformer (`vit_jax`) and of big_vision,
written down here. timm and open_clip read such files themselves and are the judges: inputs and
outputs of their models are under `reference.` in the same files. Images are (B, H, W, 3).
"""

import functools
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from open_clip.convert import load_big_vision_weights
from open_clip.transformer import TextTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

DIRECTORY = pathlib.Path(__file__).parent
Arrays = dict[str, np.ndarray]

WIDTH, DEPTH, HEADS, MLP, CLASSES, PATCH, GRID = 16, 3, 2, 24, 5, 4, 4
TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS, TEXT_MLP, VOCABULARY, LENGTH = 16, 2, 4, 32, 50, 9
# Numbers of the layers in a block: attention, second norm, MLP.
VIT_JAX, BIG_VISION = (1, 2, 3), (0, 1, 0)
LayerNorm = functools.partial(nn.LayerNorm, eps=1e-6)


class Weights:
    """Random arrays by name; activations stay near one."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.arrays: Arrays = {}

    def vector(self, name: str, shape: Sequence[int], mean: float = 0.0) -> None:
        noise = self.generator.normal(mean, 0.3, shape)
        self.arrays[name] = noise.astype(np.float32)

    def norm(self, name: str, width: int, stack: Sequence[int] = ()) -> None:
        self.vector(f"{name}/scale", (*stack, width), mean=1.0)
        self.vector(f"{name}/bias", (*stack, width))

    def linear(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], stack: Sequence[int] = ()
    ) -> None:
        scale = np.prod(inputs) ** -0.5
        kernel = self.generator.normal(0, scale, (*stack, *inputs, *outputs))
        self.arrays[f"{name}/kernel"] = kernel.astype(np.float32)
        self.vector(f"{name}/bias", (*stack, *outputs))

    def attention(self, name: str, width: int, heads: int, stack: Sequence[int] = ()) -> None:
        split = (heads, width // heads)
        for part in ("query", "key", "value"):
            self.linear(f"{name}/{part}", (width,), split, stack)
        self.linear(f"{name}/out", split, (width,), stack)

    def mlp(self, name: str, width: int, hidden: int, stack: Sequence[int] = ()) -> None:
        self.linear(f"{name}/Dense_0", (width,), (hidden,), stack)
        self.linear(f"{name}/Dense_1", (hidden,), (width,), stack)

    def block(
        self,
        name: str,
        sizes: tuple[int, int, int],
        numbers: tuple[int, int, int],
        stack: Sequence[int] = (),
    ) -> None:
        width, heads, hidden = sizes
        attention, norm2, mlp = numbers
        self.norm(f"{name}/LayerNorm_0", width, stack)
        self.attention(f"{name}/MultiHeadDotProductAttention_{attention}", width, heads, stack)
        self.norm(f"{name}/LayerNorm_{norm2}", width, stack)
        self.mlp(f"{name}/MlpBlock_{mlp}", width, hidden, stack)

    def encoder(
        self,
        name: str,
        depth: int,
        sizes: tuple[int, int, int],
        numbers: tuple[int, int, int] = BIG_VISION,
        scanned: bool = False,
    ) -> None:
        if scanned:
            self.block(f"{name}/encoderblock", sizes, numbers, (depth,))
        else:
            for i in range(depth):
                self.block(f"{name}/encoderblock_{i}", sizes, numbers)
        self.norm(f"{name}/encoder_norm", sizes[0])

    def map_head(self, name: str) -> None:
        self.vector(f"{name}/probe", (1, 1, WIDTH))
        self.attention(f"{name}/MultiHeadDotProductAttention_0", WIDTH, HEADS)
        self.norm(f"{name}/LayerNorm_0", WIDTH)
        self.mlp(f"{name}/MlpBlock_0", WIDTH, MLP)

    def image_tower(
        self, name: str, positions: str, count: int = GRID**2, **encoder: object
    ) -> None:
        self.linear(f"{name}embedding", (PATCH, PATCH, 3), (WIDTH,))
        self.vector(f"{name}{positions}", (1, count, WIDTH))
        self.encoder(f"{name}Transformer", DEPTH, (WIDTH, HEADS, MLP), **encoder)

    def text_tower(self, name: str, scanned: bool) -> None:
        self.vector(f"{name}Embed_0/embedding", (VOCABULARY, TEXT_WIDTH))
        self.vector(f"{name}pos_embedding", (1, LENGTH, TEXT_WIDTH))
        sizes = (TEXT_WIDTH, TEXT_HEADS, TEXT_MLP)
        self.encoder(f"{name}Encoder_0", TEXT_DEPTH, sizes, scanned=scanned)
        self.linear(f"{name}head", (TEXT_WIDTH,), (WIDTH,))


def vit_jax() -> Arrays:
    """Class token with a position."""
    weights = Weights()
    position = "Transformer/posembed_input/pos_embedding"
    weights.image_tower("", position, GRID**2 + 1, numbers=VIT_JAX)
    weights.vector("cls", (1, 1, WIDTH))
    weights.linear("head", (WIDTH,), (CLASSES,))
    return weights.arrays


def big_vision(pool: str, scanned: bool) -> Arrays:
    """One tower with a head."""
    weights = Weights()
    weights.image_tower("", "pos_embedding", scanned=scanned)
    if pool == "tok":
        weights.vector("cls", (1, 1, WIDTH))
    if pool == "map":
        weights.map_head("MAPHead_0")
    weights.linear("head", (WIDTH,), (CLASSES,))
    return weights.arrays


def siglip(scanned: bool) -> Arrays:
    """Two towers."""
    weights = Weights()
    weights.image_tower("img/", "pos_embedding", scanned=scanned)
    weights.map_head("img/MAPHead_0")
    weights.text_tower("txt/", scanned)
    weights.arrays |= {"t": np.array([1.5], np.float32), "b": np.array([-3.0], np.float32)}
    return weights.arrays


def make_tower(pool: str, **changes: object) -> VisionTransformer:
    """timm's model for such files."""
    options = {
        "class_token": pool == "token",
        "no_embed_class": True,
        "global_pool": pool,
        "fc_norm": False,
        "num_classes": CLASSES,
        **changes,
    }
    return VisionTransformer(
        img_size=PATCH * GRID,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=MLP / WIDTH,
        norm_layer=LayerNorm,
        **options,
    ).eval()


def block_outputs(blocks: nn.ModuleList) -> list[torch.Tensor]:
    """A list that fills with each block's output (B, N, D) during a forward pass."""
    outputs: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    return outputs


def pictures() -> torch.Tensor:
    side = PATCH * GRID
    return torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(1))


def run_tower(path: str, model: VisionTransformer) -> dict[str, torch.Tensor]:
    model.load_pretrained(path)
    images = pictures()
    blocks = block_outputs(model.blocks)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    found = {f"block_{i}": block for i, block in enumerate(blocks)}
    return {"images": images, "pooled": pooled, "logits": model.head(pooled), **found}


def run_siglip(path: str) -> dict[str, torch.Tensor]:
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.trunk = make_tower("map", num_classes=0)
    model.text = TextTransformer(
        context_length=LENGTH,
        vocab_size=VOCABULARY,
        width=TEXT_WIDTH,
        heads=TEXT_HEADS,
        layers=TEXT_DEPTH,
        mlp_ratio=TEXT_MLP / TEXT_WIDTH,
        output_dim=WIDTH,
        no_causal_mask=True,
        pool_type="last",
        proj_bias=True,
        norm_layer=LayerNorm,
    ).eval()
    model.logit_scale = nn.Parameter(torch.zeros(()))
    model.logit_bias = nn.Parameter(torch.zeros(()))
    load_big_vision_weights(model, path)
    tokens = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    images = pictures()
    image_blocks = block_outputs(model.visual.trunk.blocks)
    text_blocks = block_outputs(model.text.transformer.resblocks)
    z = nn.functional.normalize(model.visual.trunk(images), dim=-1)
    t = nn.functional.normalize(model.text(tokens), dim=-1)
    found = {f"image_block_{i}": block for i, block in enumerate(image_blocks)}
    found |= {f"text_block_{i}": block for i, block in enumerate(text_blocks)}
    logits = model.logit_scale.exp() * z @ t.T + model.logit_bias
    found |= {"image_normalized": z, "text_normalized": t, "logits": logits}
    return {"images": images, "tokens": tokens, **found}


def main() -> None:
    """Writes everything."""
    with_position = functools.partial(make_tower, "token", no_embed_class=False)
    cases = {
        "vit_jax": (vit_jax(), lambda path: run_tower(path, with_position())),
        "siglip": (siglip(scanned=False), run_siglip),
        "siglip_scanned": (siglip(scanned=True), run_siglip),
    }
    for pool, theirs in {"tok": "token", "gap": "avg", "map": "map"}.items():
        scanned = pool == "gap"
        run = functools.partial(lambda path, pool: run_tower(path, make_tower(pool)), pool=theirs)
        cases[f"big_vision_{pool}"] = (big_vision(pool, scanned), run)
    for name, (weights, run) in cases.items():
        with tempfile.NamedTemporaryFile(suffix=".npz") as file, torch.no_grad():
            np.savez(file.name, **weights)
            reference = run(file.name)
        reference["images"] = reference["images"].permute(0, 2, 3, 1)
        computed = {f"reference.{key}": value.numpy() for key, value in reference.items()}
        np.savez(DIRECTORY / f"npz_{name}.npz", **weights, **computed)


if __name__ == "__main__":
    main()
