"""Files as users have them: values of any type, names of any kind, gaps, dots, links."""

import io
import json
import logging
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.loader import group_rows
from vit_jax.data.preparation import prepare
from vit_jax.data.sources import open_source
from vit_jax.data.sources.base import check_captions, parse_label
from vit_jax.data.tokenizers import learn_tokenizer
from vit_jax.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(value=0):
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(stream, "png")
    return stream.getvalue()


def red(example):
    return int(example["image"].decode()[0, 0, 0])


def tar(path, *members):
    """Writes members, (name, contents) or TarInfo, to a tar file and returns its spec."""
    with tarfile.open(path, "w") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            file.addfile(info, io.BytesIO(member[1]))
    return f"tar:{path}"


def read_all(source):
    """Annotation of each example, or its error."""
    found = []
    for row in range(len(source)):
        try:
            found.append(source.annotation(row))
        except UserError as error:
            found.append(str(error))
    return found


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a red fox", ["a red fox"]),
        (["a", b"b", None, float("nan"), " "], ["a", "b"]),
        (np.array(["a", "b"], object), ["a", "b"]),
        (None, []),
        (np.nan, []),
        ("nan", []),
        ("", []),
    ],
)
def test_captions_of_any_type(value, expected):
    assert check_captions(value, "x") == expected


@pytest.mark.parametrize("value", [2024, ["a", 3], {"en": "a"}, True, b"\xff", "\ud83c", [["a"]]])
def test_captions_that_are_no_text_are_broken_examples(value):
    with pytest.raises(UserError, match="caption of example 7"):
        check_captions(value, "example 7")


def test_labels_of_any_type():
    values = ["3", " 3 ", b"3", 3.0, "cat", "", None, np.nan, "nan", 3.5]
    assert [parse_label(v) for v in values] == [3, 3, 3, 3, "cat", None, None, None, None, 3.5]


def test_json_members_of_any_type(tmp_path):
    values = ["a red fox", ["one", "two"], 2024, {"x": 1}, None, [1]]
    members = []
    for i, value in enumerate(values):
        members += [(f"{i}.png", png()), (f"{i}.json", json.dumps({"captions": value}).encode())]
    members += [("6.png", png()), ("6.json", b"[" * 100_000), ("7.png", png()), ("7.json", b"3")]
    found = read_all(open_source(tar(tmp_path / "a.tar", *members)))
    assert [found[0]["captions"], found[1]["captions"]] == [["a red fox"], ["one", "two"]]
    assert "captions" not in found[4]
    for row in (2, 3, 5, 6, 7):
        assert isinstance(found[row], str), found[row]
        assert "a.tar at byte" in found[row]


# --- tar members ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("img.0.png img.0.txt img.1.png img.1.txt", {"img.0": "img.0.txt", "img.1": "img.1.txt"}),
        ("img.0.png img.1.png", {"img.0": None, "img.1": None}),
        ("a.seg.png a.png a.txt b.png b.txt", {"a": "a.txt", "b": "b.txt"}),
        ("a.png a.0.png a.1.png", {"a": None, "a.0": None, "a.1": None}),
        ("v1.5.png v1.5.txt", {"v1.5": "v1.5.txt"}),
        ("a.in.png a.out.png a.txt", {"a.in": "a.txt"}),
        ("a.in.png a.in.txt a.out.png a.out.txt", {"a.in": "a.in.txt", "a.out": "a.out.txt"}),
        ("x/a.png y/a.png y/a.txt", {"x/a": None, "y/a": "y/a.txt"}),
        ("./._a.png ./a.png ./._a.txt ./a.txt", {"./a": "./a.txt"}),
        ("__MACOSX/._a.png a.png a.txt .DS_Store", {"a": "a.txt"}),
    ],
)
def test_keys_of_tar_members(tmp_path, names, expected):
    members = [
        (name, png(i) if name.endswith("png") else name.encode())
        for i, name in enumerate(names.split())
    ]
    source = open_source(tar(tmp_path / "a.tar", *members))
    found = {
        each["key"]: each.get("captions", [None])[0]
        for each in (source.annotation(i) for i in range(len(source)))
    }
    assert found == expected
    for i in range(len(source)):
        key = source[i]["key"]
        assert red(source[i]) == names.split().index(f"{key}.png")


def test_labels_of_json_members(tmp_path):
    spec = tar(
        tmp_path / "a.tar",
        *[("0.png", png()), ("0.json", b'{"label": 2}')],
        *[("1.png", png()), ("1.json", b'{"label": "0", "caption": "x"}')],
        *[("2.png", png()), ("2.cls", b"1\n"), ("2.json", b'{"label": 2}')],
    )
    source = open_source(spec)
    assert source.labels.tolist() == [2, 0, 1]
    assert source.class_names == ["0", "1", "2"]
    (tmp_path / "names.txt").write_text("cat\ndog\nemu\n")
    spec = tar(tmp_path / "b.tar", ("0.png", png()), ("0.json", b'{"label": "emu"}'))
    assert open_source(spec).annotation(0)["name"] == "emu"
    assert open_source(f"{spec}?classes={tmp_path}/names.txt").labels.tolist() == [2]


