"""`internimage-train --variant FlashT`: from which weights dense models start."""

import keras
import numpy as np
import pytest
from checkpoints.conftest import save_pth
from deterministic import model_weights

from keras_internimage.commands.train import checks, cli, device, settings, tasks
from keras_internimage.models import VARIANTS
from keras_internimage.variants import Variant

pytestmark = pytest.mark.any_backend


@pytest.fixture
def row(monkeypatch):
    """FlashInternImage-T with few channels, one or two blocks a stage."""
    flash = {"core_op": "DCNv4", "dcn_output_bias": False, "mlp_fc2_bias": False}
    small = Variant(16, 16, 1, 2, 64, dw_kernel_size=None, **flash)
    monkeypatch.setitem(VARIANTS, "FlashT", small)
    return small.config()


@pytest.mark.parametrize("task", [tasks.SEGMENTATION, tasks.DETECTION], ids=lambda task: task.name)
def test_a_file_of_the_average_alone(task, row, tmp_path, capsys):
    weights = model_weights("tiny_flash_prenorm")
    weights = {k: v for k, v in weights.items() if not k.startswith("levels.1.blocks.1.")}
    path = save_pth(tmp_path / "x.pth", weights, "model_ema")
    size = [row[name] for name in ("channels", "depths", "groups")]
    with pytest.raises(ValueError, match="operator DCNv3. Received: .*, operator DCNv4"):
        both = save_pth(tmp_path / "both.pth", weights, model_ema=weights)
        checks.weights_file(both, task, *size, task.decoder)
    with pytest.raises(ValueError, match="must hold tensors under model, module, state_dict or"):
        checks.weights_file(path, task, *size, task.decoder)
    checks.weights_file(path, task, *size, task.decoder, settings.operator("FlashT"))
    words = f"x --task {task.name} --variant FlashT --decoder-channels 8 --weights".split()
    options = cli.parser().parse_args([*words, str(path)])
    chosen, _ = settings.choose(options, "torch", 4, device.Device("cpu", "CPU"), 2)
    model = task.module().build_model(chosen, 2, str(path))
    assert "layer scales keep their initial value" in capsys.readouterr().out
    (kernel,) = [w for w in model.weights if w.path.endswith("stage3_block2/mlp_fc1/kernel")]
    expected = weights["levels.2.blocks.1.mlp.fc1.weight"].T
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), expected)
