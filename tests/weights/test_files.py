"""Weight files of all containers: exact values, damaged files, and no code executed."""

import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.weights.reference import DATA
from vit_jax.errors import UserError
from vit_jax.weights.containers.reading import open_weights
from vit_jax.weights.containers.writing import write_tensors

RNG = np.random.default_rng(0)
TENSORS = {
    "a": RNG.normal(size=(3, 4)).astype(np.float32),
    "b/scalar": np.asarray(0.5, np.float32),
    "c": RNG.normal(size=5).astype(ml_dtypes.bfloat16),
    "d": np.arange(6).reshape(2, 3),
    "e": np.zeros((0, 2), np.float16),
    "f": np.asarray([True, False]),
}


def assert_holds(file, expected):
    """Same names, shapes and dtypes, before reading and after; same values."""
    assert set(file) == set(expected)
    assert file.keys() == list(file)
    for key, value in expected.items():
        assert (file.shape(key), file.dtype(key)) == (value.shape, value.dtype)
        np.testing.assert_array_equal(file.read(key), value, strict=True)


@pytest.fixture
def safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_safetensors(safetensors):
    file = open_weights(safetensors)
    assert_holds(file, TENSORS)
    assert file.metadata == {"format": "pt"}
    assert str(file) == str(safetensors)
    with pytest.raises(UserError, match=r"weights.safetensors: unknown tensor 'b/scalr'.*b/scalar"):
        file.read("b/scalr")


@pytest.mark.parametrize("suffix", ["pt", "npz", "bin", ""])
def test_the_suffix_does_not_matter(safetensors, suffix):
    assert_holds(open_weights(safetensors.rename(safetensors.with_name(f"x.{suffix}"))), TENSORS)


def test_shards_by_index_and_by_folder(tmp_path):
    names = {key: f"model-{i % 2}.safetensors" for i, key in enumerate(TENSORS)}
    for name in set(names.values()):
        save_file({k: v for k, v in TENSORS.items() if names[k] == name}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    assert_holds(open_weights(index), TENSORS)
    assert_holds(open_weights(tmp_path), TENSORS)
    index.write_text(json.dumps({"weight_map": {**names, "g": "model-0.safetensors"}}))
    with pytest.raises(UserError, match=r"its shards lack g in model-0.safetensors"):
        open_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(UserError, match="expected shards beside the index"):
        open_weights(index)
    index.write_text(json.dumps({"tensors": {}}))
    with pytest.raises(UserError, match=r"'weight_map'; found \['tensors'\]"):
        open_weights(index)


@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path, compressed):
    """NumPy stores bfloat16 as an opaque type of two bytes."""
    path = tmp_path / "weights.npz"
    arrays = {**TENSORS, "fortran": np.asfortranarray(TENSORS["a"])}
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    assert_holds(open_weights(path), arrays)


def test_written_files_are_read_back_and_readable_by_all(tmp_path):
    (tmp_path / "plain").touch()
    for container in ("safetensors", "npz"):
        write_tensors(tmp_path / "out" / "x", TENSORS, container)
        assert_holds(open_weights(tmp_path / "out" / "x"), TENSORS)
        assert (tmp_path / "out" / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
        assert os.listdir(tmp_path / "out") == ["x"]


def expected_of_torch(name):
    file = open_weights(DATA / "torch_expected.safetensors")
    keys = [key for key in file if key.startswith(name)]
    return {key.removeprefix(f"{name}."): file.read(key) for key in keys}


def test_torch_checkpoint():
    """Views and shared storages, under the key `model`; the prefix `module.` is removed."""
    file = open_weights(DATA / "torch_checkpoint.pt")
    assert_holds(file, expected_of_torch("checkpoint"))
    assert file.part == "model"
    assert str(file).endswith("torch_checkpoint.pt (key 'model')")


def test_torchscript_archive():
    file = open_weights(DATA / "torch_script.pt")
    assert_holds(file, expected_of_torch("script"))
    assert file.part is None


def test_old_torch_files_are_refused():
    with pytest.raises(UserError, match=r"torch_old.pt: a bare pickle.*save it again"):
        open_weights(DATA / "torch_old.pt")


def torch_archive(path, content, storages=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
        for name, data in dict(storages).items():
            archive.writestr(f"archive/data/{name}", data)
    return path


class Calls:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (eval, "builtins.eval"), (getattr, "builtins.getattr")],
)
def test_code_in_a_pickle_is_refused_before_it_runs(tmp_path, function, name):
    """The file that the code would create does not appear."""
    command = f"open({str(tmp_path / 'ran')!r}, 'w')"
    content = {"model": {"weight": Calls(function, command)}}
    path = torch_archive(tmp_path / "evil.pt", content)
    with pytest.raises(UserError, match=rf"evil.pt: expected tensors.*found {name}, which is"):
        open_weights(path)
    assert not (tmp_path / "ran").exists()


def create(path):
    """A function that is not known to the reader."""
    open(path, "w").close()


