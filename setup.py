"""Build script of vit_jax: vision transformers and CLIP in JAX, for TPU pods and GPU hosts.

`pyproject.toml` holds the metadata, the dependencies and the extras. This file adds what it cannot
express: the folder `configs` is installed as `vit_jax.configs`, beside the packages that are found,
so that `--config clip_emoji` works without a checkout.
"""

import setuptools

setuptools.setup(
    packages=[
        *setuptools.find_packages(include=["vit_jax", "vit_jax.*"]),
        "vit_jax.configs",
    ],
    package_dir={"vit_jax.configs": "configs"},
    package_data={
        "vit_jax": ["py.typed"],
        "vit_jax.configs": ["ablations/*.py", "evals/*.py"],
        "vit_jax.data.tokenizers": ["clip_merges.txt.gz", "CLIP_MERGES.md"],
        "vit_jax.evaluators.prompts": ["*.json", "ORIGIN.md"],
        "vit_jax.models": ["README.md"],
        "vit_jax.reporting": ["report.html.jinja"],
    },
)
