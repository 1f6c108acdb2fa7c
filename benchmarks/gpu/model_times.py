"""Stage: InternImage-T next to its official form and to ConvNeXt-Tiny of `keras.applications`.

The official form is PyTorch's `official.Classifier`, with the official kernels' algorithm for
DCNv3. Weights are random. Sides take turns in one process; times are those of the clock, with what
the host takes for launching, as a user has them. Memory is the peak of a run beyond what was held
before: weights, and for a training step the optimizer's state, come on top.
"""

import functools
import gc
import tempfile
import time

import numpy as np

from benchmarks.gpu import frameworks, official_kernels, operator_calls
from benchmarks.gpu.worker import Item, summary

SIZE, BATCH, CLASSES = 224, 64, 1000
ROUNDS, TURN = 5, 0.3
LOGITS = 2e-4  # largest difference, relative to the largest logit
LEARNING_RATE, WEIGHT_DECAY = 1e-5, 0.05
OURS, OFFICIAL, CONVNEXT = "InternImage-T", "official InternImage-T", "ConvNeXt-Tiny"
# Of a rehearsal: one block a stage.
TINY = {"channels": 16, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}
TINY_SIZE, TINY_CLASSES = 32, 10


def items(context):
    models = Models(context)
    result = operator_calls.not_running(context, "the model")
    result.append(Item("logits, float32", models.logits))
    for kind, dtype in (
        ("inference", "float16"),
        ("training", "mixed_float16"),
        ("inference", "float32"),
        ("training", "float32"),
    ):
        result.append(Item(f"{kind}, {dtype}", functools.partial(models.time, kind, dtype)))
    return result


