"""Runs with the attention kernel of TPUs, interpreted: the losses of the reference."""

import numpy as np
import pytest

from tests import helpers
from vit_jax.experiment import train

STEPS = 20


def losses(workdir, attention, **changes):
    config = helpers.tiny_clip()
    config.total_steps = STEPS
    config.evals.zeroshot = {}
    config.compute.attention = attention
    config.update_from_flattened_dict(changes)
    train(config, workdir)
    return list(helpers.metrics_of(workdir).values())


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("reference"), "reference")


@pytest.mark.release
@pytest.mark.parametrize(
    "changes",
    [
        {"mesh.fsdp": 4, "mesh.tensor": 2, "compute.remat": "full"},
        *(
            pytest.param(changes, marks=pytest.mark.release)
            for changes in [
                {},
                {"compute.scan": False},
                {"compute.remat": "dots"},
                {"compute.remat": "mlp", "grad_accum_steps": 2},
                {"mesh.fsdp": 8},
            ]
        ),
    ],
)
def test_losses_are_those_of_the_reference(expected, tmp_path, changes):
    found = losses(tmp_path, "pallas", **changes)
    assert len(found) == STEPS
    np.testing.assert_allclose(found, expected, rtol=1e-5)
