"""Augmentations of the project."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Noise:
    """Adds Gaussian noise.

    Attributes:
        deviation: standard deviation, in levels of 255.
    """

    deviation: float = 16.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An image uint8 (H, W, C) with noise."""
        noisy = image + rng.normal(0.0, self.deviation, image.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)
