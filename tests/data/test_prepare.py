"""Preparation: content of both formats, resumption, checksums, broken examples."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.preparation import prepare
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    """Ten images of two classes, one of them truncated."""
    root = tmp_path / "images"
    for i in range(10):
        path = root / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (i, 0, 0)).save(path)
    path = root / "class0" / "4.png"
    path.write_bytes(path.read_bytes()[:50])
    return root


@pytest.mark.parametrize(("format", "spec"), [("array_record", "arrayrecord"), ("tar", "tar")])
def test_prepared_data_equals_the_source(folder, tmp_path, format, spec):
    output = tmp_path / format
    manifest = prepare(f"folder:{folder}", output, format=format, shards_count=3)
    assert (manifest["examples"], manifest["broken"]) == (9, 1)
    named = [text for entry in manifest["shards"].values() for text in entry["broken_named"]]
    assert "class0/4.png" in named[0]
    for name, entry in manifest["shards"].items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == entry["sha256"]
    whole = open_source(f"folder:{folder}")
    keep = [i for i in range(10) if not whole.annotation(i)["key"].endswith("/4.png")]
    found = open_source(f"{spec}:{output}/*.{format}")
    assert found.class_names == whole.class_names
    np.testing.assert_array_equal(found.labels, whole.labels[keep])
    for row, original in enumerate(keep):
        assert found[row]["image"].data == whole[original]["image"].data
        assert found[row]["captions"] == whole[original]["captions"]
        assert found[row]["name"] == whole[original]["name"]
    assert json.loads((output / "manifest.json").read_text()) == manifest


def test_finished_shards_are_kept_and_missing_ones_written(folder, tmp_path):
    output = tmp_path / "out"
    first = prepare(f"folder:{folder}", output, format="tar", shards_count=3)
    (output / "00001.tar").unlink()
    kept = (output / "00000.tar").stat().st_mtime_ns
    assert prepare(f"folder:{folder}", output, format="tar", shards_count=3) == first
    assert (output / "00000.tar").stat().st_mtime_ns == kept
    assert (output / "00001.tar").exists()


def test_images_are_scaled_down(folder, tmp_path):
    prepare(f"folder:{folder}", tmp_path / "out", image_size=10, quality=80)
    example = open_source(f"arrayrecord:{tmp_path}/out/*.array_record")[0]
    assert example["image"].decode().shape == (10, 15, 3)
    assert example["image"].data[:2] == b"\xff\xd8"


def test_refusals(folder, tmp_path):
    with pytest.raises(UserError, match="is not empty and has no manifest"):
        prepare(f"folder:{folder}", folder)
    prepare(f"folder:{folder}", tmp_path / "out")
    with pytest.raises(UserError, match="was prepared with format='array_record', not 'tar'"):
        prepare(f"folder:{folder}", tmp_path / "out", format="tar")
    with pytest.raises(UserError, match="only 10 examples"):
        prepare(f"folder:{folder}", tmp_path / "new", shards_count=11)
    assert not (tmp_path / "new").exists()
