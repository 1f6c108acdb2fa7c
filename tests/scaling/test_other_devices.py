"""TensorFlow's mirrored strategy, and two processes of PyTorch or JAX: the same losses as alone."""

import re

import keras
import numpy as np
import pytest

from keras_internimage.ops import dispatch

BACKEND = keras.config.backend()

MODEL = """
import os, sys
import keras, numpy as np

def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 32, 32, 3)).astype("float32"), rng.integers(5, size=40)

def build():
    from small_models import classifier, with_offsets

    keras.utils.set_random_seed(0)
    model = with_offsets(classifier(classes=5, drop_path_rate=0.0))
    # TensorFlow and PyTorch normalise a batch by the images that are on one device.
    model.get_layer("head_norm").trainable = False
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    return model

def fit(model, x, y, batch_size):
    # One step each epoch, so that each loss is that of one step.
    losses = []
    for step in range(5):
        part = slice(step * batch_size, (step + 1) * batch_size)
        history = model.fit(x[part], y[part], batch_size=batch_size, shuffle=False, verbose=0)
        losses += history.history["loss"]
    return losses
"""

# The native operator where there is one, and not by name: it is counted.
COUNT = """
import atexit

CALLS = []

def count():
    from keras_internimage.ops import dispatch

    chosen = dispatch.candidates()[0]
    if dispatch.runs("native"):
        assert chosen.name == "native"
        run = chosen.run
        chosen.run = lambda *arguments: CALLS.append(1) or run(*arguments)
        atexit.register(lambda: print(f"native calls: {len(CALLS)}"))
"""

MIRRORED = """
import tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
count()
with strategy.scope():
    model = build()
np.save("parallel", fit(model, *data(), 8))
"""

# As in Keras' guide to PyTorch on several devices.
DDP = """
import torch
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
count()
model = build()
parallel = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
x, y = (torch.from_numpy(a) for a in data())
losses = []
for step in range(5):
    mine = slice(step * 8 + rank * 4, step * 8 + rank * 4 + 4)
    scores = parallel(x[mine], training=True)
    loss = torch.nn.functional.nll_loss(torch.log(scores), y[mine])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    losses.append(total.item() / 2)
if rank == 0:
    np.save("parallel", losses)
torch.distributed.destroy_process_group()
"""

JAX_PROCESSES = """
rank = int(sys.argv[1])
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
keras.distribution.initialize(os.environ["ADDRESS"], num_processes=2, process_id=rank)
assert jax.process_count() == 2 and len(jax.devices()) == 2
keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
x, y = data()
# Each process has its half of each batch of 8.
mine = [i for i in range(40) if i // 4 % 2 == rank]
count()
losses = fit(build(), x[mine], y[mine], 4)
if rank == 0:
    np.save("parallel", losses)
"""


def check_kernels(output):
    if dispatch.runs("native"):
        (calls,) = re.findall(r"native calls: (\d+)", output)
        assert int(calls) >= 4  # one for each layer


def same_losses(folder):
    names = {}
    exec(MODEL, names)
    alone = names["fit"](names["build"](), *names["data"](), 8)
    parallel = np.load(folder / "parallel.npy")
    assert len(parallel) == len(alone) == 5
    np.testing.assert_allclose(parallel, alone, atol=1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's")
def test_mirrored_strategy(run, tmp_path):
    (tmp_path / "parallel.py").write_text(MODEL + COUNT + MIRRORED)
    check_kernels(run("parallel.py"))
    same_losses(tmp_path)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="PyTorch's and JAX's")
def test_two_processes(start, tmp_path, free_port):
    (tmp_path / "parallel.py").write_text(
        MODEL + COUNT + (DDP if BACKEND == "torch" else JAX_PROCESSES)
    )
    port = free_port()
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ADDRESS": f"127.0.0.1:{port}"}
    processes = [start("parallel.py", rank, **addresses) for rank in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for output in outputs:
        check_kernels(output)
    same_losses(tmp_path)
