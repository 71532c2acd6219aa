"""Image-text contrastive learning: CLIP's softmax and SigLIP's sigmoid."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vit_jax.objectives.contrastive_loss import contrastive_loss


class Contrastive:
    """Aligns each picture with its caption against all others of the global batch.

    Reads `image` (B, ...), whatever `prepare` makes pictures of, and `tokens` (B, context_length).
    """

    def __init__(
        self,
        kind: str,
        *,
        prepare: Callable[[jax.Array], jax.Array],
        accum_steps: int = 1,
        mesh: Mesh | None = None,
        batch_axes: tuple[str, ...] = (),
        **loss_options: Any,
    ):
        """Chooses the loss.

        Args:
            kind: "softmax" or "sigmoid".
            prepare: pictures as they come to the model's input, part by part.
            accum_steps: parts of the batch that go through the towers one after the other. The
                loss still compares all pairs of the whole batch.
            mesh: devices, or None for one.
            batch_axes: mesh axes that split the batch.
            **loss_options: form and tile size, see `contrastive_loss`.
        """
        self.kind, self.prepare = kind, prepare
        self.accum_steps = accum_steps
        self.loss_options = {"mesh": mesh, "batch_axes": batch_axes, **loss_options}
        self.shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in batch_axes)

    def __call__(
        self, model: Any, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss (scalar, float32) and metrics (scalars) of a global batch."""
        images, texts = self._embed(model, batch, rng)
        scale, bias = model.logit_parameters()
        loss, metrics = contrastive_loss(
            images, texts, logit_scale=scale, logit_bias=bias, kind=self.kind, **self.loss_options
        )
        metrics = {**metrics, "logit_scale": scale}
        if bias is not None:
            metrics["logit_bias"] = bias
        return loss, metrics

    def _embed(
        self, model: Any, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Embeddings (B, D) of the whole batch, in as many parts as `accum_steps` says.

        A part's activations are recomputed in the backward pass instead of kept, one part at a
        time, so memory is that of a part while the gradient is that of the whole batch: the two
        passes of GradCache (Gao et al. 2021, section 3), written by automatic differentiation.
        """

        def embed(
            model: Any, images: jax.Array, tokens: jax.Array, rng: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            image_rng, text_rng = jax.random.split(rng)
            return (
                model.encode_image(self.prepare(images), normalize=True, rng=image_rng),
                model.encode_text(tokens, normalize=True, rng=text_rng),
            )

        steps = self.accum_steps
        if steps == 1:
            return embed(model, batch["image"], batch["tokens"], rng)

        # Part k takes the k-th piece of every device's rows, so that each device cuts its own and
        # sends none. It is cut within the loop: cut beforehand, the whole batch would be copied.
        def cut(x: jax.Array, k: jax.Array) -> jax.Array:
            pieces = x.reshape(self.shards, steps, -1, *x.shape[1:])
            piece = jax.lax.dynamic_index_in_dim(pieces, k, axis=1, keepdims=False)
            return piece.reshape(-1, *x.shape[1:])

        def join(x: jax.Array) -> jax.Array:
            pieces = x.reshape(steps, self.shards, -1, x.shape[-1])
            return jnp.moveaxis(pieces, 0, 1).reshape(-1, x.shape[-1])

        graphdef, state = nnx.split(model)
        arrays = nnx.to_pure_dict(state)

        def embed_part(part: tuple[jax.Array, jax.Array]) -> Any:
            k, rng = part
            module = nnx.merge(graphdef, nnx.State(arrays))
            embeddings = embed(module, cut(batch["image"], k), cut(batch["tokens"], k), rng)
            return *embeddings, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

        parts = (jnp.arange(steps), jax.random.split(rng, steps))
        images, texts, updated = jax.lax.map(jax.checkpoint(embed_part, prevent_cse=False), parts)
        # Each part has moved the running statistics from the same start.
        nnx.update(model, jax.tree.map(lambda x: jnp.mean(x, axis=0), updated))
        return join(images), join(texts)
