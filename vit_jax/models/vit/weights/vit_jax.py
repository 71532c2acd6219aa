"""ViT as its authors published it (github.com/google-research/vision_transformer), `.npz`."""

from vit_jax.errors import UserError
from vit_jax.models.layers.weights import ResizePositions
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.entry import Entry
from vit_jax.weights.format import Format
from vit_jax.weights.layers.flax import (
    ATTENTION,
    BlockNames,
    blocks,
    linear,
    norm,
)
from vit_jax.weights.transforms import LEADING_ONE

NAMES = BlockNames(attention=1, norm2=2, mlp=3)


class ViTJaxNpz(Format):
    """ViT that pools the class token or the mean of the patches."""

    name = "vit_jax_npz"
    architectures = (ViTConfig,)
    heads = ("head/*",)
    container = "npz"
    position_resize = "bilinear_corners"

    def matches(self, file: TensorFile) -> bool:
        """Returns whether a file has the blocks of this codebase."""
        key = f"Transformer/encoderblock_0/{ATTENTION}_1/out/kernel"
        return key in file

    def view(self, file: TensorFile, architecture: ViTConfig) -> TensorFile:
        """Returns the file; see `Format.view`.

        Raises:
            UserError: the file has a layer before the head.
        """
        del architecture
        if "pre_logits/kernel" in file:
            raise UserError(
                f"{file}: expected the head directly after the encoder; found a layer between them "
                f"(pre_logits {file.shape('pre_logits/kernel')}), as in the models pre-trained on "
                "ImageNet-21k in 2020; AugReg's and the fine-tuned models have no such layer"
            )
        return file

    def entries(self, architecture: ViTConfig) -> list[Entry]:
        """Returns the mapping; see `Format.entries`."""
        config = architecture
        if config.class_token and not config.prefix_positions:
            raise UserError(
                f"the format {self.name} has a position for the class token: expected "
                "prefix_positions=True; found False"
            )
        position = "Transformer/posembed_input/pos_embedding"
        resize = ResizePositions(config.table_grid, config.num_special, config.position_resize)
        encoder = "Transformer/encoderblock"
        entries = [
            *linear("patch_embed", "embedding"),
            Entry("positions", position, LEADING_ONE, resize=resize),
            *blocks("transformer/blocks", encoder, NAMES, config.depth, scanned=False),
            *norm("norm", "Transformer/encoder_norm"),
        ]
        if config.class_token:
            entries.append(Entry("class_token", "cls", LEADING_ONE))
        return entries + (linear("head", "head") if config.num_classes else [])
