"""Recipes that take a path: what they choose, and what they say."""

import pathlib

import pytest
from PIL import Image

from vit_jax import config as config_lib
from vit_jax.data.choices import find_folder, find_images, find_pairs
from vit_jax.errors import UserError
from vit_jax.recipes import load_recipe

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def save(path, size=(70, 90)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of eleven images with words in their names."""
    root = tmp_path_factory.mktemp("animals")
    for name in ("cat", "dog"):
        for i in range(11):
            save(root / name / f"a_small_{name}_{i}.png")
    return root


def test_clip_of_a_folder(folder, caplog):
    caplog.set_level("INFO")
    config = load_recipe(f"{CONFIGS}/clip_your_pairs.py:{folder}")
    config_lib.validate(config)
    assert config.data.train == f"pairs:{folder}?captions=file_name[!::10]"
    assert config.evals.retrieval.held_out.data == f"pairs:{folder}?captions=file_name[::10]"
    architecture = config_lib.model_spec(config).architecture
    assert (architecture.image.image_size, architecture.image.patch_size) == ((64, 64), 8)
    assert (architecture.text.vocab_size, architecture.text.context_length) == (320, 8)
    assert config.batch_size == 8
    for said in (
        "captions are the words of file names",
        "(19 examples)",
        "every tenth example is held out",
        "the median shorter side is 70 px, and 19 examples are few",
        "up to 320 tokens, 8 per caption",
    ):
        assert said in caplog.text


def test_vit_of_a_folder(folder, caplog):
    caplog.set_level("INFO")
    config = load_recipe(f"vit_your_folder:{folder}")
    config_lib.validate(config)
    assert config_lib.model_spec(config).architecture.num_classes == 2
    assert config.data.train == f"folder:{folder}[!::10]"
    assert "2 classes: cat, dog." in caplog.text


def test_folders_of_splits(folder, tmp_path):
    for part in ("train", "val"):
        save(tmp_path / part / "x" / "0.png")
    found = find_folder(str(tmp_path))
    assert (found.train, found.held_out) == (f"folder:{tmp_path}/train", f"folder:{tmp_path}/val")


def test_dino_of_a_folder(folder, caplog):
    caplog.set_level("INFO")
    config = load_recipe(f"dino_your_images:{folder}")
    config_lib.validate(config)
    held_out = {"train": f"folder:{folder}[!::10]", "test": f"folder:{folder}[::10]"}
    assert config.evals.knn.held_out.to_dict() == held_out
    assert (config.data.train, config.data.crops.local_size) == (held_out["train"], 24)
    assert "2 folders or labels are taken for classes, which evaluation alone reads" in caplog.text


def test_images_without_classes_are_all_for_training(folder, tmp_path):
    save(tmp_path / "0.png")
    save(tmp_path / "2026" / "1.png")
    for place in (tmp_path, folder / "cat"):
        found = find_images(str(place))
        assert (found.train, found.held_out) == (f"images:{place}", "")
    assert load_recipe(f"dino_your_images:{tmp_path}").evals.to_dict() == {}


def test_splits_of_hugging_face():
    place = FIXTURES / "hf" / "saved"
    found = find_pairs(str(place))
    assert (found.train, found.held_out) == (f"hf:{place}?split=train", f"hf:{place}?split=test")
    assert found.sizes().image_size == 32
    config = load_recipe(f"clip_your_pairs:{place}")
    assert config.evals.zeroshot.held_out.data == found.held_out
    one = find_folder(f"{place}/train")
    assert (one.train, one.held_out) == (f"hf:{place}/train[!::10]", f"hf:{place}/train[::10]")


@pytest.mark.parametrize(
    ("name", "text", "spec"),
    [
        ("pairs.csv", "image,caption\n0.png,a cat\n1.png,a dog", "table:{}/pairs.csv"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a"}\n' * 3, "table:{}/metadata.jsonl"),
        ("0.txt", "a cat", "pairs:{}"),
    ],
)
def test_kinds_of_pairs(tmp_path, name, text, spec):
    for i in range(2):
        save(tmp_path / f"{i}.png")
    (tmp_path / name).write_text(text)
    if name == "0.txt":
        (tmp_path / "1.txt").write_text("a dog")
    place = tmp_path / name if name == "pairs.csv" else tmp_path
    assert find_pairs(str(place)).held_out == spec.format(tmp_path) + "[::10]"


def test_spec_and_schedule():
    found = find_folder("digits:train")
    assert found.train == "digits:train[!::10]"
    batch, epochs = found.schedule()
    assert (batch, epochs) == (128, 100)


@pytest.mark.parametrize(
    ("recipe", "arg", "message"),
    [
        ("clip_your_pairs", "", r"needs your data: --config configs/clip_your_pairs\.py:PATH"),
        ("clip_your_pairs", "/nothing/x", "no file or folder /nothing/x"),
        ("vit_your_folder", f"{FIXTURES}/hf/hub/x", "no file or folder"),
        ("vit_your_folder", __file__, "expected a folder, or a table"),
    ],
)
def test_errors(recipe, arg, message):
    with pytest.raises(UserError, match=message):
        load_recipe(f"{CONFIGS}/{recipe}.py:{arg}")


def test_no_captions(tmp_path):
    for i in range(3):
        save(tmp_path / "1" / f"{i}.png")
    (tmp_path / "t.csv").write_text("image,caption\n" + f"{tmp_path}/1/0.png,\n" * 3)
    with pytest.raises(UserError, match="none of 2 examples has a caption"):
        find_pairs(f"{tmp_path}/t.csv").vocabulary()
