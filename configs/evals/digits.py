"""Evaluations of frozen features on handwritten digits, for any weights.

    python -m vit_jax.evaluate --weights FILE --model NAME --evals configs/evals/digits.py

Needs the extra [samples].
"""

from typing import Any

PAIR = {"train": "mnist5k:train", "test": "mnist5k:test"}


def get_evals() -> dict[str, Any]:
    """Type of evaluator -> name -> keys; vit_jax/evaluators documents the keys."""
    return {
        # CLIP's protocol: features as they are, the penalty chosen on a fifth of the training data.
        "probe": {"mnist5k": {**PAIR, "l2": "sweep", "standardize": False}},
        "fewshot": {"mnist5k": PAIR},
        "knn": {"mnist5k": {**PAIR, "k": (10, 20)}},
    }