class Models:
    """The models of one process, and their calls."""

    def __init__(self, context):
        self.context, self.framework = context, frameworks.of(context)
        self.size = TINY_SIZE if context.rehearsal else SIZE
        self.batch = 2 if context.rehearsal else BATCH
        self.classes = TINY_CLASSES if context.rehearsal else CLASSES
        self._weights = None  # of the first model

    # ---- models ----

    def internimage(self, implementation, dtype="float32"):
        import keras_internimage

        arguments = {
            "classes": self.classes,
            "input_shape": (self.size, self.size, 3),
            "classifier_activation": None,
            "implementation": implementation,
            "dtype": dtype,
        }
        if self.context.rehearsal:
            model = keras_internimage.InternImage(**TINY, **arguments)
        else:
            model = keras_internimage.InternImageT(weights=None, **arguments)
        if self._weights is None:
            values = np.random.default_rng(1)
            for variable in model.variables:
                if "offset_mask" in variable.path:  # zeros at first, which samples pixels alone
                    variable.assign(values.normal(scale=0.02, size=variable.shape))
            self._weights = model.get_weights()
        else:  # the same for all; a seed would have Keras import TensorFlow, too
            model.set_weights(self._weights)
        return model

    def official(self):
        import official

        official.DCNv3.operator = staticmethod(official_kernels.torch_operator(self.context.device))
        sizes = TINY if self.context.rehearsal else {}
        return official.Classifier(**sizes, num_classes=self.classes).to(self.context.device)

    def convnext(self, dtype):
        import keras

        arguments = {
            "weights": None,
            "classes": self.classes,
            "classifier_activation": None,
            "include_preprocessing": False,
            "input_shape": (self.size, self.size, 3),
        }
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(dtype)
        try:
            if not self.context.rehearsal:
                return keras.applications.ConvNeXtTiny(**arguments)
            from keras.src.applications.convnext import ConvNeXt

            sizes = {"depths": [1, 1, 1, 1], "projection_dims": [8, 16, 32, 64]}
            return ConvNeXt(**sizes, **arguments)
        finally:
            keras.config.set_dtype_policy(before)

    def images(self, batch=None):
        rng = np.random.default_rng(0)
        batch = batch or self.batch
        x = rng.standard_normal((batch, self.size, self.size, 3), "float32")
        return x, rng.integers(self.classes, size=batch)

    # ---- calls ----

    def inference(self, model, dtype):
        x = self.framework.tensor(self.images()[0], dtype)
        if self.context.backend == "torch":
            import torch

            @torch.inference_mode()
            def run():
                return model(x, training=False)

            return run
        if self.context.backend == "tensorflow":
            import tensorflow as tf

            compiled = tf.function(lambda x: model(x, training=False), autograph=False)
            return lambda: compiled(x)
        import jax

        state = [
            [v.value for v in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables)
        ]
        compiled = jax.jit(lambda *arguments: model.stateless_call(*arguments, training=False)[0])
        return lambda: compiled(*state, x)

    def training(self, model, dtype):
        import keras

        model.compile(
            keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        x, y = (keras.ops.convert_to_tensor(a) for a in self.images())
        return lambda: _finite(model.train_on_batch(x, y))

    def official_inference(self, model, dtype):
        import torch

        half = dtype == "float16"
        model = (model.half() if half else model).eval()
        x = self.framework.tensor(self.images()[0], dtype).permute(0, 3, 1, 2).contiguous()

        @torch.inference_mode()
        def run():
            return model(x)

        return run

    def official_training(self, model, dtype):
        import torch

        device, half = self.context.device, dtype == "mixed_float16"
        x, y = self.images()
        x = torch.from_numpy(x).to(device).permute(0, 3, 1, 2).contiguous()
        y = torch.from_numpy(y).to(device)
        optimizer = torch.optim.AdamW(
            model.train().parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        scaler = torch.amp.GradScaler(device, enabled=half)

        def run():
            optimizer.zero_grad()
            with torch.autocast(device, dtype=torch.float16, enabled=half):
                loss = torch.nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return _finite(loss.item())

        return run

    # ---- items ----

    def logits(self):
        """Each implementation's logits next to the official form's, or to the portable one's."""
        names = operator_calls.running(self.context)
        with _full_precision(self.context.backend):
            found = {name: self._logits(name) for name in names}
            if self.context.backend == "torch":
                reference, expected = OFFICIAL, self._official_logits()
            else:
                reference, expected = "portable", found["portable"]
        for name, logits in found.items():
            error = float(np.abs(logits - expected).max() / np.abs(expected).max())
            self.context.row(
                implementation=name,
                check=f"logits next to {reference}",
                outcome="passed" if error <= LOGITS else "failed",
                note=f"largest difference {error:.1e} of the largest logit",
            )

    def _logits(self, name):
        x = self.framework.tensor(self.images(2)[0], "float32")
        model = self.internimage(name)
        if self.context.backend != "torch":
            return self.framework.array(model(x, training=False))
        import torch

        with torch.inference_mode():
            return self.framework.array(model(x, training=False))

    def _official_logits(self):
        import torch

        from keras_internimage.weights_convert.export import export

        with tempfile.TemporaryDirectory() as folder:
            self.internimage("portable").save_weights(f"{folder}/ours.weights.h5")
            export(f"{folder}/ours.weights.h5", f"{folder}/official.pth")
            weights = torch.load(f"{folder}/official.pth", weights_only=True)["model"]
        model = self.official()
        model.load_state_dict(weights, strict=True)
        x = self.framework.tensor(self.images(2)[0], "float32").permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            return self.framework.array(model.eval()(x))

    def time(self, kind, dtype):
        sides, memory, longest = {}, {}, 0.0
        for label, build in self._sides(kind, dtype).items():
            if label in self.context.without:
                continue  # it ended an earlier process, which has its row
            # What is ready is to be measured, too.
            if sides and self.context.left() < 1.5 * longest + 2 * ROUNDS * TURN * len(sides):
                self._row(kind, dtype, label, outcome="not run", note="no time left")
                continue
            self.context.trying(label)
            start = time.monotonic()
            try:
                run, memory[label] = self._prepared(kind, dtype, label, build)
            except Exception as error:
                self._failed(kind, dtype, label, error)
                continue
            finally:
                longest = max(longest, time.monotonic() - start)
            sides[label] = (functools.partial(self.framework.wall, run), 1)
            del run
        rounds, turn = (1, 0.0) if self.context.rehearsal else (ROUNDS, TURN)
        failed = functools.partial(self._failed, kind, dtype)
        measured = frameworks.measure(sides, rounds, turn, self.context.trying, failed)
        for label, seconds in measured.items():
            figures = self._figures(seconds, memory[label])
            self._row(kind, dtype, label, outcome="measured", **figures)
        sides.clear()
        self._forget()

    def _sides(self, kind, dtype):
        """Dict of label to a function that builds the model; what is most needed comes first."""
        names = operator_calls.running(self.context)
        if len(names) > 1 and (kind, dtype) != ("inference", "float16"):
            names = [name for name in names if name != "portable"]
        ours = {
            f"{OURS}, {name}": functools.partial(self.internimage, name, dtype) for name in names
        }
        others = {CONVNEXT: functools.partial(self.convnext, dtype)}
        if self.context.backend == "torch":
            others = {OFFICIAL: self.official, **others}
        first = next(iter(ours))
        return {first: ours[first], **others, **ours}

    def _prepared(self, kind, dtype, label, build):
        """A side's call, compiled, and its memory."""
        form = f"official_{kind}" if label == OFFICIAL else kind
        run = getattr(self, form)(build(), dtype)
        self.framework.wait(run())
        self.framework.wait(run())
        return run, None if self.context.rehearsal else self.framework.peak(run)

    def _figures(self, seconds, memory):
        figures = {"milliseconds": 1e3 * seconds, "images_per_second": self.batch / seconds}
        if memory is not None:
            figures["peak_megabytes"], figures["peak_is_a_bound"] = memory[0] / 2**20, memory[1]
        return figures

    def _failed(self, kind, dtype, label, error):
        self._row(kind, dtype, label, outcome="failed", note=summary(error))
        if not self.framework.usable():
            raise error

    def _row(self, kind, dtype, side, **fields):
        self.context.row(
            side=side,
            check=f"{kind}, {dtype}",
            dtype=dtype,
            batch=self.batch,
            **{"pass": kind},
            **fields,
        )

    def _forget(self):
        import keras

        keras.backend.clear_session()
        gc.collect()
        if self.context.backend == "torch" and self.context.device == "cuda":
            import torch

            torch.cuda.empty_cache()


def _finite(loss):
    loss = float(np.asarray(loss))
    if not np.isfinite(loss):
        raise RuntimeError(f"The loss must be finite. Received: {loss}")
    return loss


class _full_precision:
    """Products of float32 in float32 within it, where GPUs may take fewer bits."""

    def __init__(self, backend):
        self._backend = backend

    def __enter__(self):
        if self._backend == "torch":
            import torch

            self._before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        elif self._backend == "jax":
            import jax

            self._context = jax.default_matmul_precision("highest")
            self._context.__enter__()
        else:
            import tensorflow as tf

            tf.config.experimental.enable_tensor_float_32_execution(False)

    def __exit__(self, *error):
        if self._backend == "torch":
            import torch

            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self._before
        elif self._backend == "jax":
            self._context.__exit__(*error)
        else:
            import tensorflow as tf

            tf.config.experimental.enable_tensor_float_32_execution(True)