def test_unknown_functions_in_a_pickle_are_never_called(tmp_path):
    """Their results are inert placeholders."""
    content = {"model": {"weight": Calls(create, str(tmp_path / "ran"))}}
    path = torch_archive(tmp_path / "unknown.pt", content)
    with pytest.raises(UserError, match="expected tensors by name"):
        open_weights(path)
    assert not (tmp_path / "ran").exists()


def test_harmless_objects_beside_the_tensors():
    """Arrays, enumerations, dates, dataclasses and others, written by torch."""
    file = open_weights(DATA / "torch_averaged.pt")
    assert {key.partition(".")[0] for key in file} == {"state_dict", "state_dict_ema", "generator"}
    assert file.parts == ("state_dict", "state_dict_ema")


def test_torch_archive_without_tensors(tmp_path):
    path = torch_archive(tmp_path / "empty.pt", {"epoch": 3, "model": {"lr": 0.1}})
    with pytest.raises(UserError, match=r"'model' or 'state_dict'; found .*\['epoch', 'model'\]"):
        open_weights(path)


def rewritten(source, target, **changes):
    """Copies an archive with some members replaced, or left out if None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = changes.get(name.rpartition("/")[2].partition(".")[0], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def test_damaged_torch_archives(tmp_path):
    source, path = DATA / "torch_checkpoint.pt", tmp_path / "x.pt"
    with pytest.raises(
        UserError, match=r"expected the storage torch_checkpoint/data/0; found none"
    ):
        open_weights(rewritten(source, path, **{"0": None}))
    with pytest.raises(UserError, match=r"expected \d+ elements of float32 in .*; found 1"):
        open_weights(rewritten(source, path, **{"0": b"1234"}))
    with pytest.raises(UserError, match=r"expected little-endian storages; found b'big'"):
        open_weights(rewritten(source, path, byteorder=b"big"))
    with pytest.raises(UserError, match=r"data.pkl cannot be read"):
        open_weights(rewritten(source, path, data=b"\x80\x02}q"))
    put = pickle.LONG_BINPUT + (50_000_000).to_bytes(4, "little")
    with pytest.raises(UserError, match=r"cannot be read: memo index 50000000 in 9 bytes"):
        open_weights(rewritten(source, path, data=b"\x80\x02}" + put + pickle.STOP))


@pytest.mark.parametrize("fraction", [0.999, 0.5, 0.01])
def test_truncated_safetensors(safetensors, fraction):
    data = safetensors.read_bytes()
    safetensors.write_bytes(data[: int(len(data) * fraction)])
    if fraction == 0.01:
        message = "found a file that starts with"
    else:
        message = r"weights.safetensors: truncated: expected .* bytes; found \d+"
    with pytest.raises(UserError, match=message):
        open_weights(safetensors)


def with_header(path, header, data=b""):
    raw = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "expected 8 bytes for F32"),
        ({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, "expected a dtype of F64"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "header cannot be read"),
        (b"{nonsense}", "header cannot be read"),
        ({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "longer than its header"),
    ],
)
def test_damaged_safetensors_headers(tmp_path, header, message):
    with pytest.raises(UserError, match=rf"x.safetensors: .*{message}"):
        open_weights(with_header(tmp_path / "x.safetensors", header, b"1234"))


def test_errors_of_names_that_are_not_text_are_one_line(tmp_path):
    path = with_header(tmp_path / "\udcff\n.safetensors", b"{nonsense}")
    with pytest.raises(UserError, match=r"\\udcff\\n.safetensors: .*cannot be read") as caught:
        open_weights(path)
    assert str(caught.value).isprintable()


def test_damaged_and_odd_npz(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros(4), b=np.asarray([{}], object))
    with pytest.raises(UserError, match=r"expected plain arrays; found Python objects in b.npy"):
        open_weights(path)
    np.savez(path, a=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"x.npz: expected a zip archive; found a damaged one"):
        open_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"no array")
    with pytest.raises(UserError, match=r"x.npz: a.npy cannot be read as an array"):
        open_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(UserError, match=r"torch's data.pkl; found readme.txt"):
        open_weights(path)


def test_bytes_that_changed_are_noticed_when_read(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros(1000))
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    file = open_weights(path)
    with pytest.raises(UserError, match=r"a.npy is damaged: Bad CRC-32"):
        file.read("a")


def test_no_file(tmp_path, safetensors):
    with pytest.raises(UserError, match=r"no weight file at .*did you mean 'weights.safetensors'"):
        open_weights(tmp_path / "weight.safetensors")
    with pytest.raises(UserError, match=r"no weight file at .*known: none"):
        open_weights(tmp_path / "nowhere" / "x")
    with pytest.raises(UserError, match=r"expected one of model.safetensors.*weights.safetensors"):
        open_weights(tmp_path)


def test_other_files(tmp_path):
    (tmp_path / "x").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"expected safetensors.*starts with b'<!DOCTYPE?'"):
        open_weights(tmp_path / "x")
