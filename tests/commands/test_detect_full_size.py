"""`internimage-detect` with an official file: the memory that a large photograph needs."""

import csv
import json
import subprocess
import sys

import full_size_detector
import keras
import pytest
from PIL import Image

from keras_internimage.weights_convert.export import export

# Megabytes over those of the imports; 750 were seen, of which weights are 200, the photograph 36.
MOST = 1000
SCRIPT = """
import pathlib, re, sys
import keras_internimage.detector.loading
from keras_internimage.commands import detect

def peak():  # getrusage would count what the process that started this one had
    return re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]

before = peak()
code = detect.main(sys.argv[1:])
print(code, before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "torch", reason="its memory is bounded on PyTorch")
@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes")
def test_a_large_photograph(tmp_path):
    model = full_size_detector.mask_rcnn_t()
    model.save_weights(tmp_path / "ours.weights.h5")
    export(str(tmp_path / "ours.weights.h5"), str(tmp_path / "official.pth"))
    Image.fromarray(full_size_detector.image(3000, 4000)).save(tmp_path / "photo.jpg")
    arguments = ["T", "photo.jpg", "--weights", "official.pth", "--out", "seen"]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    code, before, after = map(int, ran.stdout.split())
    assert code == 0
    assert (after - before) / 1024 < MOST
    rows = json.loads((tmp_path / "seen/detections.json").read_text())
    with open(tmp_path / "seen/detections.csv", newline="") as file:
        assert len(rows) == len(list(csv.DictReader(file))) > 20
    assert all(row["segmentation"]["size"] == [3000, 4000] for row in rows)
    assert Image.open(tmp_path / "seen/pictures/photo.jpg").size == (4000, 3000)
