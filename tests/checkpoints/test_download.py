"""Downloads from a real server on this machine."""

import dataclasses
import hashlib
import http.server
import os
import socket
import threading

import pytest
from checkpoints.conftest import build, same, save_pth

import keras_internimage
from keras_internimage.checkpoints import DownloadError, convert, download, load_weights, published
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
    return sorted(os.listdir(tmp_path / "home" / "models"))


def tiny(weights="imagenet", **changes):
    config = {**TINY_VARIANT.config(), "classes": 10, "input_shape": (64, 64, 3), **changes}
    if config.get("include_top") is False:
        config.pop("classes")
    return keras_internimage.InternImage(**config, weights=weights, variant="Tiny")


def test_a_keyword_downloads_converts_and_caches(tmp_path, server, row, weights, capfd):
    assert same(tiny(), weights(NAME))
    assert server.requests == [f"/hub/{row.revision}/{row.name}.pth"]
    assert cache(tmp_path) == [f"{row.name}.weights.h5"]
    assert f"Downloading data from {row.url}" in capfd.readouterr().out
    # From now on without a connection.
    server.files.clear()
    assert same(tiny(), weights(NAME))
    assert same(build(NAME, weights=row.name), weights(NAME))
    assert len(server.requests) == 1
    cached = os.path.join(tmp_path, "home", "models", f"{row.name}.weights.h5")
    differences, extra, lacking = convert.verify(cached, tmp_path / "served.pth")
    assert set(differences.values()) == {0.0} and not extra and not lacking


@pytest.mark.parametrize(
    "changes", [{"include_top": False}, {"classes": 3}, {"dtype": "float16"}, {"drop_rate": 0.1}]
)
def test_the_cached_file_holds_everything(tmp_path, server, row, weights, changes):
    """Also if the first model asked for has not all of it."""
    tiny(**changes)
    server.files.clear()
    assert same(tiny(), weights(NAME))
    assert cache(tmp_path) == [f"{row.name}.weights.h5"]


def test_22k_weights_for_1k(tmp_path, server, row, weights, monkeypatch, capsys):
    row = dataclasses.replace(row, classes=21841)
    monkeypatch.setattr(published, "PUBLISHED", (*published.PUBLISHED[:-1], row))
    model = tiny("imagenet22k", classes=3)
    assert "starts fresh, with 3 classes" in capsys.readouterr().out
    assert same(model, weights(NAME), but=["head."])


def refused(tmp_path, message):
    with pytest.raises(DownloadError, match=message) as caught:
        tiny()
    text = str(caught.value)
    assert "Without a connection: download http" in text and "SHA-256" in text
    assert cache(tmp_path) == []


def test_a_wrong_hash(tmp_path, server, row, weights):
    (path,) = server.files
    content = server.files[path]
    server.files[path] = content[:-1] + bytes([content[-1] ^ 1])
    refused(tmp_path, "file hash does not match")
    server.files[path] = content
    assert same(tiny(), weights(NAME))


@pytest.mark.parametrize("cut", [0, 100_000])
def test_a_broken_connection(tmp_path, server, row, cut):
    server.cut = cut
    refused(tmp_path, "could not be downloaded")


def test_a_silent_connection(tmp_path, server, row, monkeypatch):
    monkeypatch.setattr(download, "SECONDS_WITHOUT_DATA", 0.2)
    server.silent = threading.Event()
    try:
        refused(tmp_path, "timed out")
    finally:
        server.silent.set()
    assert socket.getdefaulttimeout() is None


def test_a_missing_file(tmp_path, server, row):
    server.files.clear()
    refused(tmp_path, "404")


def test_no_connection(tmp_path, monkeypatch, row):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv(published.BASE_URL_VARIABLE, f"http://127.0.0.1:{port}/hub")
    refused(tmp_path, "could not be downloaded")


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


def test_a_published_file_that_does_not_fit_leaves_nothing(tmp_path, row, weights):
    with pytest.raises(ValueError, match="Of another shape"):
        load_weights(build("tiny_h"), row.name)
    assert cache(tmp_path) == []


def test_a_damaged_cache_says_what_to_do(tmp_path, row):
    path = download.cached_path(row)
    with open(path, "wb") as file:
        file.write(b"damaged")
    with pytest.raises(ValueError, match=f"delete it to download it again.*{path}"):
        tiny()


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
