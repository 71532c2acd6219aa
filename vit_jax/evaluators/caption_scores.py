"""Comparison of generated captions with references: BLEU and CIDEr."""

import importlib.util
import re
from collections.abc import Callable, Sequence

from vit_jax.errors import MissingPackageError

References = Sequence[Sequence[str]]


def bleu(captions: Sequence[str], references: References) -> float:
    """BLEU-4 of all captions (Papineni et al. 2002), lower-cased, by sacrebleu: in [0, 100].

    Args:
        captions: generated captions.
        references: captions of each image, one or more.
    """
    import sacrebleu

    most = max(map(len, references))
    # One list per position; images with fewer captions have None there.
    streams = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu(list(captions), streams, lowercase=True).score)


def cider(captions: Sequence[str], references: References) -> float:
    """CIDEr (Vedantam et al. 2015) by the code of COCO, pycocoevalcap: 0 or more.

    Its weights of words depend on all references. Words are runs of letters, digits and apostrophes
    of the lower-cased text, instead of those of a tokenizer in Java, which leaves out punctuation
    as well. Publications often multiply the value by 100.

    Args:
        captions: generated captions.
        references: captions of each image, one or more.
    """
    from pycocoevalcap.cider.cider import Cider

    wanted = {i: [_words(text) for text in own] for i, own in enumerate(references)}
    found = {i: [_words(text)] for i, text in enumerate(captions)}
    return float(Cider().compute_score(wanted, found)[0])


SCORES: dict[str, Callable[[Sequence[str], References], float]] = {"bleu": bleu, "cider": cider}
_PACKAGES = {"bleu": "sacrebleu", "cider": "pycocoevalcap"}


def check_installed(score: str) -> None:
    """Checks that the package of a score is installed.

    Args:
        score: key of `SCORES`.

    Raises:
        MissingPackageError: it is not.
    """
    if importlib.util.find_spec(_PACKAGES[score]) is None:
        raise MissingPackageError(
            f"the score {score!r} needs the package {_PACKAGES[score]}: "
            "pip install 'vit_jax[captioning]'"
        )


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower()))
