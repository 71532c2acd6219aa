"""Sources of files: tar shards, tables, ArrayRecord, TFDS, mixtures; local and memory://."""

import io
import json
import pickle
import tarfile
import tempfile

import fsspec
import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from vit_jax.data.sources import array_record, open_source
from vit_jax.data.sources.patterns import expand_braces
from vit_jax.errors import UserError

COUNT = 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch, request):
    if "emoji_directory" not in request.fixturenames:
        monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def encoded(index, kind="png"):
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (index, 0, 255 - index)).save(stream, kind)
    return stream.getvalue()


def colour(example):
    image = example["image"].decode()
    assert image.shape == (4, 6, 3)
    return int(image[0, 0, 0])


def make_tar(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def shard(first, count, label=True):
    members = []
    for i in range(first, first + count):
        members += [(f"{i:04d}.png", encoded(i)), (f"{i:04d}.txt", f"caption {i} é🌅".encode())]
        members += [(f"{i:04d}.cls", b"%d" % (i % 3))] * label
    return make_tar(members)


@pytest.fixture
def tars(tmp_path):
    """Two shards of unequal length."""
    (tmp_path / "00000.tar").write_bytes(shard(0, 7))
    (tmp_path / "00001.tar").write_bytes(shard(7, COUNT - 7))
    return tmp_path


# --- tar ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["*.tar", "{00000..00001}.tar", "0000?.tar", "{00000,00001}.tar"]
)
def test_tar_shards(tars, pattern):
    source = open_source(f"tar:{tars}/{pattern}")
    assert len(source) == COUNT
    assert [colour(source[i]) for i in range(COUNT)] == list(range(COUNT))
    assert source[9]["captions"] == ["caption 9 é🌅"]
    assert source[9]["key"] == "0009"
    assert source.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert source.class_names == ["0", "1", "2"]
    assert (tars / "00000.tar.index").exists()
    copy = pickle.loads(pickle.dumps(source))
    assert copy.annotation(8) == source.annotation(8)


def test_tar_index_is_used_and_rebuilt_for_a_changed_shard(tars, monkeypatch):
    spec = f"tar:{tars}/*.tar"
    open_source(spec)
    from vit_jax.data.sources import tar_index

    monkeypatch.setattr(tar_index, "find_examples", None)
    assert len(open_source(spec)) == COUNT
    monkeypatch.undo()
    monkeypatch.setenv("VIT_JAX_CACHE", str(tars / "cache"))
    (tars / "00001.tar").write_bytes(shard(30, 9))
    assert colour(open_source(spec)[7]) == 30
    assert len(open_source(spec)) == 7 + 9


def test_tar_in_a_read_only_folder(tars, monkeypatch):
    real = tempfile.NamedTemporaryFile

    def refuse(dir, **options):
        if dir == tars:
            raise PermissionError(dir)
        return real(dir=dir, **options)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    assert len(open_source(f"tar:{tars}/*.tar")) == COUNT
    assert not list(tars.glob("*.index"))


def test_tar_json_captions_and_examples_without_image(tmp_path):
    data = json.dumps({"caption": "from json", "label": 4}).encode()
    long = "x" * 150  # longer than the name in a plain tar header
    members = [("readme.md", b"hello"), (f"{long}.jpg", encoded(1, "jpeg")), (f"{long}.json", data)]
    (tmp_path / "a.tar").write_bytes(make_tar(members))
    (example,) = [open_source(f"tar:{tmp_path}/a.tar").annotation(0)]
    assert example == {"captions": ["from json"], "label": 4, "name": "4", "key": long}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b" + bytes(600), "is compressed"),
        (bytes(1024), "no images in"),
        (make_tar([("a.txt", b"x")]), "no images in"),
    ],
)
def test_bad_tar_files(tmp_path, data, message):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match=message):
        open_source(f"tar:{tmp_path}/a.tar")


