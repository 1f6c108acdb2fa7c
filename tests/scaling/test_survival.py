"""`examples/train_distributed.py`, killed in the middle of an epoch, ends with the same weights."""

import os
import pathlib
import re
import shutil
import signal
import time

import keras
import numpy as np
import photographs
import pytest

import keras_internimage  # noqa: F401  (its layers are in the files)

pytest.importorskip("orbax.checkpoint")

BACKEND = keras.config.backend()
SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "train_distributed.py"
# 7 steps an epoch, and a checkpoint after each third one.
IMAGES, STEPS, EVERY = 56, 7, 3
OPTIONS = ("--channels", 16, "--batch-size", 8, "--epochs", 2, "--checkpoint-every", EVERY)

# The three runs share what JAX compiles. Its key would have the address of the function that splits
# the operator, another one in each process; without it the cache must not outlive the test.
COMPILED_ONCE = {"JAX_REMOVE_CUSTOM_PARTITIONING_PTR_FROM_CACHE_KEY": "1"}

# Each process notes which files below RUN its Python code opens to write.
AUDIT = """
import os, sys

out = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_CREAT)

def note(event, arguments):
    if event == "open" and arguments[2] and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""
        if path.startswith(os.environ["RUN"]):
            os.write(out, f"{path}\\n".encode())

sys.addaudithook(note)
"""


@pytest.fixture
def train(start, tmp_path, free_port):
    """Starts the processes of a run, which share its folder."""
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    many = BACKEND != "tensorflow"
    data = photographs.folder(tmp_path / "data", images=IMAGES // 2)
    root = SCRIPT.parents[1]

    def _train(folder):
        address = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2)
        return [
            start(
                *(SCRIPT, folder, "--data", data, *OPTIONS),
                *((*address, "--process", rank) if many else ("--cpu-devices", 2)),
                RUN=str(folder),
                OPENED=str(tmp_path / f"opened_{folder.name}_{rank}"),
                PYTHONPATH=os.pathsep.join([str(tmp_path), str(root)]),
                **(COMPILED_ONCE | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}),
            )
            for rank in range(2 if many else 1)
        ]

    return _train


def finish(processes):
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs[0]


def checkpoints(folder):
    """The steps of which there is a complete checkpoint."""
    if not (folder / "checkpoints").exists():
        return []
    if BACKEND == "tensorflow":  # its list of checkpoints names those that are whole
        listed = folder / "checkpoints" / "checkpoint"
        text = listed.read_text() if listed.exists() else ""
        return sorted(int(n) for n in re.findall(r'^model_checkpoint_path: "ckpt-(\d+)"', text))
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


# TensorFlow traces the training step anew in each of the three runs, for half a minute.
DEVICES = pytest.param("two devices", marks=pytest.mark.slow)


@pytest.mark.parametrize("_on", [DEVICES if BACKEND == "tensorflow" else "two processes"])
def test_killed_in_the_middle_of_an_epoch(train, tmp_path, _on):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert "From step 0 of 14" in finish(train(whole))

    processes = train(broken)
    end = time.monotonic() + 900
    while not checkpoints(broken):
        assert time.monotonic() < end and all(p.poll() is None for p in processes)
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()
    assert not (broken / "model.keras").exists()
    last = checkpoints(broken)[-1]
    assert last % STEPS  # the checkpoint is one of the middle of an epoch
    # As if it had been killed while it wrote the next one.
    if BACKEND == "tensorflow":
        (data,) = (broken / "checkpoints").glob(f"ckpt-{last}.data*")
        shutil.copy(data, str(data).replace(f"-{last}.data", f"-{last + EVERY}.data"))
    else:
        half = broken / "checkpoints" / f"{last + EVERY}.orbax-checkpoint-tmp"
        if not half.exists():
            shutil.copytree(broken / "checkpoints" / str(last), half)
            shutil.rmtree(half / "pytree")

    assert f"From step {last} of 14" in finish(train(broken))
    found, expected = (keras.saving.load_model(f / "model.keras") for f in (broken, whole))
    assert int(found.optimizer.iterations) == 14
    # Keras' files leave out the states of what is random.
    for variables in (lambda m: m.weights, lambda m: m.optimizer.variables):
        for variable, other in zip(variables(found), variables(expected), strict=True):
            if "seed_generator" not in variable.path:
                numbers = (keras.ops.convert_to_numpy(v) for v in (variable, other))
                np.testing.assert_allclose(*numbers, rtol=0, atol=1e-6, err_msg=variable.path)

    # The same command once more changes nothing; other options are refused.
    assert "This run is complete" in finish(train(broken))
    opened = sorted(tmp_path.glob("opened_whole_*"))  # those of the first process first
    written = [set(path.read_text().splitlines()) for path in opened]
    assert written[0]
    if len(written) > 1:
        assert not written[0] & written[1]
        parts = {p.name for p in (whole / "checkpoints").glob("*/pytree/ocdbt.process_*")}
        ranks = range(2 if BACKEND == "jax" else 1)
        assert parts == {f"ocdbt.process_{rank}" for rank in ranks}


@pytest.mark.any_backend
def test_refusals(example, tmp_path, capsys):
    module = example("train_distributed")

    def refused(*options):
        with pytest.raises(SystemExit) as caught:
            example.run(module, tmp_path / "run", *options)
        code = caught.value.code
        return code if isinstance(code, str) else capsys.readouterr().err

    assert "multiple of --processes" in refused("--batch-size", 3, "--processes", 2)
    assert "--coordinator HOST:PORT" in refused("--processes", 2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "options.json").write_text('{"epochs": 9}')
    found = refused("--epochs", 2)
    assert re.search(r"holds a run of other options, .*'epochs': 9", found)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["options.json"]
