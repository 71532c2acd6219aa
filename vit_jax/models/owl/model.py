"""OWL-ViT and OWLv2: a dual encoder whose patches predict boxes.

Minderer et al. 2022, "Simple Open-Vocabulary Object Detection with Vision Transformers"; Minderer
et al. 2023, "Scaling Open-Vocabulary Object Detection".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIP, CLIPConfig
from vit_jax.models.layers.heads import MlpHead, logit
from vit_jax.models.layers.norm import layer_norm
from vit_jax.models.owl.heads import ClassHead, box_bias
from vit_jax.models.owl.one_shot import query_by_objectness, query_by_overlap
from vit_jax.models.partitioning import constrain
from vit_jax.models.sizes import grid_of
from vit_jax.models.vit.model import ViTConfig

Detections = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwlConfig(CLIPConfig):
    """Architecture of a detector: that of its dual encoder, and of its heads.

    The fields of the dual encoder are those of `CLIPConfig`: `image` (a ViT), `text`, `embed_dim`,
    and its parameters have the same paths, so that `config.init.weights` of any dual encoder
    initialises a detector; `config.init.fresh = ("merged_norm/.*", ".*_head/.*")` then names the
    rest. The image tower may lack a class token: patches are multiplied by its pooled features,
    whichever `image.pool` makes them. `image.image_size` is the size of the scenes; positions of
    another size are resized. `image.patch_dropout` is 0, because each patch predicts a box.

    Attributes:
        objectness: whether a head scores boxes regardless of their class (OWLv2). It also selects
            how an image becomes a query, see `one_shot`.
        head_activation: activation of the heads of boxes and of objectness, a key of
            `layers.mlp.ACTIVATIONS`.
        prior: probability of a class and of an object with fresh heads. 0.5 stands for zero biases;
            with 0.01 the first steps are not spent on patches without an object (Lin et al. 2017,
            "Focal Loss for Dense Object Detection", section 3.3).
        init_class_scale: factor of the cosines of class embeddings with fresh heads.
    """

    objectness: bool = False
    head_activation: str = "gelu"
    prior: float = 0.5
    init_class_scale: float = 1.0

    def make(self, **execution: Any) -> "Owl":
        """Builds the module with fresh parameters; the arguments are those of `CLIP`."""
        return Owl(self, **execution)

    def __post_init__(self) -> None:
        """Checks the image tower."""
        if not isinstance(self.image, ViTConfig):
            raise UserError(
                f"the image tower of a detector is a ViT; found {type(self.image).__name__}"
            )
        if not 0 < self.prior < 1 or self.init_class_scale <= 0:
            raise UserError(
                f"prior={self.prior}, init_class_scale={self.init_class_scale}: expected a "
                "probability between 0 and 1, and a positive number"
            )
        if self.image.patch_dropout:
            raise UserError(
                "each patch of a detector predicts a box: expected image.patch_dropout=0; found "
                f"{self.image.patch_dropout}"
            )


class Owl(CLIP):
    """Images and class prompts to boxes and logits. The methods of `CLIP` work as well."""

    config: OwlConfig

    def __init__(
        self, config: OwlConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, **execution: Any
    ) -> None:
        """Builds the model.

        Args:
            config: architecture.
            rngs: source of the parameters' keys.
            dtype: compute type.
            **execution: `scan` and `remat`, see `CLIP`.
        """
        super().__init__(config, rngs=rngs, dtype=dtype, **execution)
        width = config.image.width
        head: dict[str, Any] = {
            "activation": config.head_activation,
            "dtype": dtype,
            "rngs": rngs,
        }
        self.merged_norm = layer_norm(
            width, epsilon=config.image.norm_epsilon, dtype=dtype, rngs=rngs
        )
        self.class_head = ClassHead(
            width,
            config.embed_dim,
            prior=config.prior,
            init_scale=config.init_class_scale,
            dtype=dtype,
            rngs=rngs,
        )
        self.box_head = MlpHead(width, 4, **head)
        if config.objectness:
            self.objectness_head = MlpHead(width, 1, init_output=logit(config.prior), **head)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        tokens: Int[Array, "batch classes length"],
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Detections:
        """Detects objects by class prompts.

        Args:
            images: (B, H, W, 3), normalised; any H and W that the patch size divides.
            tokens: class prompts of each image (B, C, T). A row that starts with 0 is padding.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            See `detect`.
        """
        image_rng, text_rng = (None, None) if rng is None else jax.random.split(rng)
        batch, classes, length = tokens.shape
        queries = self.embed_queries(tokens.reshape(batch * classes, length), rng=text_rng)
        queries = queries.reshape(batch, classes, -1)
        return self.detect(images, queries, tokens[..., 0] > 0, rng=image_rng)

    def embed_queries(
        self, tokens: Int[Array, "classes length"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "classes embed"]:
        """Computes embeddings of class prompts, which can be kept for many images.

        Args:
            tokens: class prompts (C, T).
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (C, embed_dim), float32, of length 1.
        """
        return self.encode_text(tokens, normalize=True, rng=rng)

    def detect(
        self,
        images: Float[Array, "batch height width 3"],
        queries: Float[Array, "batch_or_1 classes embed"],
        query_mask: Bool[Array, "batch_or_1 classes"] | None = None,
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Detections:
        """Detects objects by embeddings of classes.

        Args:
            images: (B, H, W, 3), normalised.
            queries: embeddings of classes (B or 1, C, embed_dim), as from `embed_queries`.
            query_mask: whether a query exists (B or 1, C); None if all exist.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            float32 arrays by name: `boxes` (B, Q, 4), center x, center y, width, height in [0, 1]
            of the input; `logits` (B, Q, C), the lowest finite number where there is no query; and
            with `config.objectness` also `objectness` (B, Q), logits. Q is the number of patches.
        """
        features = self.patch_features(images, rng=rng)
        found = {
            "boxes": self.predict_boxes(features, images.shape[1:3]),
            "logits": self.class_head(features, queries, query_mask),
        }
        if self.config.objectness:
            found["objectness"] = self.predict_objectness(features)
        return found

    def embed_image_query(
        self, images: Float[Array, "batch height width 3"]
    ) -> tuple[Float[Array, "batch embed"], Int[Array, " batch"]]:
        """Makes queries of images that show one object each, for one-shot detection.

        Args:
            images: (B, H, W, 3), normalised.

        Returns:
            Queries (B, embed_dim), float32, and the index of the patch that each is taken from.
        """
        features = self.patch_features(images)
        embeddings = self.class_head.embed(features)
        if self.config.objectness:
            chosen = query_by_objectness(self.predict_objectness(features))
        else:
            boxes = self.predict_boxes(features, images.shape[1:3])
            chosen = query_by_overlap(boxes, embeddings)
        return jnp.take_along_axis(embeddings, chosen[:, None, None], axis=1)[:, 0], chosen

    def patch_features(
        self, images: Float[Array, "batch height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "batch boxes dim"]:
        """Computes the features that the heads read: patches times pooled features, normalised.

        Args:
            images: (B, H, W, 3), normalised.
            rng: PRNG key for training, or None for evaluation.

        Returns:
            (B, Q, D), compute type.
        """
        pooled, patches = self.image.encode_patches_and_pool(images, rng=rng)
        merged = self.merged_norm(patches * pooled[:, None])
        return constrain(merged, "batch", "length", "embed")

    def predict_boxes(
        self, features: Float[Array, "batch boxes dim"], size: tuple[int, ...]
    ) -> Float[Array, "batch boxes 4"]:
        """Computes boxes from features of patches.

        Args:
            features: (B, Q, D), see `patch_features`.
            size: height and width of the images, px.

        Returns:
            (B, Q, 4), float32: center x, center y, width, height in [0, 1].
        """
        grid = grid_of((size[0], size[1]), self.config.image.patch_size)
        return jax.nn.sigmoid(self.box_head(features) + box_bias(grid))

    def predict_objectness(
        self, features: Float[Array, "batch boxes dim"]
    ) -> Float[Array, "batch boxes"]:
        """Computes logits of objectness. Their gradient does not reach the features.

        Args:
            features: (B, Q, D), see `patch_features`.

        Returns:
            (B, Q), float32.
        """
        return self.objectness_head(jax.lax.stop_gradient(features))[..., 0]
