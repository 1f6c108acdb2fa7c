"""Files of every format, from every backend, run in their own runtimes."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import small_models
from PIL import Image
from small_models import one_block

from keras_internimage import export, preprocess_input
from keras_internimage.exports import benchmark, formats, model_transforms
from keras_internimage.layers import DCNv3
from keras_internimage.ops import dispatch

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
BACKEND = keras.config.backend()
# What a writer can do besides is tested where it runs.
by_torch = pytest.mark.skipif(BACKEND != "torch", reason="written by PyTorch")
by_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="written by TensorFlow")


def filled(model):
    return small_models.with_offsets(model, scale=0.3)


def classifier(input_shape=(64, 64, 3), **kwargs):
    kwargs = {"classes": 7, "drop_path_rate": 0.1, **kwargs}
    return filled(small_models.classifier(input_shape=input_shape, **kwargs))


def scores(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def run(path, images):
    target = formats.of(path)
    return list(formats.writer(target).load(path, target.name)(images).values())


def images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


# Each backend writes its own formats in the process. Each ordered pair of a backend and another
# that writes for it is covered once: TensorFlow and PyTorch are the only two that write.
FORMATS = {
    "torch": ["model", "model.onnx", "model.xml", "model.pt2"],
    "tensorflow": ["model", "model.tflite", "model.pt2"],
    "jax": ["model.tflite", "model.onnx"],
}


@pytest.mark.parametrize("name", FORMATS[BACKEND])
def test_every_format_computes_what_the_model_does(tmp_path, name):
    # What another backend writes was tested there, with all parts; here it is handed over.
    own = formats.of(tmp_path / name).backend == BACKEND
    model = classifier() if own else one_block()
    assert export(model, tmp_path / name) == tmp_path / name
    for batch in (1, 5):
        x = images(batch, 64, 64, 3)
        (found,) = run(tmp_path / name, x)
        np.testing.assert_allclose(found, scores(model, x), atol=1e-5)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {name} | ({"model.bin"} if name == "model.xml" else set())


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        pytest.param("model", "mixed_bfloat16", marks=by_tensorflow),
        pytest.param("model.tflite", "mixed_float16", marks=by_tensorflow),
        pytest.param("model.onnx", "mixed_float16", marks=by_torch),
        pytest.param("model.xml", "bfloat16", marks=by_torch),
        pytest.param("model.pt2", "float16", marks=by_torch),
    ],
)
def test_a_model_of_less_precision_is_written_in_float32(tmp_path, capsys, name, policy):
    def small():
        images = keras.Input((64, 64, 3))
        x = keras.layers.Conv2D(8, 4, strides=4, data_format="channels_last")(images)
        x = DCNv3(groups=2)(x)
        x = keras.layers.GlobalAveragePooling2D(data_format="channels_last")(x)
        return filled(keras.Model(images, keras.layers.Dense(7)(x)))

    keras.config.set_dtype_policy("float32")
    full = small()
    keras.config.set_dtype_policy(policy)
    model = small()
    model.set_weights(full.get_weights())
    full.set_weights([np.asarray(w, "float32") for w in model.get_weights()])
    export(model, tmp_path / name)
    assert f"The model computes by {policy}" in capsys.readouterr().out
    x = images(2, 64, 64, 3)
    (found,) = run(tmp_path / name, x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, scores(full, x), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("model", marks=by_tensorflow),
        pytest.param("model.onnx", marks=by_torch),
        pytest.param("model.xml", marks=by_torch),
        pytest.param("model.pt2", marks=by_torch),
    ],
)
def test_any_size_of_image(tmp_path, name):
    model = one_block((None, None))
    export(model, tmp_path / name)
    for size in ((64, 64), (75, 49), (96, 128)):
        x = images(2, *size, 3)
        np.testing.assert_allclose(run(tmp_path / name, x)[0], scores(model, x), atol=1e-5)


@by_torch
def test_the_size_can_be_given(tmp_path):
    model = one_block((None, None))
    export(model, tmp_path / "model.onnx", input_shape=(64, 96, 3), batch_size=2)
    x = images(2, 64, 96, 3)
    np.testing.assert_allclose(run(tmp_path / "model.onnx", x)[0], scores(model, x), atol=1e-5)


@by_torch
def test_onnx_has_one_standard_node_for_each_dcnv3(tmp_path):
    import onnx

    labels = [f"class {i}" for i in range(7)]
    model = classifier(offset_scale=2.0, remove_center=True)
    export(model, tmp_path / "model.onnx", labels=labels)
    proto = onnx.load(tmp_path / "model.onnx")
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("DeformConv") == 4
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    assert {entry.key: entry.value for entry in proto.metadata_props}["labels"].split(
        "\n"
    ) == labels
    sizes = [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 64, 64, 3]


@by_torch
def test_labels_in_other_places(tmp_path):
    import openvino
    import torch

    labels = [f"class {i}" for i in range(7)]
    export(one_block(), tmp_path / "model.pt2", labels=labels)
    extra = {"labels.txt": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert extra["labels.txt"].split("\n") == labels
    export(one_block(), tmp_path / "model.xml", labels=labels)
    model = openvino.Core().read_model(tmp_path / "model.xml")
    assert model.get_rt_info(["model_info", "labels"]).astype(str).split("\n") == labels


@by_torch
def test_weights_are_once_in_a_program(tmp_path):
    """And keep their names."""
    import torch

    model = one_block()
    export(model, tmp_path / "model.pt2", verify=False)
    program = torch.export.load(tmp_path / "model.pt2")
    assert sum(v.numel() for v in program.state_dict.values()) == model.count_params()
    names = {weight.path for weight in model.weights}
    assert {name.removeprefix("model._torch_params.") for name in program.state_dict} == names
    constants = sum(v.numel() for v in program.constants.values())
    assert constants < 0.1 * model.count_params()


@by_torch
@pytest.mark.skipif(not dispatch.runs("native"), reason="there is no native operator")
def test_a_native_program_brings_its_library(tmp_path):
    model, x = one_block(), images(3, 64, 64, 3)
    export(model, tmp_path / "model.pt2", native=True)
    np.save(tmp_path / "x.npy", x)
    script = """