def test_what_is_left_out_of_tar_files_is_counted(tmp_path, caplog):
    link = tarfile.TarInfo("1.png")
    link.type, link.linkname = tarfile.SYMTYPE, "0.png"
    spec = tar(tmp_path / "a.tar", ("._0.png", b"x"), ("0.png", png()), link, ("2.txt", b"x"))
    for _ in range(2):  # the second time from the index
        caplog.clear()
        assert len(open_source(spec)) == 1
        assert (
            "1 hidden (as ._0.png), 1 links (as 1.png), 1 members without an image" in caplog.text
        )


def test_a_pattern_for_all_files_leaves_out_indexes(tmp_path, caplog):
    folder = tmp_path / "[old] {a,b}"
    folder.mkdir()
    tar(folder / "0.tar", ("0.png", png()))
    tar(folder / "1.tar", ("1.png", png()))
    (folder / "0.json").write_text("{}")
    for _ in range(3):
        assert len(open_source(f"tar:{folder}/*")) == 2
    assert "1 with the suffix .json (as 0.json)" in caplog.text
    assert len(open_source(f"tar:{folder}/{{0,1}}.tar")) == 2
    assert len(open_source(f"tar:{folder}/0.tar")) == 1
    with pytest.raises(UserError, match="is a folder: name its files"):
        open_source(f"tar:{folder}")


# --- tables ---------------------------------------------------------------------------------------


def test_gaps_in_tables(tmp_path):
    (tmp_path / "t.csv").write_text("path,caption,label\na.png,one,10\nb.png,nan,\nc.png,,9\n")
    found = read_all(source := open_source(f"table:{tmp_path}/t.csv"))
    assert [each.get("captions") for each in found] == [["one"], None, None]
    assert [each.get("label") for each in found] == [10, None, 9]
    with pytest.raises(UserError, match=r"b.png has no label"):
        _ = source.labels
    off = open_source(f"table:{tmp_path}/t.csv?label=none")
    assert off.class_names is None
    assert "label" not in off.annotation(0)
    (tmp_path / "t.jsonl").write_text(
        '{"path": "a.png", "text": NaN, "label": 2.0}\n{"path": "b.png", "text": 5, "label": NaN}\n'
    )
    found = read_all(open_source(f"table:{tmp_path}/t.jsonl"))
    assert found[0] | {"key": ""} == {"key": "", "label": 2, "name": "2"}
    assert "the caption of this row is 5 (int)" in found[1]


@pytest.mark.parametrize("mark", "\t;|")
def test_delimiters_of_csv(tmp_path, mark, caplog):
    text = "path, caption\na.png, one; two\n".replace(",", mark)
    (tmp_path / "t.csv").write_text(text.replace("; two", ", two"))
    source = open_source(f"table:{tmp_path}/t.csv")
    assert source.annotation(0)["captions"] == [" one, two"]
    assert "is separated by" in caplog.text
    (tmp_path / "t.csv").write_text("path;a,caption\nx.png;1,one\n")
    with pytest.raises(UserError, match="has the columns path;a, caption"):
        open_source(f"table:{tmp_path}/t.csv")
    source = open_source(f"table:{tmp_path}/t.csv?delimiter=semicolon&caption=none")
    assert source.annotation(0)["key"].endswith("x.png")


def test_classes_of_tables(tmp_path):
    (tmp_path / "names.txt").write_text("10\n9\n2\n")
    (tmp_path / "t.csv").write_text("path,label\na.png,2\nb.png,10\n")
    source = open_source(f"table:{tmp_path}/t.csv?classes={tmp_path}/names.txt")
    assert source.labels.tolist() == [2, 0]
    (tmp_path / "t.csv").write_text("path,label\na.png,2.5\nb.png,10.5\n")
    assert open_source(f"table:{tmp_path}/t.csv").class_names == ["2.5", "10.5"]


def hugging_face(path, first, count, *, rows=4, struct=True, bad=()):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    numbers = range(first, first + count)
    data = [None if i in bad else png(i) for i in numbers]
    table = {
        "image": [{"bytes": d, "path": f"{i}.png"} for d, i in zip(data, numbers, strict=True)]
        if struct
        else data,
        "label": [i % 3 - 1 for i in numbers],
        "text": [f"caption {i}" for i in numbers],
    }
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    schema = pa.table(table).replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(schema, path, row_group_size=rows)


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_of_hugging_face(tmp_path, struct):
    hugging_face(tmp_path / "train-00000.parquet", 0, 7, struct=struct, bad=(5,))
    hugging_face(tmp_path / "train-00001.parquet", 7, 3, struct=struct)
    source = open_source(f"table:{tmp_path}/train-*.parquet")
    assert source.class_names == ["cat", "dog"]
    for row in [*range(10), 9, 0, 8, 3, 1]:
        if row == 5:
            with pytest.raises(UserError, match=r"train-00000.parquet, row 6|no file") as error:
                _ = source[row]
            assert len(str(error.value)) < 300
            continue
        assert red(source[row]) == row
        example = source.annotation(row)
        assert example["captions"] == [f"caption {row}"]
        assert example.get("label", -1) == row % 3 - 1


