"""Folders of images: order and names of classes, names files, links."""

import pytest
from PIL import Image

from vit_jax.data.sources import open_source
from vit_jax.errors import UserError


def test_class_folders(two_classes):
    source = open_source(f"folder:{two_classes}")
    assert source.class_names == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source[4]["name"] == "dog"
    assert source[4]["captions"] == ["dog"]
    image = source[4]["image"].decode()
    assert (image == (0, 0, 255)).all()
    assert image.shape == (4, 5, 3)
    assert len(open_source(f"folder:{two_classes}[:50%]")) == 3


def test_names_file(two_classes, tmp_path):
    names = tmp_path / "names.tsv"
    names.write_text("\ufeffdog/1.png\ta dog, blue\n\ncat/0.png, red cat\n", "utf-8")
    source = open_source(f"folder:{two_classes}?names_file={names}")
    assert source.class_names == ["a dog, blue", "red cat"]
    assert [source[i]["name"] for i in range(2)] == ["a dog, blue", "red cat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat/9.png\tcat\n", "names 1 files that are not in .*: 9.png"),
        ("cat/0.png cat\n", r"names.txt:1: expected"),
        ("cat/0.png\t\n", r"names.txt:1: expected"),
        ("cat/0.png,cat\ncat/0.png,dog\n", "names.txt:2: cat/0.png is also 'cat' above"),
        ("\n", "is empty"),
    ],
)
def test_bad_names_files(two_classes, tmp_path, text, message):
    names = tmp_path / "names.txt"
    names.write_text(text)
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{two_classes}?names_file={names}")


def test_names_file_that_is_absent_or_binary(two_classes, tmp_path):
    with pytest.raises(UserError, match=r"no names file .*nope.txt"):
        open_source(f"folder:{two_classes}?names_file={tmp_path}/nope.txt")
    with pytest.raises(UserError, match=r"0.png is not UTF-8 text"):
        open_source(f"folder:{two_classes}?names_file={two_classes}/cat/0.png")


def test_folders_without_images(two_classes, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=f"no images in {empty}"):
        open_source(f"folder:{empty}")
    (two_classes / "emu").mkdir()
    with pytest.raises(UserError, match=r"without images in .*: emu"):
        open_source(f"folder:{two_classes}")
    with pytest.raises(UserError, match="is a file, expected a folder"):
        open_source(f"folder:{two_classes}/cat/0.png")


def test_images_outside_of_class_folders(two_classes):
    Image.new("L", (2, 2)).save(two_classes / "loose.png")
    with pytest.raises(UserError, match=r"loose.png"):
        open_source(f"folder:{two_classes}")


def class_folders(root, names):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("L", (2, 2), number).save(root / name / "0.png")
    return root


def test_numbered_folders_are_sorted_by_value(tmp_path):
    names = [str(i) for i in range(12)]
    source = open_source(f"folder:{class_folders(tmp_path, names)}")
    assert source.class_names == names
    assert source.labels.tolist() == list(range(12))
    assert [int(source[i]["image"].decode()[0, 0, 0]) for i in (2, 10)] == [2, 10]


@pytest.mark.parametrize(
    ("folders", "lines", "names", "labels"),
    [
        (["cat", "dog"], "dog\nemu\ncat\n", ["dog", "emu", "cat"], [2, 0]),
        (["n2", "n1"], "n1\ta hen\nn2\ta fox\n", ["a hen", "a fox"], [1, 0]),
        (["n2", "n1"], "n1 a hen\nn2 a fox, red\n", ["a hen", "a fox, red"], [1, 0]),
        (["0", "2"], "a hen\na fox\na hen", ["a hen", "a fox", "a hen"], [0, 2]),
    ],
)
def test_a_file_of_classes_decides(tmp_path, folders, lines, names, labels):
    root = class_folders(tmp_path / "images", folders)
    for place in (tmp_path / "order.txt", root / "classes.txt"):
        place.write_text(lines)
        option = "" if place.parent == root else f"?classes={place}"
        source = open_source(f"folder:{root}{option}")
        assert source.class_names == names
        found = {source[i]["key"].split("/")[-2]: source[i]["label"] for i in range(2)}
        assert [found[folder] for folder in folders] == labels


def test_a_file_of_classes_that_does_not_fit(tmp_path, two_classes):
    (two_classes / "classes.txt").write_text("cats\ndog\n")
    with pytest.raises(UserError, match=r"'cat'; did you mean 'cats'"):
        open_source(f"folder:{two_classes}")


def test_links_are_followed(two_classes, tmp_path_factory, caplog):
    root = tmp_path_factory.mktemp("linked")
    (root / "cat").symlink_to(two_classes / "cat")
    (root / "dog").mkdir()
    (root / "dog" / "more").symlink_to(two_classes / "dog")
    (root / "dog" / "a.png").symlink_to(two_classes / "dog" / "0.png")
    (root / "dog" / "loop").symlink_to(root)
    source = open_source(f"folder:{root}")
    assert source.labels.tolist() == [0] * 3 + [1] * 4
    assert (source[4]["image"].decode() == (0, 0, 255)).all()
    assert "left out 1 links to a folder above" in caplog.text
    assert [len(open_source(f"folder:{root}?names_file={names}")) for names in [_names(root)]] == [
        2
    ]


def _names(root):
    (root / "names.txt").write_text("cat/0.png,a\ndog/more/1.png,b\n")
    return root / "names.txt"
