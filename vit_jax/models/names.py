"""Names of registered models: other libraries' names and spellings.

    ViT-B-32-quickgelu                          open_clip
    vit_base_patch16_224                        timm
    openai/clip-vit-base-patch32                transformers
    timm/vit_base_patch16_224.augreg_in1k       Hugging Face hub

An exact name or alias comes first. Otherwise case, separators, the organisation and a trailing
"-hf" are ignored.
"""

import re
from collections.abc import Mapping

from vit_jax.errors import UserError, unknown

# Owners on the Hugging Face hub that publish weights of registered models.
ORGANISATIONS = (
    "apple", "cidas", "facebook", "facebookresearch", "google", "idea-research", "laion",
    "liuhaotian", "llava-hf", "microsoft", "openai", "qwen", "timm", "torchvision",
)  # fmt: skip
_PREFIX = re.compile(rf"^(hf[-_]hub:)?({'|'.join(ORGANISATIONS)})/", re.IGNORECASE)
_SUFFIX = re.compile(r"[-_.]hf$", re.IGNORECASE)
_SEPARATORS = re.compile(r"[-_./@\s]")


def with_tags(names: Mapping[str, str], *tags: str) -> dict[str, str]:
    """Adds timm's names with a tag of the weights, such as `vit_base_patch16_224.augreg_in1k`.

    Args:
        names: timm's name -> registered name.
        *tags: tags whose weights have this architecture and this preprocessing.
    """
    tagged = {f"{name}.{tag}": ours for name, ours in names.items() for tag in tags}
    return {**names, **tagged}


def canonical(name: str) -> str:
    """Reduces a name to lower-case letters and digits, without organisation and "-hf".

    Args:
        name: any spelling of a name.
    """
    name = _SUFFIX.sub("", _PREFIX.sub("", name.strip()))
    return _SEPARATORS.sub("", name).lower()


def resolve(name: str, registered: Mapping[str, object], aliases: Mapping[str, str]) -> str:
    """Finds the registered name of any spelling.

    Args:
        name: registered name or alias, in any spelling.
        registered: table by registered name.
        aliases: alias -> registered name.

    Raises:
        UserError: a name that stands for several models, with the candidates; or an unknown name,
            with the nearest one.
    """
    if name in registered:
        return name
    if name in aliases:
        return aliases[name]
    wanted = canonical(name)
    spellings = [*((own, own) for own in registered), *aliases.items()]
    found = {target: spelling for spelling, target in spellings if canonical(spelling) == wanted}
    if len(found) > 1:
        candidates = ", ".join(f"{target} ({found[target]})" for target in sorted(found))
        raise UserError(f"model {name!r} is ambiguous: expected one of {candidates}")
    if found:
        return next(iter(found))
    raise unknown(_PREFIX.sub("", name), [*registered, *aliases], "model")
