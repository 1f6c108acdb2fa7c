"""Mask R-CNN T as a file, at the size of the published accuracy: the same detections."""

import full_size_detector
import pytest
from exports.test_detectors import BACKEND, FORMATS, check_same

from keras_internimage import export

SIZE = (800, 1216, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS[BACKEND])
def test_mask_rcnn_t(tmp_path, name):
    model = full_size_detector.mask_rcnn_t()
    export(model, tmp_path / name, input_shape=SIZE, batch_size=1, include_preprocessing=True)
    check_same(model, tmp_path / name, full_size_detector.image(*SIZE[:2])[None])
