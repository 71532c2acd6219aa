"""ViT as its authors published it (github.com/google-research/vision_transformer), `.npz`."""

from vit_jax.errors import UserError
from vit_jax.models.vit.model import ViTConfig
from vit_jax.weights.containers.files import TensorFile
from vit_jax.weights.format import Format
from vit_jax.weights.layers.flax import (
    ATTENTION,
    BlockNames,
    blocks,
    linear,
    norm,
    without_optimizer,
)
from vit_jax.weights.mapping import Entry, ResizePositions
from vit_jax.weights.transforms import LEADING_ONE


class ViTJaxNpz(Format):
    """ViTs that read the class token or the mean of the patches."""

    name = "vit_jax_npz"
    families = ("vit",)
    container = "npz"

    def matches(self, file: TensorFile) -> bool:
        key = f"Transformer/encoderblock_0/{ATTENTION}_1/out/kernel"
        return key in without_optimizer(file)

    def view(self, file: TensorFile, family: str, architecture: ViTConfig) -> TensorFile:
        del family, architecture
        file = without_optimizer(file)
        if "pre_logits/kernel" in file:
            raise UserError(
                f"{file}: expected the head right after the encoder; found a layer between "
                f"(pre_logits {file.shape('pre_logits/kernel')}), as in models that were "
                "pre-trained on ImageNet-21k in 2020; the AugReg and the fine-tuned ones have none"
            )
        return file

    def entries(self, family: str, architecture: ViTConfig) -> list[Entry]:
        del family
        config, key = architecture, "Transformer"
        if config.class_token and not config.prefix_positions:
            raise UserError(
                f"the format {self.name} has a position for the class token: expected "
                "prefix_positions=True; found False"
            )
        position = f"{key}/posembed_input/pos_embedding"
        resize = ResizePositions(config.grid, config.num_special)
        entries = [
            *linear("patch_embed", "embedding"),
            Entry("positions", position, LEADING_ONE, resize=resize),
            *blocks(
                "transformer/blocks",
                f"{key}/encoderblock",
                BlockNames(attention=1, norm2=2, mlp=3),
                config.depth,
                scanned=False,
            ),
            *norm("norm", f"{key}/encoder_norm"),
        ]
        if config.class_token:
            entries.append(Entry("class_token", "cls", LEADING_ONE))
        return entries + (linear("head", "head") if config.num_classes else [])
