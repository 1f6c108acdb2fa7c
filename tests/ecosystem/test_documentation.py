"""The Python of docs/ecosystem.md runs as it stands, with a small backbone; so does the example."""

import pathlib
import re

import pytest
from ecosystem.small import IMAGES, backbone

from keras_internimage import InternImageBackbone
from keras_internimage.checkpoints import DownloadError

pytestmark = pytest.mark.any_backend
ROOT = pathlib.Path(__file__).resolve().parents[2]
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs/ecosystem.md").read_text(), re.MULTILINE | re.DOTALL
)


def test_blocks_run(monkeypatch, tmp_path):
    for library in ("tensorflow", "keras_hub", "keras_cv"):
        pytest.importorskip(library)

    def small(variant, weights, image_shape):
        assert (variant, weights) == ("T", "imagenet")
        return backbone(image_shape=image_shape)

    from keras_internimage.models import keras_hub as hub

    def small_of_keras_hub(variant, weights, image_shape):
        return hub.InternImageBackbone.from_config(
            small(variant, weights, image_shape).get_config()
        )

    monkeypatch.setattr(InternImageBackbone, "from_variant", small)
    monkeypatch.setattr(hub.InternImageBackbone, "from_variant", small_of_keras_hub)
    monkeypatch.chdir(tmp_path)
    names = {"images": IMAGES}
    shapes = []
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"docs/ecosystem.md, block {number}", "exec"), names)
        shapes.append(getattr(names.get("scores"), "shape", None))
    assert names["features"]["P2"].shape == (2, 16, 16, 8)
    assert shapes == [None, *[(2, 64, 64, 3)] * 3]
    made = [type(names[name]).__name__ for name in ("classifier", "detector")]
    assert made == [
        "InternImageImageClassifier",
        "InternImageObjectDetector",
    ]


@pytest.fixture
def extraction(example):
    pytest.importorskip("sklearn")
    return example("feature_extraction")


def test_feature_extraction(extraction, example, monkeypatch, capsys):
    monkeypatch.setattr(InternImageBackbone, "from_variant", lambda *_, **__: backbone())
    example.run(extraction, "--weights", "none", "--samples", "240")
    printed = capsys.readouterr().out
    found = re.search(
        r"^112 features; (\d+\.\d)% of 80 held-out digits are right\.$", printed, re.M
    )
    assert float(found[1]) > 40  # random features, too, tell digits apart; guessing has 10


def test_feature_extraction_without_a_network(extraction, example, monkeypatch):
    def unavailable(*_, **__):
        raise DownloadError("no route to the server")

    monkeypatch.setattr(InternImageBackbone, "from_variant", unavailable)
    with pytest.raises(SystemExit, match="no route to the server\nWithout the weights: --weights"):
        example.run(extraction)
