"""`python -m keras_internimage`: versions, backend, devices, and what would run DCNv3 and DCNv4."""

import importlib.metadata
import platform
import sys

from keras_internimage import backends
from keras_internimage.command_line import columns, parser

# Import name -> distributions that provide it, the first installed one is shown.
FRAMEWORKS = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly"),
    "jax": ("jax",),
    "torch": ("torch",),
}
HINT = "the implementation argument names one"


def installed_version(distributions: tuple[str, ...]) -> str | None:
    """Version of the first installed distribution, read without importing it; None if none is."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def names_of_devices() -> list[str]:
    """The devices that the backend in use may compute on, GPUs of PyTorch with their names."""
    from keras_internimage.ops import dispatch

    names = []
    for name in dispatch.devices():
        if name.startswith("cuda:"):
            import torch

            name += f" ({torch.cuda.get_device_name(name)})"
        names.append(name)
    return names


def tables(backend: str) -> list[str]:
    """The lines on the implementations, once for all devices where the same is true of them."""
    from keras_internimage.ops import dispatch

    alike: dict[tuple, list[str]] = {}
    for device in dispatch.devices():
        alike.setdefault(tuple(dispatch.table(backend, device)), []).append(device)
    lines = []
    for rows, devices in alike.items():
        where = f" on {', '.join(devices)}" if len(alike) > 1 else ""
        lines += ["", f"DCNv3 and DCNv4{where}, in order of preference ({HINT}):", ""]
        chosen = next(name for name, _, runs, _ in rows if runs)
        table = [("implementation", "backends", "runs here", "what it is, or why it does not run")]
        for name, supported, runs, reason in rows:
            answer = "no" if not runs else "yes, chosen" if name == chosen else "yes"
            table.append((name, supported, answer, reason))
        lines += columns(table)
    return lines


def report() -> list[str]:
    """The lines that `python -m keras_internimage` prints."""
    import keras

    from keras_internimage import __version__

    backend = keras.config.backend()
    versions = [
        ("keras_internimage", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("Keras", keras.__version__),
    ]
    for framework, distributions in FRAMEWORKS.items():
        mark = " (the backend in use)" if framework == backend else ""
        versions.append((framework, (installed_version(distributions) or "not installed") + mark))
    versions.append(("devices", ", ".join(names_of_devices())))

    return columns(versions) + tables(backend)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    made = parser(
        "python -m keras_internimage",
        "Prints versions, Keras' backend, devices, and which implementations of DCNv3 run here. "
        "KERAS_BACKEND=tensorflow, jax or torch chooses the backend.",
    )
    made.parse_args(arguments)
    backends.hide_tensorflow()
    print("\n".join(report()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
