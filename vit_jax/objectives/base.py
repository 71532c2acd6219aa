"""Interface of a training objective."""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from vit_jax.data.crops import Crops
from vit_jax.data.detection import DetectionConfig
from vit_jax.data.examples import OtherTokens
from vit_jax.data.tokenizers import Tokenizer
from vit_jax.errors import UserError
from vit_jax.models.definition import ModelDef, Params
from vit_jax.models.spec import ModelSpec
from vit_jax.objectives.microbatches import Microbatches

# Global arrays of a batch by field: image, label, tokens, boxes, labels.
Batch = dict[str, jax.Array]
# Entry of a training batch besides its fields: the fraction of the steps that are done, float32 ().
# Weights and temperatures that change during training depend on it.
PROGRESS = "progress"
# Scalars by name.
Metrics = dict[str, jax.Array]


@runtime_checkable
class FrozenModel(Protocol):
    """A model that an objective reads besides the one that is trained."""

    @property
    def spec(self) -> ModelSpec:
        """Architecture and image preprocessing."""
        ...

    @property
    def model(self) -> ModelDef:
        """Definition to bind the parameters to."""
        ...

    @property
    def abstract(self) -> Params:
        """`ShapeDtypeStruct`s of the parameters, with shardings."""
        ...

    def load(self) -> Params:
        """Reads the parameters, sharded over the mesh."""
        ...


def _no_tokenizer(texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
    raise UserError(f"{len(texts)} texts: this objective was built without a tokenizer")


def _no_models(weights: str, name: str) -> FrozenModel:
    raise UserError(f"{weights or name}: this objective was built without access to other models")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """The model and the devices that an objective is built for.

    Attributes:
        spec: architecture and image preprocessing of the trained model.
        model: definition of the trained model.
        mesh: mesh that batches are sharded over; None for a single device.
        batch_axes: axes of `mesh` that split the batch.
        microbatches: how a training batch is cut for gradient accumulation.
        open_model: opens another model, as a teacher, from a path of weights and the name of a
            registered model; either may be empty.
        tokenize: converts texts to token ids of the trained model.
        detection: sizes of a training batch of images with boxes or masks.
        crops: shapes of a training batch of several crops per image.
        captions_per_image: number of captions per image of a training batch.
        class_names: names of the classes of the training source; None to plan a run.
        tokenizer: gives the tokenizer of the trained model; None to plan a run.
        has_ema: whether the run keeps a moving average of the parameters.
    """

    spec: ModelSpec
    model: ModelDef
    mesh: Mesh | None = None
    batch_axes: tuple[str, ...] = ()
    microbatches: Microbatches = dataclasses.field(default_factory=Microbatches)
    open_model: Callable[[str, str], FrozenModel] = _no_models
    tokenize: Callable[[Sequence[str]], Int[np.ndarray, "texts length"]] = _no_tokenizer
    detection: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    crops: Crops | None = None
    captions_per_image: int = 1
    class_names: Callable[[], Sequence[str] | None] = lambda: None
    tokenizer: Callable[[], Tokenizer | None] = lambda: None
    has_ema: bool = False

    @property
    def num_classes(self) -> int | None:
        """Outputs of the model's classification head; None or 0 for a model without one."""
        return getattr(self.spec.architecture, "num_classes", None)

    @property
    def architecture_name(self) -> str:
        """Class of the architecture, for messages."""
        return type(self.spec.architecture).__name__

    @functools.cached_property
    def module(self) -> Any:
        """The model's module with abstract parameters, to look up its methods."""
        return self.model.bind(self.model.shapes())


class Objective:
    """Base class of objectives.

    A subclass has a nested dataclass `Config` with its keys and implements `__call__`. Its
    constructor refuses a model that lacks what the objective calls. Register it in
    `objectives.OBJECTIVES`, or name it in a config as `package.module:Name`.

    Attributes:
        fields: fields of a batch that the objective reads, as image and label.
        abstract_constants: `ShapeDtypeStruct`s, with shardings, of the parameters of other models.
            The training step takes their values after the batch.
        is_mean_over_examples: whether the loss is a mean of losses of single examples. Such
            objectives accept the optional field `weight` (B,), 0 for padding, 1 otherwise.
        reads_state: parts of `TrainState` before the step that come before all other constants:
            "ema", the moving average of the parameters, and "anchor", an earlier one. Such
            objectives have no loss of held-out data.
        other_tokens: fields of a batch that are tokens for other models, as teachers.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Keys of the objective."""

    fields: ClassVar[tuple[str, ...]]
    is_mean_over_examples: ClassVar[bool] = True
    reads_state: tuple[str, ...] = ()
    other_tokens: Mapping[str, OtherTokens] = types.MappingProxyType({})
    abstract_constants: tuple[Params, ...] = ()

    def __init__(self, config: Any, context: Context):
        """Checks that the model fits.

        Args:
            config: instance of `Config`.
            context: model and devices.

        Raises:
            UserError: a key has an invalid value, or the model does not fit.
        """
        self.config, self.context = config, context

    def __call__(
        self, model: Any, batch: Batch, rng: Key[Array, ""] | None, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a global batch.

        Args:
            model: module of the trained model.
            batch: global arrays; images are packed as in `ImageInputs.pack`. In training there is
                `PROGRESS` as well.
            rng: key for augmentation and dropout; None for evaluation mode, see `evaluate`.
            *constants: parameters of other models, as `load_constants` returns them.

        Returns:
            Loss, float32, and metrics by name.
        """
        raise NotImplementedError

    def evaluate(
        self, model: Any, batch: Batch, *constants: Params
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of a held-out batch, without any randomness of training.

        Mixup, cutmix, label smoothing, patch dropout and drop path are off, batch norms use their
        running statistics, and masks are drawn from a fixed key. The batch is not cut into
        microbatches. The arguments are those of `__call__`.
        """
        return self(model, batch, None, *constants)

    def load_constants(self) -> tuple[Params, ...]:
        """Reads the parameters of other models."""
        return ()

    def renews_anchor(self, step: Int[Array, ""], total_steps: int) -> Bool[Array, ""]:
        """Whether the anchor becomes the moving average before a step; see `reads_state`.

        Args:
            step: number of steps done.
            total_steps: length of training.
        """
        raise NotImplementedError

    def images(self, batch: Batch) -> Any:
        """The model's input from the packed images of a batch, see `ImageInputs.normalize`."""
        return self.context.spec.inputs.normalize(batch["image"])


def mean_over_examples(
    values: Shaped[Array, " batch"], weight: Float[Array, " batch"] | None
) -> Float[Array, ""]:
    """Mean of one value per example.

    Args:
        values: value of each example.
        weight: weight of each example, 0 for padding; None for equal weights.
    """
    if weight is None:
        return jnp.mean(values)
    return jnp.sum(values * weight) / jnp.sum(weight)


def check_range(key: str, value: float, least: float = 0, highest: float = float("inf")) -> None:
    """Refuses a number of `config.objective` outside a range.

    Args:
        key: name of the key.
        value: its value.
        least: smallest number.
        highest: largest number.

    Raises:
        UserError: the number is not in the range.
    """
    if not least <= value <= highest:
        upper = f" and at most {highest:g}" if highest < float("inf") else ""
        raise UserError(
            f"config.objective.{key}={value}: expected a number of at least {least}{upper}"
        )
