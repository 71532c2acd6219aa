"""Polygons and run lengths against pycocotools."""

import numpy as np
import pytest

from vit_jax.data.masks import decode_mask

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def test_masks_are_those_of_pycocotools():
    from pycocotools import mask

    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in rng.integers(5, 90, 2))
        polygons = []
        for _ in range(int(rng.integers(1, 4))):
            points = rng.uniform(-5, max(height, width) + 5, (int(rng.integers(3, 12)), 2))
            polygons.append(points.reshape(-1).tolist())
        expected = mask.decode(mask.merge(mask.frPyObjects(polygons, height, width)))
        np.testing.assert_array_equal(decode_mask(polygons, height, width), expected)
        encoded = mask.encode(np.asfortranarray(expected))
        stored = {"size": [height, width], "counts": encoded["counts"].decode()}
        np.testing.assert_array_equal(decode_mask(stored, height, width), expected)
        runs = np.diff(np.flatnonzero(np.diff(expected.T.reshape(-1), prepend=0, append=2)))
        first = int(np.argmax(expected.T.reshape(-1))) if expected.any() else height * width
        plain = {"size": [height, width], "counts": [first, *runs.tolist()]}
        if expected.any():
            np.testing.assert_array_equal(decode_mask(plain, height, width), expected)
