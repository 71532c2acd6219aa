"""Sources in gs:// and s3:// buckets of local servers, see `tests.bucket_servers`."""

import time

import fsspec
import numpy as np
import pytest
from test_files_sources import COUNT, colour, encoded, shard

from vit_jax.data.loader import Loader
from vit_jax.data.preparation import prepare
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.paths import as_path
from vit_jax.pretrained.fetching import fetch_weights
from vit_jax.weights.containers.reading import open_weights

pytest_plugins = ["tests.bucket_servers"]


def put(url, data):
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, data)


def test_tar_shards_and_their_indexes(bucket):
    put(f"{bucket}/data/00000.tar", shard(0, 7))
    put(f"{bucket}/data/00001.tar", shard(7, COUNT - 7))
    for pattern in ("*.tar", "{00000..00001}.tar"):
        source = open_source(f"tar:{bucket}/data/{pattern}")
        assert [colour(source[i]) for i in range(COUNT)] == list(range(COUNT))
    assert source[9]["captions"] == ["caption 9 é🌅"]
    assert source.labels.tolist() == [i % 3 for i in range(COUNT)]
    fs, path = fsspec.core.url_to_fs(f"{bucket}/data")
    assert fs.exists(f"{path}/00000.tar.index")


def test_a_changed_shard_is_indexed_again(bucket):
    put(f"{bucket}/0.tar", shard(0, 4))
    assert len(open_source(f"tar:{bucket}/0.tar")) == 4
    time.sleep(1.1)  # times in buckets are in seconds
    put(f"{bucket}/0.tar", shard(20, 5))
    source = open_source(f"tar:{bucket}/0.tar")
    assert [colour(source[i]) for i in range(5)] == list(range(20, 25))


def decode(example, rng):
    return {"image": example["image"].decode().reshape(-1)}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_reader_threads_and_processes(bucket, workers):
    put(f"{bucket}/0.tar", shard(0, COUNT))
    source = open_source(f"tar:{bucket}/*.tar")
    loader = Loader(source, decode, batch_size=4, seed=0, workers=workers)
    seen = np.concatenate([next(loader)["image"][:, 0] for _ in range(COUNT // 4)])
    assert sorted(seen.tolist()) == list(range(COUNT))


def test_folders_and_tables(bucket):
    for i in range(4):
        put(f"{bucket}/images/{'ab'[i % 2]}/{i}.png", encoded(i))
    rows = "".join(f"images/{'ab'[i % 2]}/{i}.png,caption {i}\n" for i in range(4))
    put(f"{bucket}/pairs.csv", f"path,caption\n{rows}".encode())
    folder = open_source(f"folder:{bucket}/images")
    assert [colour(folder[i]) for i in range(4)] == [0, 2, 1, 3]
    assert folder.class_names == ["a", "b"]
    table = open_source(f"table:{bucket}/pairs.csv")
    assert [colour(table[i]) for i in range(4)] == [0, 1, 2, 3]
    assert table[3]["captions"] == ["caption 3"]


def test_errors_of_absent_and_removed_files_contain_the_name(bucket):
    with pytest.raises(UserError, match=r"no file '.*absent.tar'"):
        open_source(f"tar:{bucket}/absent.tar")
    with pytest.raises(UserError, match="no file"):
        open_source(f"tar:{bucket}-other/*.tar")
    with pytest.raises(UserError, match="no image folder"):
        open_source(f"folder:{bucket}/absent")
    put(f"{bucket}/0.tar", shard(0, 4))
    source = open_source(f"tar:{bucket}/0.tar")
    fs, path = fsspec.core.url_to_fs(f"{bucket}/0.tar")
    fs.rm(path)
    with pytest.raises(UserError, match=r"0.tar"):
        source[2]


def test_shards_are_prepared_in_buckets_and_resumed(bucket, tmp_path):
    source = tmp_path / "0.tar"
    source.write_bytes(shard(0, COUNT))
    output = f"{bucket}/prepared/set"
    first = prepare(f"tar:{source}", output, format="tar", shards_count=3, workers=2)
    assert first["examples"] == COUNT
    as_path(f"{output}/00001.tar").unlink()
    assert prepare(f"tar:{source}", output, format="tar", shards_count=3) == first
    found = open_source(f"tar:{output}/*.tar")
    assert [colour(found[i]) for i in range(COUNT)] == list(range(COUNT))
    assert not list(tmp_path.glob("*:*"))


def test_an_absent_bucket_is_named_before_any_work(bucket, tmp_path):
    source = tmp_path / "0.tar"
    source.write_bytes(shard(0, 4))
    with pytest.raises(UserError, match=r"-absent/.* (no such bucket|does not exist)"):
        prepare(f"tar:{source}", f"{bucket}-absent/x", format="tar")


def test_weights_in_buckets_are_downloaded_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path))
    np.savez(tmp_path / "x.npz", x=np.arange(3))
    put(f"{bucket}/m/x.npz", (tmp_path / "x.npz").read_bytes())
    put(f"{bucket}/m/x.json", b"{}")
    local = fetch_weights(f"{bucket}/m/x.npz")
    assert list(open_weights(local)) == ["x"]
    assert sorted(p.name for p in local.parent.iterdir()) == ["x.json", "x.npz"]
    written = local.stat().st_mtime_ns
    assert fetch_weights(f"{bucket}/m/x.npz") == local
    assert local.stat().st_mtime_ns == written
