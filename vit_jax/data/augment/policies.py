"""Policies over named operations: RandAugment and AutoAugment."""

import dataclasses

import numpy as np
from PIL import Image

from vit_jax.data.augment.operations import OPERATIONS
from vit_jax.data.images import Pixels
from vit_jax.errors import UserError

_ALWAYS = ("auto_contrast", "equalize", "invert", "rotate", "solarize_add")
_MOVES = ("shear_x", "shear_y", "translate_x", "translate_y")
_GRADED = ("posterize", "solarize", "color", "contrast", "brightness", "sharpness")


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Random operations of one magnitude (Cubuk et al. 2019), as in timm.

    timm's `rand-m9-mstd0.5-inc1` is `randaugment(2, 9, mstd=0.5, inc=True)`. big_vision's
    `randaug(2, 10)`, which never skips an operation, is `randaugment(2, 10, probability=1)`.

    Attributes:
        num_layers: number of operations per image, drawn with replacement.
        magnitude: magnitude of all operations.
        mstd: standard deviation of the magnitude, which is normal about `magnitude`.
        inc: whether all operations get stronger with the magnitude; otherwise posterize, solarize
            and the enhancements are as first published.
        probability: probability of applying each drawn operation.
        max_magnitude: upper limit of magnitudes; above 10 for recipes that go beyond it.
    """

    num_layers: int = 2
    magnitude: float = 9
    mstd: float = 0.0
    inc: bool = False
    probability: float = 0.5
    max_magnitude: float = 10

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= self.max_magnitude:
            raise UserError(
                f"randaugment: magnitude={self.magnitude}, expected 0 to "
                f"max_magnitude={self.max_magnitude}"
            )

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations that are drawn from."""
        suffix = "_increasing" if self.inc else ""
        return (*_ALWAYS, *_MOVES, *(name + suffix for name in _GRADED))

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Applies `num_layers` operations to an image (H, W, 3)."""
        pil, names = Image.fromarray(image), self.operations
        for number in rng.integers(len(names), size=self.num_layers):
            if rng.random() >= self.probability:
                continue
            magnitude = rng.normal(self.magnitude, self.mstd) if self.mstd else self.magnitude
            magnitude = min(max(magnitude, 0.0), self.max_magnitude)
            pil = OPERATIONS[names[number]](pil, magnitude, rng)
        return np.asarray(pil)


# Operation, probability, magnitude: Cubuk et al. 2018, table 9.
_IMAGENET = (
    (("posterize_original", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize_original", 0.6, 7), ("posterize_original", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize_original", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize_original", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)


@dataclasses.dataclass(frozen=True)
class AutoAugment:
    """The ImageNet policy of Cubuk et al. 2018, two operations per image; timm's `original`."""

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Applies one pair of operations to an image (H, W, 3)."""
        pil = Image.fromarray(image)
        for name, probability, magnitude in _IMAGENET[int(rng.integers(len(_IMAGENET)))]:
            if rng.random() < probability:
                pil = OPERATIONS[name](pil, magnitude, rng)
        return np.asarray(pil)