import glob, sys
import numpy as np, torch
sys.modules["keras_internimage"] = sys.modules["keras"] = None
for library in glob.glob("model.pt2.libraries/dcnv3_*"):
    torch.ops.load_library(library)
program = torch.export.load("model.pt2")
assert any("keras_internimage.dcnv3" in str(node.target) for node in program.graph.nodes)
with torch.no_grad():
    np.save("y.npy", program.module()(torch.from_numpy(np.load("x.npy")))[0].numpy())
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), scores(model, x), atol=1e-5)


@by_torch
@pytest.mark.slow
def test_a_program_becomes_a_library(tmp_path):
    """By AOTInductor, for programs without Python."""
    import torch

    model = one_block()
    export(model, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    package = str(tmp_path / "library.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=package)
    compiled = torch._inductor.aoti_load_package(package)
    for batch in (2, 5):
        x = images(batch, 64, 64, 3)
        found = compiled(torch.from_numpy(x))[0].numpy()
        np.testing.assert_allclose(found, scores(model, x), atol=1e-5)


@by_torch
def test_benchmark(tmp_path, capsys):
    """It takes from the file what the file knows, also that its images are uint8."""
    export(one_block(), tmp_path / "model.onnx", include_preprocessing=True)
    found = benchmark(tmp_path / "model.onnx", batch_size=2, rounds=3, threads=1)
    assert found["milliseconds"] > 0
    assert found["megabytes"] == pytest.approx((tmp_path / "model.onnx").stat().st_size / 1e6)
    assert "2 of 64x64 pixels" in capsys.readouterr().out


@by_torch
def test_onnx_by_gathers(tmp_path):
    import onnx

    model = one_block()
    export(model, tmp_path / "model.onnx", deform_conv=False)
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "DeformConv" not in kinds
    assert kinds & {"Gather", "GatherND", "GatherElements"}


@by_tensorflow
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_litert_of_less_precision(tmp_path, precision):
    model = one_block(channels=64)
    export(model, tmp_path / "full.tflite")
    export(model, tmp_path / "less.tflite", precision=precision, batch_size=1)
    x = images(1, 64, 64, 3)
    (found,) = run(tmp_path / "less.tflite", x)
    np.testing.assert_allclose(found, scores(model, x), atol=0.02)
    full, less = ((tmp_path / f"{n}.tflite").stat().st_size for n in ("full", "less"))
    assert less < 0.6 * full


@by_tensorflow
def test_litert_calibrated(tmp_path):
    """Activations are int8 as well, with scales from images of the user's."""
    from ai_edge_litert.interpreter import Interpreter

    model, x = one_block(), images(5, 64, 64, 3)
    options = {"precision": "int8", "batch_size": 2, "calibration": x}
    export(model, tmp_path / "model.tflite", **options)
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    details = {detail["index"]: detail["dtype"] for detail in interpreter.get_tensor_details()}
    products = [
        [details[index] for index in operation["inputs"][:2]]
        for operation in interpreter._get_ops_details()
        if operation["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]
    assert len(products) == 9  # all there are
    assert all(dtypes == [np.int8, np.int8] for dtypes in products)
    (found,), expected = run(tmp_path / "model.tflite", x[:2]), scores(model, x[:2])
    assert np.sqrt(np.square(found - expected).mean()) < 0.15 * expected.std()


@by_tensorflow
def test_litert_needs_nothing_but_builtins(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    export(one_block(), tmp_path / "model.tflite", batch_size=1)
    kinds = {o["op_name"] for o in Interpreter(str(tmp_path / "model.tflite"))._get_ops_details()}
    assert not {kind for kind in kinds if kind.startswith("Flex") or "CUSTOM" in kind}
    # What a matrix product on images leaves behind when the batch is unknown.
    assert "REDUCE_PROD" not in kinds
    x = images(1, 64, 64, 3)
    slow = formats.runner(tmp_path / "model.tflite", delegate=False)  # without XNNPACK
    np.testing.assert_allclose(*slow(x).values(), *run(tmp_path / "model.tflite", x), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [pytest.param("model", marks=by_tensorflow), pytest.param("model.pt2", marks=by_torch)],
)
def test_bfloat16(tmp_path, name):
    model, x = one_block(), images(2, 64, 64, 3)
    # Operations stay between layers of another type.
    model = keras.Model(model.input, keras.ops.multiply(model.output[..., :6], 2.0))
    export(model, tmp_path / name, precision="bfloat16")
    (found,), expected = run(tmp_path / name, x), scores(model, x)
    assert found.dtype == np.float32
    # Close, but not what float32 would give. How close depends on the processor: some add up
    # bfloat16 in bfloat16.
    own = np.abs(scores(model_transforms.with_dtype(model, "bfloat16"), x) - expected).max()
    assert 1e-5 < np.abs(found - expected).max() < max(0.1 * expected.std(), 2 * own)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("model", marks=by_tensorflow),
        pytest.param("model.onnx", marks=by_torch),
        pytest.param("model.pt2", marks=by_torch),
    ],
)
def test_a_pyramid_keeps_its_levels_names(tmp_path, name):
    backbone = filled(small_models.backbone(image_shape=(64, 64, 3)))
    model = keras.Model(backbone.inputs, backbone.pyramid_outputs)
    export(model, tmp_path / name)
    target = formats.of(tmp_path / name)
    found = formats.writer(target).load(tmp_path / name, target.name)(images(1, 64, 64, 3))
    sizes = {"P2": 16, "P3": 8, "P4": 4, "P5": 2}
    if name == "model.pt2":  # where outputs have no names
        assert [level.shape[1] for level in found.values()] == list(sizes.values())
    else:
        assert {key: level.shape[1] for key, level in found.items()} == sizes


@by_tensorflow
@pytest.mark.skipif(not dispatch.runs("native"), reason="there is no native operator")
def test_a_native_saved_model_brings_its_library(tmp_path):
    """And loads in a process that has TensorFlow only."""
    model = one_block()
    export(model, tmp_path / "model", native=True, include_preprocessing=True)
    libraries = sorted(f.name for f in (tmp_path / "model" / "assets.extra").iterdir())
    assert [name.split("-")[0].split(".")[0] for name in libraries] == [
        "dcnv3_tensorflow",
        "libdcnv3_core",
    ]
    content = (tmp_path / "model" / "saved_model.pb").read_bytes()
    assert b"KerasInternimageDcnv3" in content
    export(model, tmp_path / "portable", include_preprocessing=True)
    assert b"KerasInternimageDcnv3" not in (tmp_path / "portable" / "saved_model.pb").read_bytes()
    check_example("run_saved_model.py", tmp_path / "model", model)


@pytest.mark.parametrize(
    ("name", "script"),
    [
        pytest.param("model", "run_saved_model.py", marks=by_tensorflow),
        pytest.param("model.tflite", "run_litert.py", marks=by_tensorflow),
        pytest.param("model.onnx", "run_onnx.py", marks=by_torch),
    ],
)
def test_examples_run_without_this_package(tmp_path, name, script):
    model = one_block()
    labels = [f"name {i}" for i in range(7)]
    export(model, tmp_path / name, include_preprocessing=True, labels=labels)
    check_example(script, tmp_path / name, model, "name")


def check_example(script, path, model, label="class"):
    """It names the class that the model does, in a process that cannot import this package."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
    photograph = path.parent / "photo.png"
    Image.fromarray(pixels).save(photograph)
    blocker = (
        "import runpy, sys\n"
        "for name in ('keras_internimage', 'keras'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", blocker, EXAMPLES / script, path, photograph],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    assert result.returncode == 0, result.stderr
    best = scores(model, preprocess_input(pixels[None]))[0].argmax()
    assert f"photo.png: {label} {best}," in result.stdout
