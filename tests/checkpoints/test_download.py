"""Downloads from a real server on this machine."""

import concurrent.futures
import dataclasses
import hashlib
import http.server
import os
import pathlib
import socket
import threading
import time

import keras
import pytest
from checkpoints.conftest import build, same, save_pth

import keras_internimage
from keras_internimage.checkpoints import DownloadError, download, load_weights, published
from keras_internimage.models import VARIANTS
from keras_internimage.variants import Variant

pytestmark = pytest.mark.any_backend

NAME = "tiny_postnorm"
# The tiny model as a published variant.
TINY_VARIANT = Variant(
    16, 8, 1, 2, 64, layer_scale=1e-5, offset_scale=2.0, post_norm=True, depth4=1
)


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.requests, self.cut, self.silent = {}, [], None, None
        self.resumed = False  # whether an answer follows the silence
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hub"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        if self.server.silent is not None:
            self.server.silent.wait(30)
            if not self.server.resumed:
                return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if self.server.cut is None else content[: self.server.cut])
        self.wfile.flush()
        if self.server.cut is not None:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def row(tmp_path, monkeypatch, server, weights):
    """A published checkpoint of a tiny variant, served under its revision."""
    content = save_pth(tmp_path / "served.pth", weights(NAME)).read_bytes()
    row = published.Published(
        "internimage_tiny_1k",
        "Tiny",
        10,
        64,
        "float32",
        len(content),
        hashlib.sha256(content).hexdigest(),
        "0123456789abcdef",
    )
    monkeypatch.setattr(published, "PUBLISHED", (*published.PUBLISHED, row))
    monkeypatch.setitem(published.IMAGENET_CLASSES, "imagenet", row.classes)
    monkeypatch.setitem(VARIANTS, "Tiny", TINY_VARIANT)
    monkeypatch.setenv(published.BASE_URL_VARIABLE, server.url)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    server.files[f"/hub/{row.revision}/{row.name}.pth"] = content
    return row


def cache(tmp_path):
    """What the cache holds but for the files of locks."""
    return sorted(n for n in os.listdir(tmp_path / "home" / "models") if not n.endswith(".lock"))


def whole(row):
    """What the cache holds after a download."""
    return [row.file, f"{row.file}.verified.json"]


def tiny(weights="imagenet", **changes):
    config = {**TINY_VARIANT.config(), "classes": 10, "input_shape": (64, 64, 3), **changes}
    if config.get("include_top") is False:
        config.pop("classes")
    return keras_internimage.InternImage(**config, weights=weights, variant="Tiny")


def test_a_keyword_downloads_and_caches(tmp_path, server, row, weights, capfd):
    """The official file itself."""
    assert same(tiny(), weights(NAME))
    assert server.requests == [f"/hub/{row.revision}/{row.name}.pth"]
    assert cache(tmp_path) == whole(row)
    cached = tmp_path / "home" / "models" / row.file
    assert cached.read_bytes() == (tmp_path / "served.pth").read_bytes()
    assert f"Downloading data from {row.url}" in capfd.readouterr().out
    # From now on without a connection.
    server.files.clear()
    assert same(tiny(), weights(NAME))
    assert same(build(NAME, weights=row.name), weights(NAME))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "changes", [{"include_top": False}, {"classes": 3}, {"dtype": "float16"}, {"drop_rate": 0.1}]
)
def test_no_other_model_is_built_for_the_cache(tmp_path, row, weights, changes, monkeypatch):
    """Also if the model asked for has not all that the file holds."""
    built = []
    initial = keras.Model.__init__
    monkeypatch.setattr(
        keras.Model, "__init__", lambda self, *a, **k: built.append(k) or initial(self, *a, **k)
    )
    tiny(**changes)
    assert len(built) == 1
    assert cache(tmp_path) == whole(row)


def test_22k_weights_for_1k(tmp_path, server, row, weights, monkeypatch, capsys):
    row = dataclasses.replace(row, classes=21841)
    monkeypatch.setattr(published, "PUBLISHED", (*published.PUBLISHED[:-1], row))
    model = tiny("imagenet22k", classes=3)
    assert "newly initialised with 3 classes" in capsys.readouterr().out
    assert same(model, weights(NAME), but=["head."])


def hashes(monkeypatch):
    """The files that are hashed from now on."""
    hashed = []
    sha256 = published.sha256
    monkeypatch.setattr(published, "sha256", lambda path: hashed.append(path) or sha256(path))
    return hashed


