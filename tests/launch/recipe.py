"""Recipe of a tiny classifier of digits, for runs in separate processes."""

from ml_collections import ConfigDict

from tests.helpers import tiny_classifier


def get_config(arg: str = "") -> ConfigDict:
    """`helpers.tiny_classifier` for 200 steps."""
    config = tiny_classifier()
    config.total_steps = 200
    return config
