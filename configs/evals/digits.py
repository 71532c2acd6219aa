"""What frozen features know of handwritten digits: four evaluations, embedded data, any weights.

python -m vit_jax.evaluate --weights FILE --model NAME --evals configs/evals/digits.py
"""

PAIR = {"train": "mnist5k:train", "test": "mnist5k:test"}


def get_evals() -> dict:
    """Type of evaluator -> name -> keys; the keys are documented in vit_jax/evaluators."""
    return {
        # CLIP's protocol: features as they are, the penalty chosen on a fifth of the training data.
        "probe": {"mnist5k": {**PAIR, "l2": "sweep", "standardize": False}},
        "fewshot": {"mnist5k": PAIR},
        "knn": {"mnist5k": {**PAIR, "k": (10, 20)}},
    }
