"""Trains an InternImage on one device or many, in one process or many, and survives being killed.

    python examples/train_distributed.py RUN                    # all devices of this machine
    python examples/train_distributed.py RUN --coordinator 10.0.0.1:1234 --processes 2 --process 0
    torchrun --nproc-per-node 8 examples/train_distributed.py RUN

RUN is a folder for checkpoints, written every few steps by Orbax or, for TensorFlow's mirrored
variables, by TensorFlow. After any kind of stop, the same command resumes from the last complete
checkpoint and ends with the same weights. With several processes, all must see that folder, and
each runs the same command with its own --process.

Data are scikit-learn's handwritten digits, or --data: a folder of images, a subfolder a class. Each
step's batch is drawn by its number alone and each process reads its own share of it, so there is
nothing about the data to be kept.

- JAX: all devices of all processes (`keras.distribution.DataParallel`).
- PyTorch: one device a process (`torch.nn.parallel.DistributedDataParallel`).
- TensorFlow: all devices of one process (`tf.distribute.MirroredStrategy`).
"""

import argparse
import contextlib
import json
import os
import pathlib

import keras
import numpy as np

import keras_internimage
from keras_internimage.preprocessing import load_image, preprocess_input
from keras_internimage.variants import VARIANTS, function_name

BACKEND = keras.backend.backend()
# What a run must not change half way: with it, the weights at the end would be others.
FIXED = "data variant channels weights size epochs batch_size learning_rate seed".split()


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path, help="folder of the run")
    parser.add_argument("--data", help="folder of images, a subfolder for each class")
    parser.add_argument("--variant", choices=list(VARIANTS), help="default: a small one,")
    parser.add_argument("--channels", type=int, default=32, help="with so many channels at first")
    parser.add_argument("--weights", help="'imagenet', or a path; default: random")
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--cpu-devices", type=int, help="divide the processor, to try this out")
    address = ":".join(os.environ.get(f"MASTER_{part}", "") for part in ("ADDR", "PORT"))
    environment = os.environ.get
    parser.add_argument("--coordinator", default=address, help="HOST:PORT of process 0")
    parser.add_argument("--processes", type=int, default=int(environment("WORLD_SIZE", 1)))
    parser.add_argument("--process", type=int, default=int(environment("RANK", 0)))
    options = parser.parse_args()
    if options.batch_size % options.processes:
        parser.error(
            "--batch-size must be a multiple of --processes. "
            f"Received: {options.batch_size} and {options.processes}"
        )
    if options.processes > 1 and options.coordinator == ":":
        parser.error(f"--processes {options.processes} needs a --coordinator HOST:PORT")
    if options.processes > 1 and BACKEND == "tensorflow":
        parser.error("several processes need KERAS_BACKEND=jax or torch. Received: tensorflow")
    return options


def connect(options):
    """Joins the processes; the scope in which the model is made."""
    many, here = options.processes > 1, options.process
    if BACKEND == "jax":
        import jax

        if options.cpu_devices:
            jax.config.update("jax_num_cpu_devices", options.cpu_devices)
        if many:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            keras.distribution.initialize(options.coordinator, options.processes, here)
        if jax.device_count() > 1:
            parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
            keras.distribution.set_distribution(parallel)
    elif BACKEND == "torch" and many:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", here)))
        torch.distributed.init_process_group(
            init_method=f"tcp://{options.coordinator}", world_size=options.processes, rank=here
        )
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        if options.cpu_devices:
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0],
                [tf.config.LogicalDeviceConfiguration()] * options.cpu_devices,
            )
        kind = "CPU" if options.cpu_devices else "GPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        if len(devices) > 1:
            return tf.distribute.MirroredStrategy(devices).scope()
    return contextlib.nullcontext()


class Data:
    def __init__(self, folder, size):
        self.size = size
        if folder is None:
            from sklearn import datasets

            digits = datasets.load_digits()
            self.labels = digits.target
            grey = np.repeat(digits.images[..., None] * (255 / 16), 3, axis=-1).astype("float32")
            self.images = preprocess_input(keras.ops.image.resize(grey, (size, size)))
            self.images = keras.ops.convert_to_numpy(self.images)
        else:
            names = sorted(path.name for path in pathlib.Path(folder).iterdir() if path.is_dir())
            files = [
                (path, label)
                for label, name in enumerate(names)
                for path in sorted(pathlib.Path(folder, name).iterdir())
            ]
            self.files, self.labels = [p for p, _ in files], np.array([label for _, label in files])
        self.classes = int(self.labels.max()) + 1

    def read(self, rows):
        if hasattr(self, "images"):
            return self.images[rows]
        return np.stack([load_image(self.files[row], self.size) for row in rows])

    def batches(self, options, step):
        """This process' share of the batches from a step on."""
        steps = len(self.labels) // options.batch_size
        while True:
            epoch, position = divmod(step, steps)
            order = np.random.default_rng((options.seed, epoch)).permutation(len(self.labels))
            rows = order[position * options.batch_size :][: options.batch_size]
            mine = np.split(rows, options.processes)[options.process]
            yield self.read(mine), self.labels[mine]
            step += 1


