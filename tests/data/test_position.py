"""Position of a run over every source, and examples that cannot be read."""

import collections
import io
import logging
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import broken as broken_module
from vit_jax.data.augment import parse_augmentation
from vit_jax.data.examples import captions_of, example_transform
from vit_jax.data.images import EncodedImage
from vit_jax.data.loader import Loader
from vit_jax.data.preparation import prepare
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

COUNT = 23  # a prime, in shards of 10, 10 and 3


@pytest.fixture(scope="module")
def specs(tmp_path_factory, emoji_directory):
    """One source of each kind; those that are read from files have the same images."""
    root = tmp_path_factory.mktemp("sources")
    rows = ["path,caption"]
    for first in range(0, COUNT, 10):
        with tarfile.open(root / f"{first:02d}.tar", "w") as tar:
            for i in range(first, min(first + 10, COUNT)):
                stream = io.BytesIO()
                Image.new("RGB", (3, 3), (i, 0, 0)).save(stream, "png")
                (root / "folder" / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
                name = f"folder/class{i % 3}/{i:02d}.png"
                (root / name).write_bytes(stream.getvalue())
                rows.append(f"{name},caption {i}")
                for suffix, data in (("png", stream.getvalue()), ("txt", b"caption %d" % i)):
                    info = tarfile.TarInfo(f"{i:02d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    prepare(f"tar:{root}/*.tar", root / "prepared", shards_count=3)
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return {
        "tar": f"tar:{root}/*.tar",
        "folder": f"folder:{root}/folder",
        "table": f"table:{root}/table.csv",
        "arrayrecord": f"arrayrecord:{root}/prepared/*.array_record",
        "joined": f"tar:{root}/*.tar + table:{root}/table.csv[:5]",
        "weighted": f"0.7*tar:{root}/*.tar + 0.3*table:{root}/table.csv[:5]",
        "tfds": f"tfds:{emoji_directory}:heldout_names[:30]",
        "emoji": "emoji:train",
        "digits": "digits:train",
        "mnist5k": "mnist5k:train",
    }


FILES = ("tar", "folder", "table", "arrayrecord")
KINDS = (*FILES, "joined", "weighted", "tfds", "emoji", "digits", "mnist5k")


def identity(example, rng):
    """The identity of an example and a random number."""
    image, captions = example["image"], captions_of(example)
    pixels = image.decode() if isinstance(image, EncodedImage) else image
    return {
        "id": np.int64(zlib.crc32(pixels.tobytes())),
        "words": np.int64(len(captions[0])),
        "noise": rng.random(),
    }


def loader(spec, **changes):
    options = {"batch_size": 6, "seed": 7, **changes}
    return Loader(open_source(spec), identity, **options)


def rows(iterator, count):
    """The next `count` batches as rows (id, noise)."""
    taken = [next(iterator) for _ in range(count)]
    return [np.stack([b["id"], b["words"], b["noise"]], axis=1) for b in taken]


@pytest.mark.parametrize("kind", KINDS)
def test_a_restart_at_any_step_sees_the_very_next_examples(specs, kind):
    whole = np.concatenate(rows(loader(specs[kind]), 30))
    stop = int(np.random.default_rng(len(kind)).integers(1, 20))
    for processes in (1, 2):
        parts = []
        for index in range(processes):
            again = loader(specs[kind], process_index=index, process_count=processes)
            again.set_state({"examples": 6 * stop})
            parts.append(rows(again, 10))
        together = np.concatenate([np.concatenate(part) for part in zip(*parts, strict=True)])
        np.testing.assert_array_equal(together, whole[6 * stop : 6 * (stop + 10)])


@pytest.mark.release
@pytest.mark.parametrize(
    ("kind", "workers"),
    [("tar", 2)]
    + [
        pytest.param(kind, workers, marks=pytest.mark.release)
        for kind in KINDS
        for workers in (1, 2, 3)
    ],
)
def test_the_next_thousand_with_workers_and_processes(specs, kind, workers):
    stop = 1 + 13 * len(kind)
    whole = loader(specs[kind], batch_size=10)
    whole.set_state({"examples": 10 * stop})
    expected = np.concatenate(rows(whole, 100))
    parts = []
    for index in range(2):
        again = loader(
            specs[kind], batch_size=10, workers=workers, process_index=index, process_count=2
        )
        again.set_state({"examples": 10 * stop})
        parts.append(rows(again, 100))
    together = np.concatenate([np.concatenate(part) for part in zip(*parts, strict=True)])
    np.testing.assert_array_equal(together, expected)


@pytest.mark.parametrize("kind", FILES)
def test_every_example_once_per_epoch_over_processes(specs, kind):
    ids = []
    for index in range(2):
        one = loader(specs[kind], batch_size=2, process_index=index, process_count=2)
        ids += [int(r[0, 0]) for r in rows(one, COUNT)]
    assert sorted(collections.Counter(ids).values()) == [2] * COUNT


def test_weights_hold_in_every_batch_and_parts_have_their_own_epochs(specs):
    source = open_source(specs["weighted"])
    taken = []
    pipeline = Loader(source, lambda e, rng: {"key": np.str_(e["key"])}, batch_size=10, seed=0)
    for _ in range(20):
        keys = next(pipeline)["key"]
        from_table = ["/" in key for key in keys]
        assert sum(from_table) == 3
        taken += [key for key in keys if "/" not in key]
    epochs = np.array(taken[: COUNT * 6]).reshape(6, COUNT)
    assert all(len(set(epoch)) == COUNT for epoch in epochs)


# --- broken examples ------------------------------------------------------------------------------


class SomeBroken:
    """Numbers, some of which cannot be read."""

    def __init__(self, count, broken):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise UserError(f"shard.tar: key {index}: cut")
        return {"id": index}


def number(example, rng):
    return {"id": np.int64(example["id"])}


def broken_loader(**changes):
    options = {"batch_size": 4, "seed": 0, "max_broken_fraction": 0.5, **changes}
    return Loader(SomeBroken(20, {3, 4, 19}), number, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_examples_are_replaced_counted_and_logged(workers, caplog):
    with caplog.at_level(logging.ERROR, "vit_jax"):
        logging.getLogger("vit_jax").addHandler(caplog.handler)
        iterator = broken_loader(workers=workers)
        ids = np.concatenate([next(iterator)["id"] for _ in range(5)])
        logging.getLogger("vit_jax").removeHandler(caplog.handler)
    good = set(range(20)) - {3, 4, 19}
    assert sorted(ids.tolist()) == sorted([*good, 5, 5, 0])  # the next good ones by index
    # 3 is replaced by 4, which is broken too: three places, four broken examples read.
    assert iterator.get_state() == {"examples": 20, "broken": 4}
    assert "shard.tar: key 19: cut" in caplog.text
    # Batches that are read ahead of the current step do not count yet.
    counts = [iterator.broken(4 * step) for step in range(6)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 4)


def test_broken_examples_add_up_over_processes_and_restarts():
    loaders = [broken_loader(process_index=i, process_count=2) for i in range(2)]
    for each in loaders:
        for _ in range(5):
            next(each)
    total = sum(each.get_state()["broken"] for each in loaders)
    assert total == 4
    for each in loaders:
        each.set_state({"examples": 20, "broken": total})
    assert [each.get_state()["broken"] for each in loaders] == [4, 0]


def test_too_many_broken_examples_stop_the_run_with_the_list(monkeypatch):
    monkeypatch.setattr(broken_module, "MIN_READ", 20)
    iterator = broken_loader(max_broken_fraction=0.1)
    with pytest.raises(
        UserError, match=r"(?s)\d of \d+ examples .*max_broken_fraction=0.1 .*key \d+: cut"
    ):
        list(iterator)
    with pytest.raises(UserError, match=r"20 examples in a row cannot be read"):
        next(
            Loader(
                SomeBroken(20, set(range(20))),
                number,
                batch_size=1,
                seed=0,
                max_broken_fraction=1.0,
            )
        )
    with pytest.raises(UserError, match=r"max_broken_fraction=2: expected a fraction"):
        broken_loader(max_broken_fraction=2)


# --- fuzz -----------------------------------------------------------------------------------------


def damaged_images(count):
    """Truncated and bit-flipped images of every common format."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 50, 3), np.uint8)
    whole = []
    for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        whole.append(stream.getvalue())
    for i in range(count):
        data = bytearray(whole[i % len(whole)])
        if i % 2:
            data = data[: int(rng.integers(len(data)))]
        else:
            for place in rng.integers(min(len(data), 400) if i % 4 else len(data), size=3):
                data[place] ^= 1 << int(rng.integers(8))
        yield bytes(data)


class Images:
    """Files in memory."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return {"image": EncodedImage(self.files[index], f"image {index}"), "label": index}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_images_are_counted_and_never_stop_the_run(count):
    files = list(damaged_images(count))
    augment = parse_augmentation("", ImageInputs(size=(8, 8)))
    transform = example_transform(("image", "label"), augment)
    rng = np.random.default_rng(0)
    bad, named = set(), 0
    for index in range(count):
        try:
            transform(Images(files)[index], rng)
        except UserError as error:
            bad.add(index)
            named += f"image {index}" in str(error)
    assert count / 4 < len(bad) < count
    assert named == len(bad)
    iterator = Loader(Images(files), transform, batch_size=1, seed=0, max_broken_fraction=1.0)
    seen = {int(next(iterator)["label"][0]) for _ in range(count)}
    assert seen == set(range(count)) - bad
    assert iterator.get_state()["broken"] >= len(bad)


def test_captions_of_every_plane_of_unicode(tmp_path):
    import json

    lines = [chr(0x10000 * plane + 0x20 + offset) for plane in range(17) for offset in (1, 500)]
    halves = ["\ud800", "x\udfff"]
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps({"path": "a", "caption": c}) + "\n" for c in lines + halves))
    source = open_source(f"table:{path}")
    for index, line in enumerate(lines):
        assert source.annotation(index)["captions"] == [line]
    for index in range(len(lines), len(source)):
        with pytest.raises(UserError, match="not Unicode"):
            source.annotation(index)
