"""What the benchmarks measure against is the official model, and computes what the package does."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest
from deterministic import uniform
from models import reference

from keras_internimage.weights_convert.export import export

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.any_backend

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
TOLERANCE = 2e-5


def _module(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


official = _module("official")


def logits(model, x):
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        return model.eval()(images).numpy()


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * abs(expected).max())


def config(name):
    arguments = reference.config(name)
    arguments["num_classes"] = arguments.pop("classes")
    return arguments


@pytest.mark.parametrize("name", ["tiny_prenorm", "tiny_postnorm"])
def test_an_exported_model_has_the_same_logits(tmp_path, name):
    ours = reference.classifier(name)
    ours.save_weights(tmp_path / "x.weights.h5")
    export(tmp_path / "x.weights.h5", tmp_path / "x.pth")
    model = official.load(tmp_path / "x.pth", **config(name))
    found = logits(model, reference.images(name))
    assert_close(found, reference.as_array(reference.call(ours, reference.images(name))))
    assert_close(found, reference.numbers(name)["logits"])


def test_gradients_are_the_official_ones():
    name = "tiny_prenorm"
    stored = reference.numbers(name)
    model = official.Classifier(**config(name)).eval()
    shapes, seed = reference.official_shapes(name), int(stored["seed"])
    weights = {key: reference.official_weight(key, shapes[key], seed) for key in shapes}
    model.load_state_dict({key: torch.from_numpy(w) for key, w in weights.items()}, strict=True)
    images = torch.from_numpy(np.ascontiguousarray(reference.images(name).transpose(0, 3, 1, 2)))
    weight = torch.from_numpy(uniform("loss_weight", stored["logits"].shape, seed))
    (model(images) * weight).sum().backward()
    expected = reference.official_gradients(name)
    for key, parameter in model.named_parameters():
        norm = float(parameter.grad.norm())
        assert norm == pytest.approx(expected[key][0], rel=1e-4), key


def test_the_default_is_internimage_t():
    with torch.device("meta"):
        state = official.Classifier().state_dict()
    assert {k: tuple(t.shape) for k, t in state.items()} == reference.official_shapes(
        "internimage_t"
    )


def test_upernet_is_the_official_one(monkeypatch):
    name = "upernet_internimage_t"
    stored, x = reference.numbers(name), reference.images(name)
    shapes, seed = reference.official_shapes(name), int(stored["seed"])
    # It imports its neighbour by name, as all of that folder do.
    monkeypatch.setitem(sys.modules, "official", official)
    with torch.device("meta"):
        model = _module("official_upernet").UperNet().eval()
    weights = {
        key: torch.from_numpy(reference.official_weight(key, shape, seed))
        if shape
        else torch.zeros((), dtype=torch.int64)  # the counters of the batch normalisations
        for key, shape in shapes.items()
        if not key.startswith("auxiliary_head")
    }
    model.load_state_dict(weights, strict=True, assign=True)
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        assert_close(model.decode_head(model.backbone(images)).numpy(), stored["logits"])
        assert model(images).shape == (1, 150, *x.shape[1:3])
