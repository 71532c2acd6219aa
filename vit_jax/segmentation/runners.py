"""The compiled functions of models, one runner per model and kind of call."""

from typing import Any

from vit_jax.detection.runners import kept, unsuitable
from vit_jax.errors import UserError
from vit_jax.pretrained.model import PretrainedModel
from vit_jax.segmentation.sam_runner import SamRunner


def prompt_runner_of(model: Any) -> SamRunner:
    """Returns the runner of a model that takes points, boxes and masks.

    Args:
        model: model from `vit_jax.create_model`.

    Raises:
        UserError: another kind of model.
    """
    if isinstance(model, PretrainedModel) and model.takes_prompts:
        return kept(model, SamRunner)
    raise unsuitable(model, "a model that takes points, boxes and masks", "sam_vit_b")


def word_runner_of(model: Any) -> Any:
    """Returns the runner of a model that finds masks by words alone.

    Args:
        model: model from `vit_jax.create_model`.

    Raises:
        UserError: another kind of model, or one that needs boxes by words.
    """
    if isinstance(model, PretrainedModel) and model.takes_prompts:
        raise UserError(
            f"{model.kind} models take points, boxes and masks: expected a detector for the words, "
            "as detector=vit_jax.create_model('owlv2_base_patch16')"
        )
    raise unsuitable(model, "a model of masks", "sam_vit_b")
