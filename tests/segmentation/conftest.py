"""A small SAM with the weights of the fixtures, and what transformers makes of it."""

import dataclasses

import numpy as np
import pytest

from tests.weights.reference import DATA, split_reference
from tests.weights.transformers_models import SAM
from vit_jax.models.definition import ModelDef
from vit_jax.models.registry import model_spec
from vit_jax.pretrained.model import PretrainedModel
from vit_jax.pretrained.weight_files import load_weights


@pytest.fixture(scope="session")
def sam(tmp_path_factory):
    path, _ = split_reference("transformers_sam.safetensors", tmp_path_factory.mktemp("sam"))
    definition = ModelDef(SAM)
    spec = dataclasses.replace(model_spec("sam_vit_b"), architecture=SAM)
    return PretrainedModel(spec, definition, load_weights(path, definition))


@pytest.fixture(scope="session")
def reference():
    """Contents of `segmentations.npz`, by make_segmentations.py."""
    return dict(np.load(DATA / "segmentations.npz"))
