"""The compiled functions of models, one runner per model and kind of call."""

import weakref
from typing import Any

from vit_jax.detection.caption_runner import CaptionRunner
from vit_jax.detection.runner import EmbeddingRunner
from vit_jax.errors import UserError
from vit_jax.pretrained.model import PretrainedModel

_runners: weakref.WeakKeyDictionary[PretrainedModel, Any] = weakref.WeakKeyDictionary()


def runner_of(model: Any) -> EmbeddingRunner | CaptionRunner:
    """Returns the runner of a detector.

    Args:
        model: detector, from `vit_jax.create_model`.

    Raises:
        UserError: another kind of model.
    """
    if isinstance(model, PretrainedModel) and model.is_detector:
        return _kept(model, EmbeddingRunner)
    if isinstance(model, PretrainedModel) and model.reads_captions:
        return _kept(model, CaptionRunner)
    raise _unsuitable(model, "a detector", "owlv2_base_patch16")


def box_runner_of(model: Any) -> EmbeddingRunner:
    """Returns the runner of a model that classifies given boxes.

    Args:
        model: model from `vit_jax.create_model`.

    Raises:
        UserError: another kind of model.
    """
    if isinstance(model, PretrainedModel) and model.classifies_regions:
        return _kept(model, EmbeddingRunner)
    raise _unsuitable(model, "a model that classifies boxes", "regionclip_rn50")


def _kept(model: PretrainedModel, kind: type) -> Any:
    if model not in _runners:
        _runners[model] = kind(model)
    return _runners[model]


def _unsuitable(model: Any, kind: str, name: str) -> UserError:
    found = model.kind if isinstance(model, PretrainedModel) else type(model).__name__
    return UserError(f"expected {kind}, as vit_jax.create_model({name!r}); found {found}")