def test_errors_of_absent_shards_contain_the_name(tars):
    with pytest.raises(UserError, match=r"no file '.*00002.tar', one of"):
        open_source(f"tar:{tars}/{{00000..00002}}.tar")


def test_tar_in_a_bucket():
    """In memory; tests/data/test_buckets.py runs real clients against local servers."""
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/0.tar", shard(0, 4))
    source = open_source("tar:memory://bucket/*.tar[1:]")
    assert colour(source[2]) == 3
    assert fs.exists("/bucket/0.tar.index")


def damaged_tars():
    """Shards of four examples that are truncated or damaged in the third one."""
    whole = shard(0, 4, label=False)
    size = 4 * 512  # header and data of an image, header and data of a caption
    assert whole[size : size + 4] == b"0001"
    for name, cut in {
        "between examples": 2 * size,
        "in a header": 2 * size + 100,
        "after a header": 2 * size + 512,
        "in an image": 2 * size + 512 + 40,
        "between members": 2 * size + 1024,
        "in the header of a caption": 2 * size + 1024 + 300,
        "in a caption": 2 * size + 1536 + 3,
    }.items():
        yield name, whole[:cut]
    for name, place in {"flipped checksum": 148, "flipped size": 130}.items():
        data = bytearray(whole)
        data[2 * size + place] ^= 0x55
        yield name, bytes(data)
    yield "negative size", whole[: 2 * size] + negative_size() + whole[2 * size + 512 :]


