"""The tokenizer of a model in a run."""

from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vit_jax.data.sources.base import Source
from vit_jax.data.tokenizers.factory import TRAINED, learn_tokenizer, open_tokenizer
from vit_jax.data.tokenizers.tokenizer import FILE_NAME, Tokenizer, check_layout
from vit_jax.errors import UserError


def tokenizer_of_model(
    spec: str | None,
    architecture: Any,
    *,
    workdir: epath.Path | None,
    open_source: Callable[[], Source],
    data: ConfigDict,
    class_texts: Callable[[], Sequence[str]] = tuple,
) -> Tokenizer | None:
    """Opens the tokenizer of a run.

    Args:
        spec: spec of the model's tokenizer.
        architecture: dataclass of the model's architecture.
        workdir: folder of the run, whose tokenizer is that of earlier starts.
        open_source: opens the training source, from which a tokenizer may be learned.
        data: `config.data`.
        class_texts: gives the text of each class of the training source, for models with learned
            vectors per class.

    Returns:
        The tokenizer, or None for models without text.

    Raises:
        UserError: the tokenizer is not set, or it does not fit the model.
    """
    text = getattr(architecture, "text", None)
    if text is None:
        return None
    sizes = {"vocab_size": text.vocab_size, "context_length": text.context_length}
    if spec is None:
        raise UserError("config.model.tokenizer is not set: the model reads text")
    if workdir is not None and (workdir / FILE_NAME).is_file():
        tokenizer = open_tokenizer(f"saved:{workdir}", **sizes)
    elif spec == TRAINED:
        fraction = data.max_broken_fraction
        tokenizer = learn_tokenizer(
            open_source(), data.templates, max_broken_fraction=fraction, **sizes
        )
    else:
        tokenizer = open_tokenizer(spec, **sizes)
    title, count = f"config.model.tokenizer={spec!r}", getattr(text, "prompt_classes", 0)
    named = title
    if count and not tokenizer.classes:
        tokenizer = tokenizer.with_classes(class_texts())
        named = f"config.data.train={data.train!r}"
    if (found := len(tokenizer.classes)) != count:
        raise UserError(
            f"config.model.text.prompt_classes={count}: expected {found}, the number of classes of "
            f"{named}"
        )
    check_layout(tokenizer, architecture, title)
    return tokenizer
