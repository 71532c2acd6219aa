"""Several crops of each image for self-distillation (Caron et al. 2020, SwAV, "multi-crop")."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.augment import Augmentation, parse_augmentation
from vit_jax.data.augment.block_masks import block_mask
from vit_jax.data.images import Pixels, read_image
from vit_jax.errors import UserError, check_name
from vit_jax.inputs import ImageInputs

GLOBAL, LOCAL, MASK = "global_crops", "local_crops", "patch_mask"
FIELDS = (GLOBAL, LOCAL, MASK)
NUM_GLOBAL = 2  # crops of an image that the teacher sees


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropsConfig:
    """Keys of `config.data.crops`.

    Attributes:
        second: augmentation of the second global crop; "": that of the first, which is
            `config.data.augment`.
        local: augmentation of local crops.
        local_size: height and width of local crops, px, which the patch size divides.
        num_local: local crops per image; 0 for none.
        mask_ratio: range of the fraction of patches that are masked, in one of the two global
            crops.
    """

    second: str = ""
    local: str = "random_resized_crop(scale=(0.05, 0.32))|flip"
    local_size: int = 96
    num_local: int = 8
    mask_ratio: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        low, high = self.mask_ratio
        if not 0 < low <= high <= 1:
            raise UserError(
                f"config.data.crops.mask_ratio={(low, high)}: expected a range within (0, 1]"
            )
        if self.num_local < 0 or self.local_size < 1:
            raise UserError(
                f"config.data.crops.num_local={self.num_local}, local_size={self.local_size}: "
                "expected at least 0 crops of at least 1 px"
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

    def shapes(self, inputs: ImageInputs) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Returns shape and dtype of each field of one example, see `crops_transform`.

        Args:
            inputs: the model's preprocessing.
        """
        local = self.config.num_local * self.local_inputs(inputs).packed_size
        return {
            GLOBAL: ((NUM_GLOBAL * inputs.packed_size,), np.uint8),
            LOCAL: ((local,), np.uint8),
            MASK: ((NUM_GLOBAL, self.num_patches), np.bool_),
        }


@dataclasses.dataclass(frozen=True)
class CropsTransform:
    """Reads the crops of a batch from one example. See `crops_transform`.

    Attributes:
        fields: fields of a batch.
        globals: augmentations of the two global crops.
        local: augmentation of local crops.
        crops: shapes.
    """

    fields: tuple[str, ...]
    globals: tuple[Augmentation, Augmentation]
    local: Augmentation
    crops: Crops

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Transforms an example.

        Args:
            example: fields of the source's example.
            rng: source of randomness.

        Raises:
            UserError: the image cannot be decoded.
        """
        # Decoded once for all crops.
        image = read_image(example["image"], max_pixels=self.local.max_pixels)
        found = {GLOBAL: _packed([augment(image, rng) for augment in self.globals])}
        if LOCAL in self.fields:
            found[LOCAL] = _packed(
                [self.local(image, rng) for _ in range(self.crops.config.num_local)]
            )
        if MASK in self.fields:
            found[MASK] = self._mask(rng)
        return found

    def _mask(self, rng: np.random.Generator) -> np.ndarray:
        """Masked patches (2, patches) of both global crops, of which one has none."""
        count = self.crops.num_patches
        mask = np.zeros((NUM_GLOBAL, count), np.bool_)
        masked = max(1, int(count * rng.uniform(*self.crops.config.mask_ratio)))
        blocks = block_mask(*self.crops.grid, masked, rng)
        mask[rng.integers(NUM_GLOBAL)] = blocks.reshape(-1)
        return mask


def crops_transform(
    fields: Sequence[str], augment: str, inputs: ImageInputs, crops: Crops, max_pixels: int
) -> CropsTransform:
    """Builds the transform from an example to crops.

    The fields are
        "global_crops": two crops of the model's input size, uint8 (2 * height * width * 3,);
        "local_crops": N = num_local smaller crops, uint8 (N * local_size^2 * 3,);
        "patch_mask": patches to mask in the global crops, bool (2, patches). One of the two crops,
            drawn at random, has a mask of blocks, so that half of all global crops have one.

    Args:
        fields: fields of a batch.
        augment: augmentation of the first global crop.
        inputs: the model's preprocessing.
        crops: keys and shapes of the crops.
        max_pixels: see `images.read_image`.

    Raises:
        UserError: an augmentation that does not fit, or another field.
    """
    for field in fields:
        check_name(field, FIELDS, "field of a batch of crops,")
    config = crops.config
    first = parse_augmentation(augment, inputs, max_pixels)
    second = parse_augmentation(config.second, inputs, max_pixels) if config.second else first
    local = parse_augmentation(config.local, crops.local_inputs(inputs), max_pixels)
    return CropsTransform(tuple(fields), (first, second), local, crops)


def _packed(crops: list[Pixels]) -> np.ndarray:
    return np.concatenate([crop.reshape(-1) for crop in crops])
