"""The compiled functions of models, one runner per model and kind of call."""

import weakref
from typing import Any

from vit_jax.detection.caption_runner import CaptionRunner
from vit_jax.detection.runner import EmbeddingRunner
from vit_jax.errors import UserError
from vit_jax.pretrained.model import PretrainedModel

_runners: weakref.WeakKeyDictionary[PretrainedModel, dict[type, Any]] = weakref.WeakKeyDictionary()


def runner_of(model: Any) -> EmbeddingRunner | CaptionRunner:
    """Returns the runner of a detector.

    Args:
        model: detector, from `vit_jax.create_model`.

    Raises:
        UserError: another kind of model.
    """
    if isinstance(model, PretrainedModel) and model.is_detector:
        return kept(model, EmbeddingRunner)
    if isinstance(model, PretrainedModel) and model.reads_captions:
        return kept(model, CaptionRunner)
    raise unsuitable(model, "a detector", "owlv2_base_patch16")


def box_runner_of(model: Any) -> EmbeddingRunner:
    """Returns the runner of a model that classifies given boxes.

    Args:
        model: model from `vit_jax.create_model`.

    Raises:
        UserError: another kind of model.
    """
    if isinstance(model, PretrainedModel) and model.classifies_regions:
        return kept(model, EmbeddingRunner)
    raise unsuitable(model, "a model that classifies boxes", "regionclip_rn50")


def kept(model: PretrainedModel, kind: type) -> Any:
    """Returns the runner of a kind that was made for a model, or makes it.

    Args:
        model: model.
        kind: class of runners, whose argument is the model.
    """
    runners = _runners.setdefault(model, {})
    if kind not in runners:
        runners[kind] = kind(model)
    return runners[kind]


def unsuitable(model: Any, kind: str, name: str) -> UserError:
    """Builds the error for a model of another kind.

    Args:
        model: model that was given, of any type.
        kind: kind of model that was expected.
        name: name of a model of this kind.
    """
    found = model.kind if isinstance(model, PretrainedModel) else type(model).__name__
    return UserError(f"expected {kind}, as vit_jax.create_model({name!r}); found {found}")