def negative_size():
    header = bytearray(tarfile.TarInfo("0002.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xf0\x00"
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    return bytes(header)


@pytest.mark.parametrize(("name", "data"), [*damaged_tars()])
def test_damaged_shards_keep_good_examples_and_count_broken_ones(tmp_path, name, data):
    path = tmp_path / "cut.tar"
    path.write_bytes(data)
    source = open_source(f"tar:{path}")
    good, broken = [], []
    for index in range(len(source)):
        try:
            example = source[index]
            good.append(colour(example))
            if "captions" not in example:
                raise UserError(f"{path}: no caption")
        except UserError as error:
            broken.append(str(error))
    assert good[:2] == [0, 1]
    # The example without its caption is broken, and so is the place of the truncated header.
    expected = {"between examples": 0, "in the header of a caption": 2}.get(name, 1)
    assert len(broken) == expected
    assert all("cut.tar" in text for text in broken)


# --- tables ---------------------------------------------------------------------------------------


def table(tmp_path, suffix, rows):
    path = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "\t" if suffix == ".tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        path.write_text("\ufeff" + "\n".join(lines) + "\n", "utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables(tmp_path, suffix):
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(encoded(i))
        rows.append({"file": f"images/{i}.png", "alt": f"caption {i} é", "label": "ab"[i % 2]})
    path = table(tmp_path, suffix, rows)
    source = open_source(f"table:{path}?caption=alt")
    assert [colour(source[i]) for i in range(3)] == [0, 1, 2]
    assert source[2]["captions"] == ["caption 2 é"]
    assert source.class_names == ["a", "b"]
    assert source.labels.tolist() == [0, 1, 0]
    assert pickle.loads(pickle.dumps(source)).annotation(1) == source.annotation(1)


def test_table_with_broken_rows(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"path": "a.png", "caption": ["x", "y"]}\n{"path": 3}\nnonsense\n[1]\n')
    source = open_source(f"table:{path}")
    assert source.annotation(0)["captions"] == ["x", "y"]
    for row, message in ((1, "path is 3"), (2, "not JSON"), (3, "list, expected a JSON object")):
        with pytest.raises(UserError, match=f"row {row + 1}: .*{message}"):
            source.annotation(row)
    (tmp_path / "t.csv").write_text("path,caption\na.png,one\nb.png\n")
    with pytest.raises(UserError, match="row 2: 1 fields, expected 2"):
        open_source(f"table:{tmp_path}/t.csv").annotation(1)
    path.write_text('{"path": "a.png", "caption": "half \\ud83c"}\n')
    with pytest.raises(UserError, match="not Unicode"):
        open_source(f"table:{path}").annotation(0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("table:{}/t.csv?image=pth", "unknown column of .* 'pth'; did you mean 'path'"),
        ("table:{}/t.csv?imge=path", "unknown option of table: 'imge'; did you mean 'image'"),
        ("table:{}/t.txt", "expected a .csv"),
        ("table:{}/no.csv", "no file"),
        ("table:", "the path is empty: expected NAME:PATH"),
        ("tar:{}/no*.tar", "no file"),
        ("nope://x/t.csv", "unknown data source 'nope'"),
        ("table:nope://x/t.csv", "cannot open 'nope://x/t.csv'"),
        ("arrayrecord:{}/t.csv", "not ArrayRecord"),
        ("tfds:nothing_such:train", "no TFDS data set 'nothing_such'"),
        ("tfds:mnist", "has no split: expected tfds:NAME:SPLIT"),
    ],
)
def test_bad_specs_of_files(tmp_path, spec, message):
    (tmp_path / "t.csv").write_text("path,caption\na.png,one\n")
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(UserError, match=message):
        open_source(spec.format(tmp_path))


# --- ArrayRecord, TFDS, mixtures ------------------------------------------------------------------


def test_array_records(tmp_path):
    for number, rows in enumerate([range(5), range(5, 12)]):
        name = str(tmp_path / f"{number}.array_record")
        writer = array_record_module.ArrayRecordWriter(name, array_record.WRITER_OPTIONS)
        for i in rows:
            example = {"captions": [f"caption {i}"], "label": i % 2, "key": str(i)}
            writer.write(array_record.pack(example, encoded(i)))
        writer.close()
    (tmp_path / "names.txt").write_text("even\nodd\n")
    source = open_source(f"arrayrecord:{tmp_path}/*.array_record?classes={tmp_path}/names.txt")
    assert [colour(source[i]) for i in range(12)] == list(range(12))
    assert source[7] | {"image": 0} == {
        "image": 0, "captions": ["caption 7"], "label": 1, "name": "odd", "key": "7",
    }  # fmt: skip
    assert source.labels.tolist() == [0, 1] * 6
    assert pickle.loads(pickle.dumps(source)).annotation(3) == source.annotation(3)


def test_tfds_set_from_its_folder(emoji_directory):
    """The emoji data is a prepared TFDS data set, whose label has no class names."""
    own = open_source("emoji:heldout_names")
    source = open_source(f"tfds:{emoji_directory}:heldout_names[:20]")
    assert source.class_names is None
    for i in range(3):
        np.testing.assert_array_equal(source[i]["image"].decode(), own[i]["image"])
        assert source[i]["captions"] == own[i]["captions"][:1]
    with pytest.raises(UserError, match="did you mean 'train'"):
        open_source(f"tfds:{emoji_directory}:trian")
    with pytest.raises(UserError, match="feature for caption"):
        open_source(f"tfds:{emoji_directory}:train?caption=nme")


def test_mixtures(tars):
    both = open_source(f"tar:{tars}/*.tar[:50%] + digits:test[:10]")
    assert len(both) == 16
    assert both.class_names is None
    assert both.annotation(2)["key"] == "0002"
    assert "label" not in both.annotation(12)
    weighted = open_source("3*digits:test[:10] + 1*digits:train[:5]")
    assert weighted.weights == [0.75, 0.25]
    assert weighted.class_names == [str(i) for i in range(10)]
    assert len(weighted.labels) == 15
    with pytest.raises(UserError, match="expected a weight above 0"):
        open_source("0.5*digits:test + digits:train")


def test_braces():
    assert expand_braces("a{08..11}/{x,y}") == [
        f"a{n}/{c}" for n in ("08", "09", "10", "11") for c in "xy"
    ]
    assert expand_braces("{a}") == ["{a}"]
    with pytest.raises(UserError, match="counts down"):
        expand_braces("{3..1}")
