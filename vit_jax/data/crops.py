"""Several crops of each image for self-distillation (Caron et al. 2020, SwAV, "multi-crop")."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.augment import Augmentation, parse_augmentation
from vit_jax.data.augment.block_masks import block_mask
from vit_jax.data.examples import ExampleTransform
from vit_jax.data.images import Pixels, read_image
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

GLOBAL, LOCAL, MASK, GRAM = "global_crops", "local_crops", "patch_mask", "gram_crops"
FIELDS = (GLOBAL, LOCAL, MASK, GRAM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropsConfig:
    """Keys of `config.data.crops`.

    Attributes:
        num_global: crops of an image that the teacher sees: 2, or 1 (SILC).
        first: augmentation of the first global crop; "": `config.data.augment`, which also applies
            to the image beside the crops, where an objective reads it.
        second: augmentation of the second global crop; "": that of the first.
        local: augmentation of local crops.
        local_size: height and width of local crops, px, which the patch size divides.
        num_local: local crops per image; 0 for none.
        mask_ratio: range of the fraction of patches that are masked, in one of the global crops.
        gram_size: height and width of the global crops for a Gram teacher, px, which the patch size
            divides; 0: it sees the global crops themselves.
        gram: augmentation of these crops; "": that of the global crop. It draws the same random
            numbers, so that the first transforms of the global crop, without those of colours,
            show the same part of the image.
    """

    num_global: int = 2
    first: str = ""
    second: str = ""
    local: str = "random_resized_crop(scale=(0.05, 0.32))|flip"
    local_size: int = 96
    num_local: int = 8
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    gram_size: int = 0
    gram: str = ""

    def __post_init__(self) -> None:
        low, high = self.mask_ratio
        if not 0 < low <= high <= 1:
            raise UserError(
                f"config.data.crops.mask_ratio={(low, high)}: expected a range within (0, 1]"
            )
        if self.num_global not in (1, 2):
            raise UserError(f"config.data.crops.num_global={self.num_global}: expected 1 or 2")
        if self.num_local < 0 or self.local_size < 1:
            raise UserError(
                f"config.data.crops.num_local={self.num_local}, local_size={self.local_size}: "
                "expected at least 0 crops of at least 1 px"
            )
        if self.gram_size < 0 or (self.gram and not self.gram_size):
            raise UserError(
                f"config.data.crops.gram_size={self.gram_size}: expected a size in px, or 0 and no "
                "augmentation in config.data.crops.gram"
            )


@dataclasses.dataclass(frozen=True)
class Crops:
    """Shapes of the crops of a run.

    Attributes:
        config: keys of the crops.
        grid: rows and columns of patches of a global crop.
    """

    config: CropsConfig
    grid: tuple[int, int]

    @property
    def num_patches(self) -> int:
        """Patches of a global crop."""
        return math.prod(self.grid)

    @property
    def max_masked(self) -> int:
        """Largest number of masked patches per image."""
        return max(1, int(self.num_patches * self.config.mask_ratio[1]))

    def local_inputs(self, inputs: ImageInputs) -> ImageInputs:
        """Returns the preprocessing of local crops.

        Args:
            inputs: the model's preprocessing.
        """
        return dataclasses.replace(inputs, size=(self.config.local_size,) * 2)

    def gram_inputs(self, inputs: ImageInputs) -> ImageInputs:
        """Returns the preprocessing of the global crops for a Gram teacher.

        Args:
            inputs: the model's preprocessing.
        """
        size = self.config.gram_size
        return dataclasses.replace(inputs, size=(size, size)) if size else inputs

    def shapes(self, inputs: ImageInputs) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Returns shape and dtype of each field of one example, see `crops_transform`.

        Args:
            inputs: the model's preprocessing.
        """
        count = self.config.num_global
        local = self.config.num_local * self.local_inputs(inputs).packed_size
        return {
            GLOBAL: ((count * inputs.packed_size,), np.uint8),
            LOCAL: ((local,), np.uint8),
            MASK: ((count, self.num_patches), np.bool_),
            GRAM: ((count * self.gram_inputs(inputs).packed_size,), np.uint8),
        }


