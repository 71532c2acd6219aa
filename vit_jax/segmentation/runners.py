"""The compiled functions of models, one runner per model and kind of call."""

from typing import Any

from vit_jax.detection.runners import kept, unsuitable
from vit_jax.errors import UserError
from vit_jax.models.clip.model import CLIPConfig
from vit_jax.models.clipseg.model import CLIPSegConfig
from vit_jax.pretrained.model import PretrainedModel
from vit_jax.segmentation.sam_runner import SamRunner
from vit_jax.segmentation.text_to_mask import PatchRunner, PromptRunner, WordRunner


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


def word_runner_of(model: Any) -> WordRunner:
    """Returns the runner of a model that finds masks by words alone.

    Args:
        model: model from `vit_jax.create_model`.

    Raises:
        UserError: another kind of model, a dual encoder whose patches have no embeddings, or a
            model that needs boxes by words.
    """
    if isinstance(model, PretrainedModel) and model.takes_prompts:
        raise UserError(
            f"{model.kind} models take points, boxes and masks: expected a detector for the words, "
            "as detector=vit_jax.create_model('owlv2_base_patch16')"
        )
    architecture = model.spec.architecture if isinstance(model, PretrainedModel) else None
    if isinstance(architecture, CLIPSegConfig):
        return kept(model, PromptRunner)
    if type(architecture) is CLIPConfig:
        return kept(model, PatchRunner)
    raise unsuitable(model, "a model that finds masks by words", "clipseg_rd64_refined")
