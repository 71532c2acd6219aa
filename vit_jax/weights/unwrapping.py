"""Finding the tensors of a model in a training checkpoint or below prefixes of names.

Frameworks put a model's state dict under keys of a checkpoint ("state_dict", "model_ema") and
prefix its names (`module.`, `_orig_mod.`, `backbone.`). The prefix below which a known format is
recognised is removed. If there are several, as of a teacher and a student, the user chooses.
"""

import functools
import itertools
import logging
import re
from collections.abc import Iterable, Sequence

from vit_jax.errors import UserError
from vit_jax.weights.containers.reading import SEPARATOR, TOP
from vit_jax.weights.containers.tensors import TensorFile
from vit_jax.weights.format import Format

logger = logging.getLogger(__name__)

# Components that wrappers insert anywhere in a name: compilation, sharding, rematerialisation.
INSERTED = re.compile(
    r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
# First components of names that wrap a model: data parallelism, compilation, training frameworks,
# averages, self-distillation, training states of JAX codebases.
WRAPPERS = (
    *("module", "model", "net", "network"),
    *("backbone", "encoder", "base_model", "state_dict", "params"),
    *("opt/target", "optimizer/target", "target"),
    *("ema", "ema_model", "model_ema", "averaged_model", "ema_params"),
    *("teacher", "student", "online", "momentum", "online_encoder", "target_encoder"),
    *("encoder_q", "encoder_k", "base_encoder", "momentum_encoder"),
)


def unwrap(file: TensorFile, formats: Sequence[Format]) -> TensorFile:
    """Returns the tensors of a model under the names of their format.

    Args:
        file: opened weight file.
        formats: formats that are tried.

    Returns:
        The file itself if no format matches it, with or without a prefix.

    Raises:
        UserError: formats match several parts of the file.
    """
    if any(INSERTED.search(key) for key in file):
        file = file.renamed(lambda key: INSERTED.sub("", key))
    found: dict[str, TensorFile] = {}
    for prefix in _prefixes(file):
        if not any(shorter and prefix.startswith(shorter) for shorter in found):
            inner = file.under(prefix)
            if _matches(inner.without_beside(), formats):
                found[prefix] = inner
    if "" in found:  # a format may have names with and without a prefix
        rest = {p: file.renamed(functools.partial(_outside, p)) for p in found if p}
        found = {p: f for p, f in found.items() if not p or _matches(rest[p], formats)}
    if not found:
        return file
    if len(found) == 1 or file.part == TOP:
        prefix, chosen = next(iter(found.items()))
        if prefix and chosen.beside:
            logger.info("%s: %d tensors outside of it are left out", chosen, len(chosen.beside))
        if prefix:
            return chosen
        rivals = tuple(key for key in found if key)
        return file.marked(key for key in file if rivals and key.startswith(rivals))
    sizes = {_short(prefix, found): len(f.without_beside().keys()) for prefix, f in found.items()}
    if TOP in sizes:
        sizes[TOP] -= sum(size for key, size in sizes.items() if key != TOP)
    base = f"{file.path}{SEPARATOR}{f'{file.part}.' if file.part else ''}"
    raise UserError(
        f"{file}: expected the weights of one model; found several: "
        f"{', '.join(f'{key} ({size} tensors)' for key, size in sizes.items())}; choose one, as "
        f"{base}{list(sizes)[-1]}"
    )


def _outside(prefix: str, key: str) -> str | None:
    return None if key.startswith(prefix) else key


def _matches(file: TensorFile, formats: Sequence[Format]) -> bool:
    return any(known.matches(file) for known in formats)


def _short(prefix: str, others: Iterable[str]) -> str:
    """The shortest key that selects a prefix and none of the others."""
    for short in itertools.accumulate(re.split(r"(?<=[./])", prefix)[:-1]):
        if not any(other.startswith(short) for other in others if other != prefix):
            return short[:-1]
    return prefix[:-1] or TOP


def _prefixes(file: TensorFile) -> Iterable[str]:
    """Prefixes of names that may wrap a model, shorter ones first."""
    names = sorted({*WRAPPERS, *file.parts}, key=len, reverse=True)
    component = re.compile(rf"(?:{'|'.join(map(re.escape, names))})[./]")
    prefixes = {""}
    for key in file:
        if key in file.beside:
            continue
        end = 0
        while match := component.match(key, end):
            end = match.end()
            prefixes.add(key[:end])
    # A prefix that all names have.
    own = [re.split(r"(?<=[./])", key)[:-1] for key in file if key not in file.beside]
    common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*own, strict=False))
    prefixes |= set(itertools.accumulate(parts[0] for parts in common))
    return sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