def test_a_file_is_hashed_once(row, monkeypatch):
    hashed = hashes(monkeypatch)
    path = download.fetch(row)
    assert len(hashed) == 1
    assert download.fetch(row) == path and download.is_cached(row)
    assert len(hashed) == 1
    # As a copy of the cache has it.
    os.utime(path, ns=(1, 1))
    assert not download.is_cached(row)
    for _ in range(2):
        assert download.fetch(row) == path
        assert len(hashed) == 2 and download.is_cached(row)


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_changed_file_is_downloaded_again(tmp_path, server, row, weights, damage, capsys):
    path = pathlib.Path(download.fetch(row))
    content = path.read_bytes()
    path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + b"x")
    os.utime(path, ns=(1, 1))
    expected = (
        f"{row.bytes - 1} bytes instead of {row.bytes}"
        if damage == "truncated"
        else "another SHA-256: "
    )
    assert same(tiny(), weights(NAME))
    out = capsys.readouterr().out
    assert f"{path} was changed ({expected}" in out and f"{row.name} is downloaded again" in out
    assert path.read_bytes() == content and len(server.requests) == 2
    # What is there stays until another has arrived.
    path.write_bytes(b"damaged")
    server.files.clear()
    with pytest.raises(DownloadError, match="404"):
        tiny()
    assert path.read_bytes() == b"damaged"


def test_a_file_put_there_by_hand(tmp_path, server, row, weights):
    """Verified, and never replaced: it is not this package's."""
    server.files.clear()
    path = pathlib.Path(download.cached_path(row))
    path.write_bytes((tmp_path / "served.pth").read_bytes())
    assert same(tiny(), weights(NAME))
    assert server.requests == [] and cache(tmp_path) == whole(row)
    os.remove(f"{path}.verified.json")
    path.write_bytes(b"mine")
    with pytest.raises(DownloadError, match=f"Move it away.*Received: path={path}"):
        tiny()
    assert path.read_bytes() == b"mine"


def test_a_converted_file_of_an_earlier_version_is_left_alone(tmp_path, row, weights):
    old = tmp_path / "home" / "models" / f"{row.name}.weights.h5"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    assert same(tiny(), weights(NAME))
    assert old.read_bytes() == b"old"


def test_downloads_at_once(tmp_path, server, row, capsys):
    """Here of threads; the lock is the same for processes."""
    server.silent = threading.Event()
    server.resumed = True
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(download.fetch, row) for _ in range(4)]
        while not server.requests:
            time.sleep(0.01)
        server.silent.set()
        paths = {future.result(timeout=60) for future in waiting}
    assert paths == {download.cached_path(row)}
    assert len(server.requests) == 1
    assert cache(tmp_path) == whole(row)


def refused(tmp_path, row, reason):
    with pytest.raises(DownloadError, match=reason) as caught:
        tiny()
    text = str(caught.value)
    assert text.startswith(f"{row.name} could not be downloaded (")
    assert text.count(row.url) == text.count("http") == text.count(row.sha256) == 1
    assert f"Without a connection, get {row.url} on another machine" in text
    assert ".." not in text and " ." not in text
    assert cache(tmp_path) == []


def test_a_wrong_hash(tmp_path, server, row, weights):
    (path,) = server.files
    content = server.files[path]
    server.files[path] = content[:-1] + bytes([content[-1] ^ 1])
    refused(tmp_path, row, "what arrived has another SHA-256: [0-9a-f]{64}")
    server.files[path] = content
    assert same(tiny(), weights(NAME))


@pytest.mark.parametrize("cut", [0, 100_000])
def test_a_broken_connection(tmp_path, server, row, cut):
    server.cut = cut
    refused(tmp_path, row, "could not be downloaded")


def test_a_silent_connection(tmp_path, server, row, monkeypatch):
    monkeypatch.setattr(download, "SECONDS_WITHOUT_DATA", 0.2)
    server.silent = threading.Event()
    try:
        refused(tmp_path, row, "timed out")
    finally:
        server.silent.set()
    assert socket.getdefaulttimeout() is None


def test_a_missing_file(tmp_path, server, row):
    server.files.clear()
    refused(tmp_path, row, "HTTP 404")


def test_no_connection(tmp_path, monkeypatch, row):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv(published.BASE_URL_VARIABLE, f"http://127.0.0.1:{port}/hub")
    refused(tmp_path, row, "could not be downloaded")


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch, row):
    def interrupted(*arguments, **options):
        folder = options["cache_dir"]
        with open(os.path.join(folder, row.file), "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("keras.utils.get_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny()
    assert cache(tmp_path) == []


def test_a_published_file_that_does_not_fit(row):
    with pytest.raises(ValueError, match="Of another shape"):
        load_weights(build("tiny_h"), row.name)


def test_fetch_fills_the_cache_once(tmp_path, server, row, weights):
    path = download.fetch(row)
    assert path == download.fetch(row) == download.cached_path(row)
    assert len(server.requests) == 1
    assert same(build(NAME, weights=path), weights(NAME))


def test_the_cache_follows_keras(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "elsewhere"))
    assert download.cache_directory() == str(tmp_path / "elsewhere" / "models")
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert download.cache_directory() == str(tmp_path / "me" / ".keras" / "models")
    # As get_file does where the cache cannot be written.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert download.cache_directory() == str(tmp_path / "temporary" / ".keras" / "models")
