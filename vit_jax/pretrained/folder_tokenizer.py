"""Tokenizer of a model folder of Hugging Face.

The files of the folder state the vocabulary and the tokens that open, close and fill a row. What
they do not state is asked for with the option `tokenizer`.
"""

import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.data.tokenizers.clip import VOCAB_SIZE, has_clip_ids
from vit_jax.weights.containers.reading import read_json

logger = logging.getLogger(__name__)

HUGGINGFACE, SENTENCEPIECE, GEMMA = "huggingface", "sentencepiece", "gemma"
# Kinds whose vocabulary is a file. Without its path, such a spec states that a file is needed.
FILE_KINDS = (HUGGINGFACE, SENTENCEPIECE, GEMMA)
_SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.model")
# Classes that clean a text before they tokenize it, by the name of the cleaning.
_CLEANING_CLASSES = {"SiglipTokenizer": "canonicalize"}
_GEMMA_CLASSES = ("GemmaTokenizer", "Siglip2Tokenizer")
# Classes of the model types, for folders that do not name one.
_CLASSES = {
    "clip": "CLIPTokenizer",
    "clipseg": "CLIPTokenizer",
    "clip_text_model": "CLIPTokenizer",
    "owlvit": "CLIPTokenizer",
    "owlv2": "CLIPTokenizer",
    "grounding-dino": "BertTokenizer",
    "siglip": "SiglipTokenizer",
    "siglip2": "GemmaTokenizer",
}

# Ids of the tokens that fill a row. They matter where all tokens are read, by diffusion models.
_CLIP_PADS = {"<|endoftext|>": 49407, "!": 0}
_TEXT_ENCODER = "clip_text_model"

Json = Mapping[str, Any]


def folder_tokenizer(
    folder: pathlib.Path, model_type: str, vocab_size: int, clean: str | None = None
) -> str | None:
    """Returns the spec of the tokenizer in a folder.

    Args:
        folder: folder of a model.
        model_type: `model_type` of its `config.json`.
        vocab_size: number of rows of the text tower's embedding table.
        clean: name of the cleaning of texts, see `CLEANINGS`; None for that of the tokenizer's
            class.

    Returns:
        A spec for `open_tokenizer`. It is only the name of a kind if the folder does not state its
        tokenizer completely; opening it raises an error that asks for the rest. None for a text
        encoder without tokenizer.

    Raises:
        UserError: a file that cannot be read.
    """
    if model_type == _TEXT_ENCODER:
        return _of_text_encoder(folder, vocab_size)
    settings = _settings(folder)
    kind = str(settings.get("tokenizer_class", _CLASSES.get(model_type, ""))).removesuffix("Fast")
    pieces = next((folder / n for n in _SENTENCEPIECE_FILES if (folder / n).is_file()), None)
    described = folder / "tokenizer.json"
    if pieces and (kind == "SiglipTokenizer" or not described.is_file()):
        return _sentencepiece(pieces, kind, settings)
    if described.is_file():
        return _described(described, kind, settings, clean)
    words = folder / "vocab.json"
    if kind == "CLIPTokenizer" and (
        has_clip_ids(read_json(words)) if words.is_file() else vocab_size == VOCAB_SIZE
    ):
        return "clip"
    if kind in _GEMMA_CLASSES:
        return GEMMA
    return SENTENCEPIECE if kind == "SiglipTokenizer" else HUGGINGFACE


def _of_text_encoder(folder: pathlib.Path, vocab_size: int) -> str | None:
    """Spec of CLIP's tokenizer with the padding that a folder states.

    Diffusion models have `tokenizer` and `tokenizer_2` beside `text_encoder` and `text_encoder_2`.
    """
    beside = folder.with_name(folder.name.replace("text_encoder", "tokenizer"))
    settings = _settings(place := beside if beside.is_dir() else folder)
    if not settings:
        return None
    spec = folder_tokenizer(place, "clip", vocab_size)
    if spec != "clip":
        return spec
    if (pad := _token(settings.get("pad_token"))) not in _CLIP_PADS:
        return _incomplete(place, HUGGINGFACE, f"expected pad_token {' or '.join(_CLIP_PADS)}")
    return _spec("clip", "", {"pad": str(_CLIP_PADS[pad])}) if _CLIP_PADS[pad] else spec


