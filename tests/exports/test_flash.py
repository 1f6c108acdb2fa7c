"""FlashInternImage in every format: DCNv4 as a standard `DeformConv`, or by standard operations."""

import keras
import numpy as np
import pytest
import small_models
from exports.test_export import FORMATS, filled, images, run, scores

from keras_internimage import export
from keras_internimage.exports import formats

BACKEND = keras.config.backend()
FLASH = {"core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False}


def own_formats():
    return [name for name in FORMATS[BACKEND] if formats.of(name).backend in (None, BACKEND)]


@pytest.mark.parametrize("name", own_formats())
def test_every_format_computes_what_the_model_does(tmp_path, name):
    options = {"offset_scale": 0.5, "dw_kernel_size": 3, "post_norm": True, "layer_scale": 0.5}
    model = filled(small_models.classifier(classes=7, input_shape=(64, 64, 3), **options, **FLASH))
    export(model, tmp_path / name)
    x = images(2, 64, 64, 3)
    (found,) = run(tmp_path / name, x)
    np.testing.assert_allclose(found, scores(model, x), atol=1e-5)
    if name.endswith(".onnx"):
        import onnx

        nodes = onnx.load(tmp_path / name).graph.node
        assert [node.op_type for node in nodes].count("DeformConv") == 4
        assert {node.domain for node in nodes} <= {"", "ai.onnx"}
