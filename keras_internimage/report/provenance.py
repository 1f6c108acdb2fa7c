"""When, with what and on what a model was trained."""

import dataclasses
import datetime
import importlib
import os
import pathlib
import platform
import subprocess
import sys

from keras_internimage.report.text import duration

_FRAMEWORKS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What the report says of a training besides its settings. What is None or empty is left out.

    Attributes:
        date: when the training finished, with a time zone.
        seconds: how long it took, in all sessions together.
        parameters: number of the model's parameters.
        device: name of what it was computed on, such as "NVIDIA H100".
        processor: name of the machine's processor.
        versions: version of each package, by its name.
    """

    date: datetime.datetime | None = None
    seconds: float | None = None
    parameters: int | None = None
    device: str = ""
    processor: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def collect(
        cls, seconds: float | None = None, parameters: int | None = None, device: str = ""
    ) -> "Provenance":
        """The `Provenance` of a training that finishes now, in this process.

        Args:
            seconds, parameters, device: see `Provenance`.
        """
        return cls(
            date=datetime.datetime.now().astimezone(),
            seconds=seconds,
            parameters=parameters,
            device=device,
            processor=processor_name(),
            versions=versions(),
        )

    def rows(self) -> dict[str, str]:
        """The lines of the report's table, by their headings."""
        rows = {
            "date": self.date.strftime("%Y-%m-%d %H:%M %Z").strip() if self.date else "",
            "duration": "" if self.seconds is None else duration(self.seconds),
            "parameters": "" if self.parameters is None else f"{self.parameters:,}",
            "device": self.device,
            "processor": self.processor,
            "versions": ", ".join(f"{name} {number}" for name, number in self.versions.items()),
        }
        return {key: value for key, value in rows.items() if value}


def versions() -> dict[str, str]:
    """Versions of this package, Keras, the framework of Keras' backend, and Python."""
    import keras

    from keras_internimage import __version__

    backend = keras.config.backend()
    return {
        "keras_internimage": __version__,
        "Keras": keras.__version__,
        _FRAMEWORKS.get(backend, backend): importlib.import_module(backend).__version__,
        "Python": platform.python_version(),
    }


def processor_name() -> str:
    """The processor's name and its number of threads; its architecture where no name is known."""
    name = _linux_name() if sys.platform == "linux" else ""
    if sys.platform == "darwin":
        name = _macos_name()
    name = " ".join((name or platform.processor() or platform.machine()).split())
    threads = os.cpu_count()
    return f"{name}, {threads} {'thread' if threads == 1 else 'threads'}" if threads else name


def _linux_name(path="/proc/cpuinfo"):
    try:
        lines = pathlib.Path(path).read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    # Processors of ARM have no such line.
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def _macos_name():
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