def _settings(folder: pathlib.Path) -> Json:
    """Settings of the tokenizer; the newer file takes precedence."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= read_json(folder / name)
    return found


def _sentencepiece(path: pathlib.Path, kind: str, settings: Json) -> str:
    if kind in _GEMMA_CLASSES:  # of SigLIP 2, the only dual encoder with it
        return _spec(GEMMA, path, {"clean": "lower"})
    if kind != "SiglipTokenizer":
        return _incomplete(path, SENTENCEPIECE, f"the cleaning of {kind or 'its texts'} is unknown")
    pad, end = (_token(settings.get(f"{name}_token")) for name in ("pad", "eos"))
    options = {} if pad is None or pad == (end or "</s>") else {"pad": pad}
    return _spec(SENTENCEPIECE, path, options)


def _described(path: pathlib.Path, kind: str, settings: Json, clean: str | None) -> str:
    """Spec of a `tokenizer.json`."""
    content = read_json(path)
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if kind in ("CLIPTokenizer", "") and isinstance(vocabulary, dict) and has_clip_ids(vocabulary):
        return "clip"
    padding = content.get("padding") or {}
    if "left" in (settings.get("padding_side"), str(padding.get("direction")).lower()):
        return _incomplete(path, HUGGINGFACE, "it fills rows on the left, which is not available")
    marks = _marks(content.get("post_processor"))
    if marks is None:
        marks = (_added(settings, "bos"), _added(settings, "eos"))
    tokens = {"start": marks[0], "end": marks[1]}
    tokens["pad"] = padding.get("pad_token") or _token(settings.get("pad_token"))
    absent = [name for name in ("end", "pad") if tokens[name] is None]
    if absent:
        return _incomplete(path, HUGGINGFACE, f"it does not state the token of {absent[0]}")
    clean = clean or _CLEANING_CLASSES.get(kind)
    lowered = any(n.get("type") == "Lowercase" for n in _nested(content.get("normalizer")))
    if clean is None and not lowered and (settings.get("do_lower_case") or "Siglip2" in kind):
        clean = "lower"
    options = {name: token for name, token in tokens.items() if token is not None}
    return _spec(HUGGINGFACE, path, options | ({"clean": clean} if clean else {}))


def _marks(processor: Any) -> tuple[str | None, str | None] | None:
    """Tokens that open and close a text by the post-processor; None if it adds none."""
    for part in _nested(processor):
        if part.get("type") in ("RobertaProcessing", "BertProcessing"):
            return part["cls"][0], part["sep"][0]
        if part.get("type") == "TemplateProcessing":
            single = [next(iter(piece.items())) for piece in part["single"]]
            place = [name for name, _ in single].index("Sequence")
            names = [piece["id"] if name == "SpecialToken" else None for name, piece in single]
            before, after = names[:place], names[place + 1 :]
            if len(before) <= 1 and len(after) <= 1 and (before or after):
                return (*before, None)[0], (*after, None)[0]
    return None


def _nested(step: Any) -> Iterator[Json]:
    """A step of a tokenizer and the steps that it consists of."""
    if isinstance(step, dict):
        yield step
        for key in ("processors", "normalizers"):
            for part in step.get(key) or ():
                yield from _nested(part)


def _added(settings: Json, name: str) -> str | None:
    """Token that the settings add to each text."""
    return _token(settings.get(f"{name}_token")) if settings.get(f"add_{name}_token") else None


def _token(value: Any) -> str | None:
    """Text of a token, which files store as text or as an object."""
    return value.get("content") if isinstance(value, dict) else value


def _spec(kind: str, path: pathlib.Path | str, options: Mapping[str, str]) -> str:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{kind}:{path}" + (f"?{query}" if query else "")


def _incomplete(path: pathlib.Path, kind: str, reason: str) -> str:
    logger.warning(
        "%s: %s; name the tokenizer, as tokenizer=%s:%s?end=TOKEN&pad=TOKEN",
        path,
        reason,
        kind,
        path,
    )
    return kind
