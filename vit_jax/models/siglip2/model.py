"""A dual encoder with a captioning decoder and projection heads (SigLIP 2, section 2).

Sigmoid loss and captions train it from the start, self-distillation and masked prediction at the
end (Tschannen et al. 2025, https://arxiv.org/abs/2502.14786).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vit_jax.models.clip_captioner.model import CLIPCaptioner, CLIPCaptionerConfig
from vit_jax.models.layers.parameters import LayersAbove
from vit_jax.models.vit.projection_heads import HeadsConfig, ProjectionHeads, check_no_dropout


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIP2Config(HeadsConfig, CLIPCaptionerConfig):
    """Architecture of a dual encoder with a decoder and projection heads.

    The parameters besides heads, mask token and centres are those of `CLIPCaptioner`, under the
    same paths, so that its weights and those of a CLIP initialise this model.
    """

    def make(self, **execution: Any) -> "SigLIP2":
        """Builds the module with fresh parameters; the arguments are those of `CLIP`."""
        return SigLIP2(self, **execution)

    def __post_init__(self) -> None:
        """Checks that the towers suit decoder and heads."""
        super().__post_init__()
        check_no_dropout(self.image)


class SigLIP2(ProjectionHeads, CLIPCaptioner):
    """Embeds images and texts, predicts captions, and projects pooled features and patches.

    No weight decay applies to the heads: they would fade during the part of the run in which no
    loss reads them.
    """

    config: SigLIP2Config

    def __init__(
        self,
        config: SigLIP2Config,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        **execution: Any,
    ) -> None:
        """Builds the model.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            **execution: scan and remat, see `CLIP`.
        """
        super().__init__(config, rngs=rngs, dtype=dtype, **execution)
        self._make_heads(dtype, rngs, decay=False)

    def layers_above(self) -> LayersAbove:
        """Counts the layers above each part, within its own tower."""
        return {**super().layers_above(), "mask_token": self.config.image.depth + 1}
