"""`vit_jax.data.inspect`: what the report says of a folder with known faults."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import duplicates
from vit_jax.data.contact_sheet import SIDE, contact_sheet
from vit_jax.data.inspection import inspect, spread
from vit_jax.data.inspection_text import as_text
from vit_jax.data.sources import open_source
from vit_jax.data.tokenizers.factory import open_encoder


def waves(seed, size=(48, 64)):
    """A smooth random image."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return coarse.resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes: near and exact copies, a broken file, transparency, a large image."""
    root = tmp_path_factory.mktemp("faults")
    for name in ("cat", "dog"):
        (root / name).mkdir()
    waves(0).save(root / "cat" / "0.png")
    waves(0).save(root / "cat" / "0_again.bmp")  # equal pixels in another file
    waves(0).resize((128, 96)).save(root / "cat" / "0_resized.jpg", quality=90)
    waves(1).save(root / "cat" / "1.png")
    waves(2).convert("RGBA").resize((10, 40)).save(root / "dog" / "2.png")
    (root / "dog" / "3.png").write_bytes((root / "cat" / "1.png").read_bytes()[:200])
    Image.new("L", (300, 200)).save(root / "dog" / "4.png")
    Image.new("P", (40, 40)).save(root / "dog" / "5.gif")
    return root


@pytest.fixture(scope="module")
def result(folder):
    return inspect(
        open_source(f"folder:{folder}"),
        thumbnails=4,
        max_image_pixels=50_000,
        encoder=open_encoder("clip"),
        context_length=2,
    )


def test_broken_files_with_reasons(result):
    broken = result[0]["broken"]
    assert (result[0]["examples"], result[0]["read"], broken["count"]) == (8, 8, 2)
    reasons = {found["reason"]: found["keys"] for found in broken["reasons"]}
    too_large = next(reason for reason in reasons if "max_image_pixels" in reason)
    assert "300 x 200 px are more than max_image_pixels=50000" in too_large
    assert reasons.pop(too_large)[0].endswith("dog/4.png")
    (reason,) = reasons
    assert reason.startswith("cannot read the image ...: ")  # without the name of the file


def test_sizes_and_modes(result):
    images = result[0]["images"]
    assert images["height"] == {"minimum": 40, "median": 48, "p95": 84, "maximum": 96}
    assert images["width"]["minimum"] == 10
    assert images["largest"]["key"].endswith("0_resized.jpg")
    assert images["kinds"] == {
        "PNG RGB": 2, "BMP RGB": 1, "JPEG RGB": 1, "PNG RGBA": 1, "GIF P": 1,
    }  # fmt: skip
    assert images["transparent"] == 1


def test_duplicates(result):
    exact, near = result[0]["duplicates"]["exact"], result[0]["duplicates"]["near"]
    names = [[key.rsplit("/", 1)[1] for key in g["keys"]] for g in exact["largest"]]
    assert names == [["0.png", "0_again.bmp"]]
    names = [[key.rsplit("/", 1)[1] for key in g["keys"]] for g in near["largest"]]
    assert names == [["0.png", "0_resized.jpg"]]
    assert (exact["redundant"], near["redundant"]) == (1, 1)


def test_captions_and_classes(result):
    captions, classes = result[0]["captions"], result[0]["classes"]
    assert (captions["count"], captions["distinct"]) == (6, 2)
    assert captions["characters"]["maximum"] == 3
    assert captions["tokens"]["median"] == 3  # start, word, end
    assert captions["tokens"]["truncated"] == 6
    assert classes["counts"] == {"cat": 4, "dog": 2}


def test_contact_sheet(result):
    cells = result[1]
    assert [text for _, text in cells] == ["cat", "cat", "dog"]  # the fourth one is broken
    sheet = np.asarray(contact_sheet(cells))
    assert sheet.shape[1] == 2 * (SIDE + 8) + 8
    assert sheet.std() > 10


def test_text_and_json(result, folder):
    text = as_text("folder:x", result[0])
    assert text.startswith("folder:x: 8 examples, 8 read\nbroken       2\n")
    for line in ("exact copies 1 in 1 groups", "near copies  1 in 1 groups", "4  cat"):
        assert line in text
    command = ["-m", "vit_jax", "inspect", f"folder:{folder}", "--json", "--examples=4"]
    sheet = folder.parent / "sheets" / "a.png"
    done = subprocess.run(
        [sys.executable, *command, f"--contact_sheet={sheet}"], capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["examples"], found["read"]) == (8, 4)
    with Image.open(sheet) as image:
        assert image.format == "PNG"


def test_no_example_can_be_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    report, cells = inspect(open_source(f"folder:{tmp_path}"), thumbnails=3)
    assert (report["broken"]["count"], report["images"], cells) == (1, {}, [])
    assert "captions     none" in as_text("x", report)


def test_hash_is_that_of_image_hash():
    """ImageHash 4.3.2: `imagehash.phash(waves(seed))`."""
    expected = ["fc9848e313c4ae3b", "8ce3d8b83acbc534", "fc6c8d47db2420da"]
    prints = [duplicates.fingerprint(np.asarray(waves(seed))) for seed in range(3)]
    assert [f"{found.phash:016x}" for found in prints] == expected


def test_near_groups_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 30, np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, n, replace=False)) for n in range(1, 7)]
    hashes = np.concatenate([hashes, [hashes[i] ^ np.uint64(flip) for i, flip in enumerate(flips)]])
    thumbnails = np.zeros((36, 192), np.uint8)
    thumbnails[31] = 9  # equal hashes, other colours: 1 and 31 are no copies
    groups = duplicates.near_groups(hashes, thumbnails)
    assert groups == [[0, 30], [2, 32]]


def test_flat_images_of_other_colours_are_no_copies():
    prints = [duplicates.fingerprint(np.full((9, 9, 3), level, np.uint8)) for level in (0, 60, 63)]
    hashes = np.array([found.phash for found in prints], np.uint64)
    assert duplicates.near_groups(hashes, np.stack([f.thumbnail for f in prints])) == [[1, 2]]


def test_spread():
    assert spread(10, 0) == spread(10, 20) == list(range(10))
    assert spread(10, 4) == [0, 2, 5, 7]
