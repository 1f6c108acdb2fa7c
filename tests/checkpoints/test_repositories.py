"""Repositories in the published form: as folders, and from a hub with and without its library."""

import importlib.util
import json

import keras
import numpy as np
import pytest
from checkpoints import hub_server
from checkpoints.conftest import build, save_pth
from PIL import Image

import keras_internimage
from keras_internimage import predictor
from keras_internimage.checkpoints import CheckpointError, DownloadError, hub, repositories

pytestmark = pytest.mark.any_backend
ADDRESS, NAME = "hf://made-up/tiny", "tiny_remove_center"


@pytest.fixture
def served(tmp_path, weights):
    """A hub with `made-up/tiny` in one file and `made-up/parts` in three."""
    with hub_server.running() as server:
        for name, parts in (("tiny", 1), ("parts", 3)):
            folder = hub_server.repository(tmp_path / "hub" / name, NAME, weights(NAME), parts)
            server.repositories[f"made-up/{name}"] = folder
        yield server


@pytest.fixture(params=["library", "keras"])
def server(request, served, tmp_path, monkeypatch):
    """That hub; what is asked for goes through `huggingface_hub`, or through Keras alone."""
    monkeypatch.setenv(hub.ENDPOINT_VARIABLE, served.url)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    if request.param == "library":
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    else:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n, *a: None if n == "huggingface_hub" else find(n)
        )
    return served


def assert_same(model, other):
    for own, theirs in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(own), keras.ops.convert_to_numpy(theirs)
        )


def official(tmp_path, weights):
    path = save_pth(tmp_path / "official.pth", weights(NAME))
    return build(NAME, weights=path)


@pytest.mark.parametrize("name", ["tiny", "parts"])
def test_from_the_hub(server, name, tmp_path, weights):
    model = keras_internimage.from_preset(f"hf://made-up/{name}")
    assert model.input_shape == (None, 64, 64, 3) and model.output_shape == (None, 10)
    assert_same(model, official(tmp_path, weights))
    asked = {path.rpartition("/")[2] for _, path in server.requests}
    assert not any(file.endswith(".py") for file in asked)
    # From the cache, with the server gone.
    server.shutdown()
    server.server_close()
    again = keras_internimage.from_preset(f"hf://made-up/{name}")
    assert_same(again, model)


def test_a_revision(server):
    found = repositories.open_repository(f"{ADDRESS}@v1")
    assert found.name == f"{ADDRESS}@v1" and found.weights.is_file()
    assert any("/resolve/v1/config.json" in path for _, path in server.requests)
    with pytest.raises(DownloadError, match=r"config.json of hf://made-up/tiny@v2 could not"):
        repositories.open_repository(f"{ADDRESS}@v2")


def test_architecture_alone(server, weights):
    model = keras_internimage.from_preset(ADDRESS, load_weights=False, classes=3)
    assert model.output_shape == (None, 3)
    assert not any("safetensors" in path for _, path in server.requests)
    backbone = keras_internimage.InternImageBackbone.from_preset(ADDRESS)
    whole = keras_internimage.from_preset(ADDRESS)
    values = {v.path: keras.ops.convert_to_numpy(v) for v in whole.variables}
    for variable in backbone.variables:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), values[variable.path])


def test_what_goes_wrong(server, tmp_path):
    with pytest.raises(DownloadError, match="hf://made-up/none could not be downloaded"):
        repositories.open_repository("hf://made-up/none")
    server.refused["made-up/gated"] = (403, "GatedRepo")
    with pytest.raises(DownloadError, match=r"gated"):
        repositories.open_repository("hf://made-up/gated")
    (tmp_path / "hub" / "tiny" / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match=r"model.safetensors of hf://made-up/tiny could not"):
        repositories.open_repository(ADDRESS)
    (tmp_path / "hub" / "parts" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(DownloadError, match=r"model-00002-of-00003.safetensors of hf://made-up/p"):
        repositories.open_repository("hf://made-up/parts")
    other = tmp_path / "hub" / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    server.repositories["made-up/other"] = other
    with pytest.raises(CheckpointError, match="model_type='resnet', hf://made-up/other"):
        keras_internimage.load("hf://made-up/other")


def test_a_file_that_is_cut_off_is_not_kept(server):
    server.cut = 1000
    with pytest.raises((DownloadError, CheckpointError)):
        keras_internimage.from_preset(ADDRESS)
    server.cut = None
    assert keras_internimage.from_preset(ADDRESS).count_params()


@pytest.mark.parametrize("address", ["hf://tiny", "hf://a/b/c", "hf://a/b@", "hf://../b", "hf://"])
def test_addresses(address):
    with pytest.raises(CheckpointError, match="must be hf://organisation/name"):
        repositories.open_repository(address)


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path, weights):
        labels = {str(n): f"kind {n}" for n in range(10)}
        return hub_server.repository(tmp_path / "own", NAME, weights(NAME), id2label=labels)

    def test_load(self, folder, tmp_path, weights):
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 256, (90, 70, 3), "uint8")).save(tmp_path / "x.png")
        loaded = keras_internimage.load(folder)
        assert loaded.labels[3] == "kind 3" and loaded.resolution == 64
        plain = predictor.Predictor(official(tmp_path, weights), loaded.labels, 64)
        found, other = (made.predict(tmp_path / "x.png") for made in (loaded, plain))
        np.testing.assert_array_equal(found.scores, other.scores)
        assert found[0] == other[0]

    def test_names_of_its_own(self, folder):
        (folder / "config.json").write_text(json.dumps(hub_server.config(NAME)))
        assert keras_internimage.load(folder).labels == tuple("0123456789")

    @pytest.mark.parametrize(
        ("file", "changes", "message"),
        [
            ("config.json", {"core_op": "DCNv9"}, "core_op of config.json must be 'DCNv3' or"),
            ("config.json", {"act_layer": "ReLU"}, "act_layer of config.json must be 'GELU'"),
            ("config.json", {"groups": None}, "config.json must have groups"),
            ("config.json", {"num_classes": "ten"}, "must be a positive integer"),
            ("config.json", {"num_classes": 9}, "name each of the 9 classes. Received: 10 names"),
            ("config.json", {"id2label": {"a": "b"}}, "id2label of config.json must name"),
            ("preprocessor_config.json", {"resample": 2}, "resample of preprocessor_config.json"),
            ("preprocessor_config.json", {"crop_size": 48}, "must be one side in pixels"),
            ("preprocessor_config.json", {"image_mean": [0.5] * 3}, "image_mean of preprocessor"),
        ],
    )
    def test_what_it_cannot_be(self, folder, file, changes, message):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **changes}))
        with pytest.raises(CheckpointError, match=message):
            keras_internimage.load(folder)

    def test_files_that_are_missing_or_damaged(self, folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="must have model.safetensors or model.safe"):
            keras_internimage.load(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"config.json must be JSON. Received: .*own"):
            keras_internimage.load(folder)

    def test_sizes_as_newer_files_have_them(self, folder):
        for size in ({"shortest_edge": 64}, {"height": 64, "width": 64}):
            content = {
                **hub_server.PREPROCESSOR,
                "size": size,
                "crop_size": {"height": 64, "width": 64},
            }
            (folder / "preprocessor_config.json").write_text(json.dumps(content))
            assert repositories.open_repository(folder).resolution == 64
