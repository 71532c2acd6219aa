"""Fixtures: buckets of local servers, moto's and gcp-storage-emulator's, for the real clients.

    pip install -e '.[test,buckets]'
    pytest tests/data/test_buckets.py tests/training/test_bucket_runs.py

Without these packages the tests are skipped.
"""

import socket
import uuid
from http import HTTPStatus

import fsspec
import pytest
from etils.epath import backend

from vit_jax import paths


@pytest.fixture(scope="module")
def s3_endpoint():
    """Environment variables of a server of S3."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", free_port())
    pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture(scope="module")
def gs_endpoint():
    """Environment variables of a server of Google Cloud Storage."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    port = free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True)
    server.start()
    # Without it, each request asks another service for the type of the bucket.
    off = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        add_generations(patch, pytest.importorskip("gcp_storage_emulator.handlers.objects"))
        yield {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, **off}
    server.stop()


def add_generations(patch, handlers):
    """Adds what TensorStore needs, and the server lacks: conditions on the versions of objects.

    Arrays that are written at once change the same index: with a condition, no change is lost.
    https://cloud.google.com/storage/docs/request-preconditions
    """
    NotFound = pytest.importorskip("gcp_storage_emulator.exceptions").NotFound
    upload, download = handlers._media_upload, handlers.download

    def generation(storage, bucket, name):
        try:
            return storage.get_file_obj(bucket, name)["generation"]
        except NotFound:
            return "0"  # of an object that does not exist

    def conditional_upload(request, response, storage):
        now = generation(storage, request.params["bucket_name"], request.query["name"][0])
        if request.query.get("ifGenerationMatch", [now])[0] == now:
            upload(request, response, storage)
        else:
            request.data  # noqa: B018 (the connection goes on after it)
            response.status = HTTPStatus.PRECONDITION_FAILED

    def conditional_download(request, response, storage):
        now = generation(storage, request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = now
        if request.query.get("ifGenerationMatch", [now])[0] != now:
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif request.query.get("ifGenerationNotMatch", [""])[0] == now:
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            download(request, response, storage)

    patch.setattr(handlers, "_media_upload", conditional_upload)
    patch.setattr(handlers, "download", conditional_download)


def free_port():
    """A port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(params=["s3", "gs"])
def bucket(request, monkeypatch, tmp_path):
    """URL of a new bucket, of each kind."""
    endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    yield from new_bucket(request.param, endpoint, monkeypatch, tmp_path)


@pytest.fixture
def gs_bucket(gs_endpoint, monkeypatch, tmp_path):
    """URL of a new bucket of Google Cloud."""
    yield from new_bucket("gs", gs_endpoint, monkeypatch, tmp_path)


def new_bucket(kind, endpoint, monkeypatch, tmp_path):
    """Creates a bucket and yields its URL; processes that are started meanwhile find it."""
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    for name, value in endpoint.items():
        monkeypatch.setenv(name, value)
    url = f"{kind}://vit-{uuid.uuid4().hex}"
    fs, path = fsspec.core.url_to_fs(url)
    fs.mkdir(path)
    paths._check_bucket.cache_clear()
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield url
    fsspec.get_filesystem_class(kind).clear_instance_cache()
