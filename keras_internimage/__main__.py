"""`python -m keras_internimage`: versions, backend, devices, and which DCNv3 would run."""

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


def installed_version(distributions: tuple[str, ...]) -> str | None:
    """Version of the first installed distribution, read without importing it; None if none is."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def devices(backend: str) -> list[str]:
    """Names of the devices that the backend in use sees."""
    if backend != "torch":
        import keras

        return keras.distribution.list_devices()
    import torch

    count = torch.cuda.device_count()
    found = [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count)]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found or ["cpu"]


def report() -> list[str]:
    """The lines that `python -m keras_internimage` prints."""
    import keras

    from keras_internimage import __version__
    from keras_internimage.ops import dispatch

    backend = keras.config.backend()
    versions = [
        ("keras_internimage", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("Keras", keras.__version__),
    ]
    for framework, distributions in FRAMEWORKS.items():
        mark = " (the backend in use)" if framework == backend else ""
        versions.append((framework, (installed_version(distributions) or "not installed") + mark))
    versions.append(("devices", ", ".join(devices(backend))))

    rows = dispatch.table(backend)
    chosen = next(name for name, _, runs, _ in rows if runs)
    table = [("implementation", "backends", "runs here", "what it is, or why it does not run")]
    for name, supported, runs, reason in rows:
        answer = "no" if not runs else "yes, chosen" if name == chosen else "yes"
        table.append((name, supported, answer, reason))

    lines = columns(versions)
    lines += ["", "DCNv3, in order of preference (the implementation argument names one):", ""]
    lines += columns(table)
    return lines


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