@dataclasses.dataclass(frozen=True)
class CropsTransform:
    """Reads the crops of a batch from one example. See `crops_transform`.

    Attributes:
        fields: fields of a batch.
        globals: augmentation of each global crop.
        gram: augmentation of each of them for a Gram teacher.
        local: augmentation of local crops.
        crops: shapes.
        whole: transform of the other fields: the image beside its crops, caption and label.
    """

    fields: tuple[str, ...]
    globals: tuple[Augmentation, ...]
    gram: tuple[Augmentation, ...]
    local: Augmentation
    crops: Crops
    whole: ExampleTransform

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Transforms an example.

        Args:
            example: fields of the source's example.
            rng: source of randomness.

        Raises:
            UserError: the image cannot be decoded, or a field is missing.
        """
        # Decoded once for all crops.
        image = read_image(example["image"], max_pixels=self.local.max_pixels)
        found = self.whole({**example, "image": image}, rng)
        large, gram = [], []
        for augment, augment_gram in zip(self.globals, self.gram, strict=True):
            if GRAM in self.fields:
                gram.append(augment_gram(image, copy.deepcopy(rng)))
            large.append(augment(image, rng))
        found[GLOBAL] = _packed(large)
        if LOCAL in self.fields:
            found[LOCAL] = _packed(
                [self.local(image, rng) for _ in range(self.crops.config.num_local)]
            )
        if MASK in self.fields:
            found[MASK] = self._mask(rng)
        if GRAM in self.fields:
            found[GRAM] = _packed(gram)
        return found

    def _mask(self, rng: np.random.Generator) -> np.ndarray:
        """Masked patches (global crops, patches); of two crops, one has none."""
        count, num_global = self.crops.num_patches, self.crops.config.num_global
        mask = np.zeros((num_global, count), np.bool_)
        masked = max(1, int(count * rng.uniform(*self.crops.config.mask_ratio)))
        blocks = block_mask(*self.crops.grid, masked, rng)
        mask[rng.integers(num_global)] = blocks.reshape(-1)
        return mask


def crops_transform(
    fields: Sequence[str],
    augment: str,
    inputs: ImageInputs,
    crops: Crops,
    max_pixels: int,
    whole: ExampleTransform,
) -> CropsTransform:
    """Builds the transform from an example to crops.

    The fields are, besides those of `examples.example_transform`, with G = num_global,
        "global_crops": crops of the model's input size, uint8 (G * height * width * 3,);
        "local_crops": N = num_local smaller crops, uint8 (N * local_size^2 * 3,);
        "patch_mask": patches to mask in the global crops, bool (G, patches). One of the crops,
            drawn at random, has a mask of blocks: with two, half of all global crops have one;
        "gram_crops": the global crops as a Gram teacher sees them, uint8 (G * gram_size^2 * 3,).

    Args:
        fields: fields of a batch.
        augment: augmentation of the first global crop, where `first` is not set.
        inputs: the model's preprocessing.
        crops: keys and shapes of the crops.
        max_pixels: see `images.read_image`.
        whole: transform of the other fields.

    Raises:
        UserError: an augmentation that does not fit.
    """
    config = crops.config
    first = config.first or augment
    texts = (first, config.second or first)[: config.num_global]

    def parse(text: str, inputs: ImageInputs) -> Augmentation:
        return parse_augmentation(text, inputs, max_pixels)

    gram_inputs = crops.gram_inputs(inputs)
    return CropsTransform(
        tuple(fields),
        tuple(parse(text, inputs) for text in texts),
        tuple(parse(config.gram or text, gram_inputs) for text in texts),
        parse(config.local, crops.local_inputs(inputs)),
        crops,
        whole,
    )


def _packed(crops: list[Pixels]) -> np.ndarray:
    return np.concatenate([crop.reshape(-1) for crop in crops])
