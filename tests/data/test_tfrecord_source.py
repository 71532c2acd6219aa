"""TFDS sets as TFRecord, written by TensorFlow (tests/fixtures/generators)."""

import pathlib
import pickle
import shutil

import numpy as np
import pytest
from tensorboardX.record_writer import RecordWriter

from vit_jax.data.images import read_image
from vit_jax.data.sources import open_source, tfrecord
from vit_jax.errors import UserError

INSECTS = pathlib.Path(__file__).parents[1] / "fixtures" / "tfrecord" / "insects" / "1.0.0"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder without indexes."""
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tfrecord_index"


def numbers(source):
    """Number of each example, which its grey level encodes; -1 where it cannot be read."""
    found = []
    for i in range(len(source)):
        try:
            found.append(int(read_image(source[i]["image"])[0, 0, 0]) // 20)
        except UserError:
            found.append(-1)
    return found


def test_examples_of_tensorflow():
    source = pickle.loads(pickle.dumps(open_source(f"tfds:{INSECTS}:train")))
    order = numbers(source)
    assert sorted(order) == list(range(7))
    assert source.class_names == ["ant", "bee", "cat"]
    np.testing.assert_array_equal(source.labels, np.array(order) % 3)
    for i in (-1, 3, 0):
        number = order[i]
        example = source[i]
        np.testing.assert_array_equal(
            read_image(example["image"]), np.full((4, 6, 3), 20 * number, np.uint8)
        )
        assert example["captions"] == [f"number {number}", f"a {example['name']}"]
    with pytest.raises(IndexError):
        _ = source[7]


def test_the_index_is_built_once(cache, monkeypatch):
    assert len(open_source(f"tfds:{INSECTS}:train")) == 7
    (index,) = cache.iterdir()
    written = index.stat().st_mtime_ns
    monkeypatch.setattr(tfrecord, "_find_records", None)
    assert len(open_source(f"tfds:{INSECTS}:train")) == 7
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [written]


@pytest.mark.parametrize(
    ("place", "readable", "reason"),
    [
        (30, 3, "the record at byte 0 has another checksum"),  # data of the first record
        (8, 0, "damaged or truncated from byte 0 on"),  # checksum of its length
        (None, 3, r"damaged or truncated from byte \d+ on"),  # the end is absent
    ],
)
def test_damage(tmp_path, place, readable, reason):
    folder = shutil.copytree(INSECTS, tmp_path / "insects" / "1.0.0")
    file = folder / "insects-train.tfrecord-00000-of-00002"
    data = bytearray(file.read_bytes())
    if place is None:
        del data[-1]
    else:
        data[place] ^= 1
    file.write_bytes(data)
    source = open_source(f"tfds:{folder}:train")
    found = numbers(source)
    assert sum(number >= 0 for number in found) == readable + 3
    with pytest.raises(UserError, match=reason):
        _ = source[found.index(-1)]


def test_framing_of_another_writer(tmp_path):
    """TensorboardX computes the checksums without this library's."""
    records = [b"", b"x", bytes(range(256)) * 5]
    writer = RecordWriter(str(tmp_path / "a"))
    for record in records:
        writer.write(record)
    writer.flush()
    writer._writer.close()
    found = tfrecord.TfRecords([str(tmp_path / "a")])
    assert [found[i] for i in range(len(found))] == records
    assert found[-1] == records[-1]


def test_file_is_absent(tmp_path):
    folder = shutil.copytree(INSECTS, tmp_path / "insects" / "1.0.0")
    (folder / "insects-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(UserError, match=r"cannot read .*00001-of-00002: No such file"):
        open_source(f"tfds:{folder}:train")