def build(options, classes, steps):
    arguments = {
        "input_shape": (options.size, options.size, 3),
        "classes": classes,
        "drop_path_rate": 0.1,
        "weights": options.weights,
    }
    keras.utils.set_random_seed(options.seed)  # all processes start from the same weights
    if options.variant:
        model = getattr(keras_internimage, function_name(options.variant))(**arguments)
    else:
        groups = [options.channels * 2**stage // 16 for stage in range(4)]
        model = keras_internimage.InternImage(options.channels, (1, 1, 1, 1), groups, **arguments)
    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.05, global_clipnorm=5.0)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def average_gradients(model):
    """PyTorch: the model's training step, with gradients averaged over the processes."""
    import torch

    parallel = torch.nn.parallel.DistributedDataParallel(model)

    def train_step(data):
        images, labels = data
        model.zero_grad()
        scores = parallel(images, training=True)
        loss = model.compute_loss(images, labels, scores, training=True)
        loss.backward()
        weights = model.trainable_weights
        with torch.no_grad():
            model.optimizer.apply([weight.value.grad for weight in weights], weights)
        for metric in model.metrics:
            values = (loss,) if metric.name == "loss" else (labels, scores)
            metric.update_state(*values)
        return model.get_metrics_result()

    model.train_step = train_step


def same_run(options):
    """Keeps the options that make the result, and refuses to go on with others."""
    found = {name: getattr(options, name) for name in FIXED}
    path = options.run / "options.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if kept != found:
            changed = {name: found[name] for name in FIXED if kept.get(name) != found[name]}
            before = {name: kept.get(name) for name in changed}
            raise SystemExit(
                f"{options.run} holds a run of other options, {before}: give the same, or another "
                f"folder. Received: {changed}"
            )
    elif options.process == 0:
        write_whole(path, lambda unfinished: unfinished.write_text(json.dumps(found, indent=1)))


def write_whole(path, write):
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    os.replace(unfinished, path)


def main():
    options = parse()
    first = options.process == 0
    options.run = options.run.absolute()
    options.run.mkdir(parents=True, exist_ok=True)
    same_run(options)
    result = options.run / "model.keras"
    if result.exists():
        print(f"This run is complete: {result}")
        return
    with connect(options):
        data = Data(options.data, options.size)
        steps = len(data.labels) // options.batch_size
        if not steps:
            raise SystemExit(
                f"There must be --batch-size images. Received: {len(data.labels)} images, "
                f"--batch-size {options.batch_size}"
            )
        model = build(options, data.classes, steps * options.epochs)
        checkpoints = (Mirrored if BACKEND == "tensorflow" else Orbax)(options, model)
    if BACKEND == "torch" and options.processes > 1:
        average_gradients(model)
    step = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    if first:
        print(f"From step {step} of {steps * options.epochs}", flush=True)
    epoch, position = divmod(step, steps)
    if position:  # the rest of an epoch, then all others
        fit(model, data, options, checkpoints, step, epoch, epoch + 1, steps - position)
        epoch += 1
    if epoch < options.epochs:
        fit(model, data, options, checkpoints, epoch * steps, epoch, options.epochs, steps)
    if first:
        if BACKEND == "jax":  # or Keras would wait for the others, who do not save
            keras.distribution.set_distribution(None)
        write_whole(result, model.save)
        print(f"Wrote {result}")


def fit(model, data, options, checkpoints, step, epoch, epochs, steps):
    """Trains from a step and its epoch on, until there were so many epochs, of `steps` each."""
    model.fit(
        batches(data, options, step),
        steps_per_epoch=steps,
        initial_epoch=epoch,
        epochs=epochs,
        shuffle=False,
        callbacks=checkpoints.callbacks(),
        verbose=2 if options.process == 0 else 0,
    )


def batches(data, options, step):
    if BACKEND != "tensorflow":
        return data.batches(options, step)
    # Keras iterates twice where variables are mirrored: each time it has to be from the beginning.
    import tensorflow as tf

    images = tf.TensorSpec((options.batch_size, options.size, options.size, 3), "float32")
    labels = tf.TensorSpec((options.batch_size,), data.labels.dtype)
    return tf.data.Dataset.from_generator(
        lambda: data.batches(options, step), output_signature=(images, labels)
    )


class Orbax:
    """Restores the model from its last checkpoint, and writes new ones."""

    def __init__(self, options, model):
        self.options, self.folder = options, options.run / "checkpoints"
        # Orbax gives a folder its number when all is in it.
        if self.folder.is_dir() and any(path.name.isdigit() for path in self.folder.iterdir()):
            model.load_weights(self.folder)  # and the optimizer's, and what is random

    def callbacks(self):
        if self.options.process > 0 and BACKEND != "jax":  # in JAX each process writes a part
            return []
        return [
            keras.callbacks.OrbaxCheckpoint(
                self.folder, save_freq=self.options.checkpoint_every, max_to_keep=2
            )
        ]


class Mirrored(keras.callbacks.Callback):
    """The same for variables that are mirrored on several devices, which Keras' Orbax refuses."""

    def __init__(self, options, model):
        super().__init__()
        import tensorflow as tf

        self.every, self.step = options.checkpoint_every, model.optimizer.iterations
        variables = [v.value for v in (*model.variables, *model.optimizer.variables)]
        self.manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(variables=variables), options.run / "checkpoints", max_to_keep=2
        )
        self.manager.restore_or_initialize()

    def callbacks(self):
        return [self]

    def on_train_batch_end(self, batch, logs=None):
        step = int(keras.ops.convert_to_numpy(self.step))
        if step % self.every == 0:
            self.manager.save(checkpoint_number=step)


if __name__ == "__main__":
    main()
