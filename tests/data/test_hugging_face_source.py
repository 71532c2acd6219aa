"""Data sets of Hugging Face, written by `datasets` (tests/fixtures/generators)."""

import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest

from vit_jax.data.images import read_image
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError

HF = pathlib.Path(__file__).parents[1] / "fixtures" / "hf"
REPOSITORY = HF / "hub" / "datasets--org--insects"
(SNAPSHOT,) = (REPOSITORY / "snapshots").iterdir()
(PREPARED,) = (HF / "prepared").glob("*/*/*/*")
NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def caches(monkeypatch):
    """The caches of the fixtures."""
    monkeypatch.setenv("HF_HUB_CACHE", str(HF / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(HF / "prepared"))
    return monkeypatch


@pytest.mark.parametrize(
    "place",
    [HF / "saved", REPOSITORY, SNAPSHOT, PREPARED, PREPARED.parents[2], "org/insects"],
    ids=["saved", "hub", "snapshot", "prepared", "datasets cache", "name"],
)
def test_layouts(place, caches):
    source = pickle.loads(pickle.dumps(open_source(f"hf:{place}?split=train")))
    assert (len(source), source.class_names) == (7, NAMES)
    np.testing.assert_array_equal(source.labels, [0, 1, 2, 0, 1, 2, 0])
    for i in (6, 0, 3, 5, 1):
        example = source[i]
        expected = np.full((4, 6, 3), 20 * i, np.uint8)
        np.testing.assert_array_equal(read_image(example["image"]), expected)
        assert example["captions"] == [f"a {NAMES[i % 3]}, number {i}"]
        assert example["name"] == NAMES[i % 3]
        assert example["key"].endswith(f"{i}.png")
    bare = open_source(f"hf:{place}?split=test").annotation(3)
    assert not bare.keys() & {"label", "name", "captions"}


def test_name_in_the_cache_of_datasets(caches):
    caches.setenv("HF_HUB_CACHE", "/nothing")
    assert len(open_source("hf:org/insects?split=test")) == 4
    with pytest.raises(UserError, match=r"no data set 'org/birds': .*hf download --repo-type"):
        open_source("hf:org/birds")


def test_saved_split_needs_no_choice():
    assert len(open_source(f"hf:{HF}/saved/test[1:]")) == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("saved", r"has the splits test, train: choose one, as \?split=NAME"),
        ("saved?split=trian", "did you mean 'train'"),
        ("saved?split=train&caption=licence", "did you mean 'license'"),
        ("saved?split=train&image=text", None),
        ("nothing", "no folder .*nothing"),
        ("../weights", "has no data set of Hugging Face: expected dataset_dict.json"),
    ],
)
def test_choices(spec, message):
    if message is None:  # a column of paths, as it says
        with pytest.raises(UserError, match=r"no file .*a ant, number 0"):
            _ = open_source(f"hf:{HF}/{spec}")[0]
        return
    with pytest.raises(UserError, match=message):
        open_source(f"hf:{HF}/{spec}")


@pytest.fixture
def repository(tmp_path):
    """A folder of Parquet with two configurations, two labels and two texts."""
    import pyarrow as pa
    from pyarrow import parquet

    features = {
        "img": {"_type": "Image"},
        "fine": {"_type": "ClassLabel", "names": ["a", "b"]},
        "coarse": {"_type": "ClassLabel", "names": ["c"]},
        "caption": {"_type": "List", "feature": {"_type": "Value", "dtype": "string"}},
        "title": {"_type": "Value", "dtype": "string"},
        "sound": {"_type": "Audio"},
    }
    source = open_source(f"hf:{HF}/saved?split=test")
    image = {"bytes": source[0]["image"].data, "path": None}
    row = {"img": image, "fine": 1, "coarse": 0, "caption": ["x", "y"], "title": "z"}
    table = pa.Table.from_pylist([row | {"sound": image}])
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    for config in ("small", "large"):
        path = tmp_path / config / "train" / "0000.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(table.replace_schema_metadata(info), path)
    return tmp_path


def test_ambiguous_columns_are_asked_for(repository):
    spec, asked = f"hf:{repository}", []
    for option in ("", "?config=small", "&caption=caption", "&label=fine"):
        spec += option
        try:
            source = open_source(spec)
        except UserError as error:
            asked.append(str(error))
    assert "has the configs large, small" in asked[0]
    assert "has the columns caption, title: choose one, as ?caption=caption" in asked[1]
    assert "has the columns fine, coarse: choose one, as ?label=fine, or label=none" in asked[2]
    assert len(asked) == 3
    example = source[0]
    assert (example["captions"], example["name"]) == (["x", "y"], "b")
    assert read_image(example["image"]).shape == (4, 6, 3)
    unlabelled = open_source(spec.replace("label=fine", "label=none"))
    assert unlabelled.class_names is None


def test_damage(tmp_path):
    saved = shutil.copytree(HF / "saved" / "train", tmp_path / "saved")
    file = saved / "data-00001-of-00002.arrow"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow is not an Arrow file"):
        open_source(f"hf:{saved}")
    file.unlink()
    with pytest.raises(UserError, match=r"no file .*data-00001"):
        open_source(f"hf:{saved}")
    (saved / "state.json").write_text("[")
    with pytest.raises(UserError, match=r"state\.json is not JSON"):
        open_source(f"hf:{saved}")
    hub = shutil.copytree(SNAPSHOT, tmp_path / "hub")
    (hub / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="has 1 of 2 shards"):
        open_source(f"hf:{hub}?split=train")
