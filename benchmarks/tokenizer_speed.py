"""Speed of the CLIP tokenizer compared with open_clip's SimpleTokenizer, on one core.

    pip install -e ".[parity]"
    python benchmarks/tokenizer_speed.py [--captions 20000] [--rounds 7]

Both tokenize the same captions alternately, in one process and in batches. The table shows the
median CPU time of the rounds, which depends little on other processes. Every round draws new
captions, so that caches of words are as effective as in training. The ids of both are compared.

Captions are English words of CLIP's vocabulary, drawn by Zipf's law in the order of the byte-pair
merges, with capitals and punctuation. In `web`, some captions (--odd) have an accent, a curly
quote, an emoji or an HTML entity. `other scripts` is Chinese, Russian and French.
"""

# ruff: noqa: RUF001 (captions contain characters that look like others)

import gzip
import importlib.resources
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from vit_jax import cli
from vit_jax.data.tokenizers import open_tokenizer
from vit_jax.errors import UserError

_CAPTIONS = flags.DEFINE_integer("captions", 20_000, "Captions per round.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds; the first warms up.", lower_bound=2)
_BATCH = flags.DEFINE_integer("batch", 256, "Captions per call.", lower_bound=1)
_ODD = flags.DEFINE_float("odd", 0.1, "Fraction of web captions that are not plain ASCII.")

ODDITIES = ["café", "“quoted”", "it’s", "🌅", "–", "AT&amp;T", "señor", "é", "®", "❤️"]
FOREIGN = [
    "一只猫坐在桌子上看书",
    "东京塔",
    "画",
    "白い犬",
    "красивая кошка",
    "forêt",
    "été",
    "déjà",
]


def main() -> None:
    """Times both on each kind of captions and prints the table."""
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise UserError("open_clip is missing: pip install -e '.[parity]'") from error
    ours, theirs = open_tokenizer("clip", vocab_size=49408, context_length=77), SimpleTokenizer()
    rng = random.Random(0)
    draw = _english(rng)
    kinds: dict[str, Callable[[], str]] = {
        "plain ASCII": draw,
        "web": lambda: f"{draw()} {rng.choice(ODDITIES)}" if rng.random() < _ODD.value else draw(),
        "other scripts": lambda: " ".join(rng.choices(FOREIGN, k=rng.randint(2, 8))),
    }
    print("| captions | vit_jax, us per caption | open_clip, us per caption | ratio |")
    print("|---|--:|--:|--:|")
    for name, draw_caption in kinds.items():
        fast, slow = _race(ours, lambda batch: theirs(batch).numpy(), draw_caption)
        print(f"| {name} | {fast:.1f} | {slow:.1f} | {slow / fast:.1f} |", flush=True)


def _english(rng: random.Random) -> Callable[[], str]:
    merges = importlib.resources.files("vit_jax.data.tokenizers") / "clip_merges.txt.gz"
    lines = gzip.decompress(merges.read_bytes()).decode("utf-8").splitlines()
    joined = [line.replace(" ", "") for line in lines if line.endswith("</w>")]
    words = [word for word in (w.removesuffix("</w>") for w in joined) if word.isascii()]
    weights = np.cumsum(1.0 / np.arange(1, len(words) + 1)).tolist()

    def draw() -> str:
        text = " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(4, 20)))
        return rng.choice([text, text.capitalize(), text.title(), f"{text}.", f"{text}, 2019"])

    return draw


def _race(
    ours: Callable[[list[str]], np.ndarray],
    theirs: Callable[[list[str]], np.ndarray],
    draw_caption: Callable[[], str],
) -> tuple[float, float]:
    """CPU microseconds per caption of both, medians without the first round."""
    times: list[tuple[float, float]] = []
    for _ in range(_ROUNDS.value):
        texts = [draw_caption() for _ in range(_CAPTIONS.value)]
        fast, ids = _time(ours, texts)
        slow, expected = _time(theirs, texts)
        if not np.array_equal(ids, expected):
            raise AssertionError("ids differ from those of open_clip")
        times.append((fast, slow))
    fast_times, slow_times = zip(*times[1:], strict=True)
    return statistics.median(fast_times), statistics.median(slow_times)


def _time(encode: Callable[[list[str]], np.ndarray], texts: list[str]) -> tuple[float, np.ndarray]:
    batches = [texts[i : i + _BATCH.value] for i in range(0, len(texts), _BATCH.value)]
    start = time.process_time()
    ids = [encode(batch) for batch in batches]
    seconds = time.process_time() - start
    return seconds / len(texts) * 1e6, np.concatenate(ids)


if __name__ == "__main__":
    cli.run(main)
