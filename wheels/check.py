"""Whether an installed keras_internimage runs its native kernels, right, and where they came from.

Run it with the Python of an environment; KERAS_BACKEND chooses the framework. It prints one line of
JSON, and fails where the kernels do not run or do not compute what the portable operator does. With
`--wheel` they must come from the installed wheel. With `--portable` there must be none, as where a
wheel has no binding to the framework, and models must predict all the same.
"""

import argparse
import json
import os
import shutil

import keras
import numpy as np

import keras_internimage
from keras_internimage.layers import set_implementation
from keras_internimage.ops import dcnv3, dispatch


def gradients(implementation):
    """Of the operator alone, by the framework's own differentiation."""
    rng = np.random.default_rng(1)
    tensors = [rng.normal(size=(2, 6, 5, c)).astype("float32") for c in (32, 2 * 18, 2 * 9)]
    options = {"groups": 2, "mask_activation": "softmax", "implementation": implementation}
    if keras.backend.backend() == "torch":
        import torch

        tensors = [torch.tensor(tensor, requires_grad=True) for tensor in tensors]
        dcnv3(*tensors, **options).square().sum().backward()
        return [tensor.grad.numpy() for tensor in tensors]
    if keras.backend.backend() == "jax":
        import jax

        found = jax.jit(jax.grad(lambda t: (dcnv3(*t, **options) ** 2).sum()))(tensors)
    else:
        import tensorflow as tf

        tensors = [tf.constant(tensor) for tensor in tensors]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            total = tf.reduce_sum(dcnv3(*tensors, **options) ** 2)
        found = tape.gradient(total, tensors)
    return [np.asarray(gradient) for gradient in found]


def largest_difference(ours, others):
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, others, strict=True)
    )


def predictions(*implementations):
    """Those of a small model with each of some implementations, one list each."""
    model = keras_internimage.InternImage(
        channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), input_shape=(32, 32, 3)
    )
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if "offset_mask" in variable.path:  # zero at first, where no point lies between pixels
            variable.assign(rng.normal(scale=0.1, size=variable.shape))
    images = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    found = []
    for implementation in implementations:
        set_implementation(model, implementation)
        found.append([model.predict(images, verbose=0)])
    return found


def native():
    """How far the kernels are from the portable operator, relative to the largest number."""
    return {
        "predict": largest_difference(*predictions("native", "portable")),
        "gradients": largest_difference(gradients("native"), gradients("portable")),
    }


def portable():
    """0 where a model's predictions by the portable operator are finite."""
    ((found,),) = predictions("portable")
    return {"predict": 0.0 if np.isfinite(found).all() else float("nan")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    expected = parser.add_mutually_exclusive_group()
    expected.add_argument("--wheel", action="store_true")
    expected.add_argument("--portable", action="store_true")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    rows = {name: reason for name, _, _, reason in dispatch.table()}
    runs = {name for name, _, runs, _ in dispatch.table() if runs}
    if ("native" in runs) == arguments.portable:
        must = "must not run" if arguments.portable else "do not run"
        raise SystemExit(f"The native kernels {must}: {rows['native']}")
    if arguments.wheel and "from the installed wheel" not in rows["native"]:
        raise SystemExit(f"The kernels must come from the wheel. Received: {rows['native']}")
    compared = portable() if arguments.portable else native()
    print(
        json.dumps(
            {
                "package": os.path.dirname(keras_internimage.__file__),
                "native": rows["native"],
                "compilers": [n for n in ("g++", "clang++", "c++", "cc") if shutil.which(n)],
                **compared,
            }
        )
    )
    for name, difference in compared.items():
        if not difference < 1e-4:
            raise SystemExit(f"{name} must agree to 1e-4. Received: {difference}")


if __name__ == "__main__":
    main()