def test_parquet_is_read_in_bounded_batches(tmp_path, monkeypatch):
    """One row group with all rows, as pandas writes it."""
    from vit_jax.data.sources import parquet

    hugging_face(tmp_path / "a.parquet", 0, 40, rows=40)
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 1000)
    source = open_source(f"table:{tmp_path}/a.parquet")
    assert [red(source[i]) for i in range(40)] == list(range(40))
    assert [red(source[i]) for i in (39, 0, 20)] == [39, 0, 20]
    assert max(len(values) for _, _, values in source._images._batches) < 20


def test_damaged_parquet(tmp_path):
    hugging_face(tmp_path / "a.parquet", 0, 8)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (tmp_path / "a.parquet").write_bytes(data)
    source = open_source(f"table:{tmp_path}/a.parquet")
    with pytest.raises(UserError, match=r"a.parquet"):
        _ = source[0]["image"].decode()
    assert red(source[6]) == 6


# --- passes outside the loader --------------------------------------------------------------------


def test_one_policy_for_all_passes(tmp_path, caplog):
    rows = [{"path": f"{i}.png", "caption": f"fox {i % 4}"} for i in range(40)]
    rows[7] = {"path": "7.png"}
    rows[9] = {"path": "9.png", "caption": 9}
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(f"table:{tmp_path}/t.jsonl")
    sizes = {"vocab_size": 300, "context_length": 8}
    learn_tokenizer(source, ("{}",), max_broken_fraction=0.01, **sizes)
    assert "Broken example 1: example 7: " in caplog.text
    assert "7.png has no captions" in caplog.text
    groups = group_rows(("captions",), source, 0.01)
    assert sorted(map(len, groups)) == [9, 9, 10, 10]
    with pytest.raises(UserError, match=r"(?s)1 of 8 examples cannot be read.*example 7: "):
        learn_tokenizer(source, ("{}",), **sizes)
    with pytest.raises(UserError, match=r"none of the 40 examples can be read.*'caption'; did you"):
        group_rows(("caption",), source, 1.0)


# --- names ----------------------------------------------------------------------------------------


def test_one_bad_name_ends_no_run(tmp_path, caplog):
    root = os.fsencode(tmp_path / "images")
    for name in (b"cat", b"caf\xe9"):
        os.makedirs(os.path.join(root, name))
        for file in (b"a.png", b"b\xff.png", b"line\nbreak.png"):
            with open(os.path.join(root, name, file), "wb") as stream:
                stream.write(png())
    cat = tmp_path / "images" / "cat"
    (cat / "empty.png").write_bytes(b"")
    (cat / "broken.png").symlink_to("nowhere")
    (cat / "self.png").symlink_to("self.png")
    (cat / "folder.png").mkdir()
    (tmp_path / "images" / "folder.jpg").mkdir()
    os.mkfifo(cat / "pipe.png")
    (cat / "._a.png").write_bytes(b"x")
    (cat / "notes.txt").write_bytes(b"x")
    source = open_source(f"folder:{tmp_path}/images")
    assert source.class_names == ["caf\\xe9", "cat"] or source.class_names[0].startswith("caf\\u")
    assert len(source) == 7
    (line,) = caplog.messages
    for part in ("2 broken links", "1 that are no regular files", "1 hidden", "suffix .txt"):
        assert part in line
    for row in range(7):
        example = source.annotation(row)
        json.dumps(example).encode()
        assert all(text.isprintable() for text in (example["key"], example["name"]))
    manifest = prepare(f"folder:{tmp_path}/images", tmp_path / "out", format="tar")
    assert (manifest["examples"], manifest["broken"]) == (6, 1)


def test_pipes_and_odd_names_in_tables(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "b.png").write_bytes(png(7))
    os.rename(tmp_path / "b.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    rows = [b"pipe.png", b"a\0b.png", b".", b"caf\xe9.png", b"x" * 5000, b"http://[", b"\xff,\xff"]
    (tmp_path / "t.csv").write_bytes(b"path,caption\n" + b"".join(r + b",x\n" for r in rows))
    source = open_source(f"table:{tmp_path}/t.csv")
    logging.getLogger().debug("%d", len(source))
    for row in range(len(source)):
        if row == 3:
            assert red(source[row]) == 7
            continue
        with pytest.raises(UserError) as error:
            _ = source[row]
        assert str(error.value).isprintable()
