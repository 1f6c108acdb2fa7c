"""A page for each example: its source, and what it printed and drew when it was run.

    python website/tutorials.py [NAME ...]

runs the examples again, those of these names or all, and keeps their output and pictures in
docs/tutorials. An example that was changed since, or is run otherwise, must be run again: a test
compares hashes.
"""

import argparse
import atexit
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from website import tutorial_files  # noqa: E402
from website.places import ROOT  # noqa: E402

FOLDER = ROOT / "docs" / "tutorials"
EXAMPLES = ROOT / "examples"


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """An example; `arguments` are those it is run with, None where `why_not` says why it is not.

    `pictures` are files that it writes into the folder it is run in. That folder is the one of the
    example `after`, or an empty one with what the function `files` of `tutorial_files` writes. The
    commands `before` are run there first.
    """

    title: str
    arguments: str | None = None
    pictures: tuple[str, ...] = ()
    files: str | None = None
    after: str | None = None
    before: tuple[str, ...] = ()
    note: str = ""
    why_not: str = "it needs the official weights"


def _exported(title, file):
    """An example that runs a file made of the model of `fine_tune`."""
    name = "run_" + {"model.onnx": "onnx", "model.tflite": "litert", "model": "saved_model"}[file]
    before = f"internimage-export fine_tuned.keras {file} --preprocessing --labels classes.txt"
    arguments = f"{file} digits/3/000.png digits/7/001.png"
    return {name: Tutorial(title, arguments, after="fine_tune", before=(before,), note=_OF_DIGITS)}


_OF_DIGITS = (
    "Of the model of [Fine-tune a classifier](fine_tune.md), with `classes.txt`, a line for each "
    "of its classes, beside it."
)


TUTORIALS = {
    "demo": Tutorial(
        "Start to finish", "--out demo --no-photographs", ("demo/curves.png", "demo/confusion.png")
    ),
    "classify": Tutorial("Classify photographs"),
    "fine_tune": Tutorial(
        "Fine-tune a classifier",
        "digits --weights none --size 32 --epochs 8",
        files="digits",
        note="Here from random weights, on 400 of scikit-learn's handwritten digits: the official "
        "weights were not at hand.",
    ),
    "feature_extraction": Tutorial("Features", "--weights none"),
    "fine_tune_segmentation": Tutorial(
        "Fine-tune UperNet",
        "tower --weights none --size 64 --epochs 4",
        files="tower",
        note="Here from random weights, on 24 crops of one photograph, and much too short to learn "
        "from: it shows what is printed.",
    ),
    "segment": Tutorial(
        "Train a small UperNet", "--out segmenter", ("segmenter/segmentation.jpg",)
    ),
    "detect": Tutorial(
        "Train a small Mask R-CNN",
        "--steps 100 --out detector",
        note="Here with 100 steps instead of 1500, which take long: too few to find shapes with "
        "confidence. What 1500 make of it is in [Detection](../detection.md#the-picture).",
    ),
    "visualize": Tutorial(
        "See what a model sees",
        "--small",
        ("sampling_points.png", "receptive_field.png", "grad_cam.png"),
    ),
    "train_distributed": Tutorial("Train on many devices", "run --epochs 1"),
    **_exported("Run an ONNX file", "model.onnx"),
    **_exported("Run a LiteRT file", "model.tflite"),
    **_exported("Run a SavedModel", "model"),
}


def navigation():
    return [{tutorial.title: f"tutorials/{name}.md"} for name, tutorial in TUTORIALS.items()]


def page_of(path: str) -> str | None:
    """The page of an example, by the example's path."""
    name = path.removeprefix("examples/").removesuffix(".py")
    return f"tutorials/{name}.md" if name in TUTORIALS and path.startswith("examples/") else None


def pages():
    return {f"tutorials/{name}.md": _page(name) for name in TUTORIALS}


def digest(name: str) -> str:
    """Of an example's source, and of all that it is given."""
    tutorial = TUTORIALS[name]
    parts = [(EXAMPLES / f"{name}.py").read_bytes()]
    parts += [repr((tutorial.arguments, tutorial.before)).encode()]
    if tutorial.files:
        parts += [pathlib.Path(tutorial_files.__file__).read_bytes()]
    if tutorial.after:
        parts += [digest(tutorial.after).encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _page(name):
    tutorial, folder = TUTORIALS[name], FOLDER / name
    source = (EXAMPLES / f"{name}.py").read_text("utf-8").rstrip()
    parts = [f"# {tutorial.title}\n", f"`examples/{name}.py`:\n", f"```python\n{source}\n```\n"]
    if tutorial.arguments is None:
        parts.append(f"It was not run for this page: {tutorial.why_not}.\n")
    else:
        command = f"python examples/{name}.py {tutorial.arguments}".rstrip()
        output = (folder / "output.txt").read_text("utf-8").rstrip()
        before = "".join(f"$ {line}\n" for line in tutorial.before)
        parts += [tutorial.note + "\n"] if tutorial.note else []
        parts.append(f"```text\n{before}$ {command}\n{output}\n```\n")
    for picture in tutorial.pictures:
        file = pathlib.PurePath(picture).name
        parts.append(f"![{file} of examples/{name}.py]({name}/{file})\n")
    return "\n".join(parts)


def run(name: str) -> None:
    """Runs an example, and keeps what it prints and draws.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    ran_in, output = _run(name)
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    for picture in TUTORIALS[name].pictures:
        shutil.copy(ran_in / picture, folder)
    (folder / "output.txt").write_text(_shown(output, str(ran_in)), "utf-8")
    (folder / "source.sha256").write_text(digest(name) + "\n", "utf-8")


@functools.cache
def _run(name):
    """The folder that an example has been run in, and what it printed; once for those after it."""
    tutorial = TUTORIALS[name]
    folder = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    if tutorial.after:
        shutil.copytree(_run(tutorial.after)[0], folder, dirs_exist_ok=True)
        classes = sorted(path.name for path in (folder / "digits").iterdir())
        (folder / "classes.txt").write_text("\n".join(classes) + "\n", "utf-8")
    if tutorial.files:
        getattr(tutorial_files, tutorial.files)(folder)
    for line in tutorial.before:
        program, *arguments = shlex.split(line)
        _output(folder, [pathlib.Path(sys.executable).with_name(program), *arguments])
    command = [sys.executable, EXAMPLES / f"{name}.py", *shlex.split(tutorial.arguments)]
    return folder, _output(folder, command)


def _output(folder, command):
    environment = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        print(result.stdout + result.stderr, file=sys.stderr)
        result.check_returncode()
    return result.stdout


def _shown(text, temporary):
    """Without colours and the folder's path, and of a progress bar its last state alone."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text.replace("\r\n", "\n"))
    lines = [line.rstrip() for line in re.split(r"[\n\r]|\x08+", text)]
    states = [re.match(r" *\d+/\d+ ━", line) for line in lines]
    kept = [
        line
        for number, line in enumerate(lines)
        if not states[number] or not any(states[number + 1 : number + 3])
    ]
    shown = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).lstrip("\n")
    return shown.replace(temporary + os.sep, "").replace(temporary, ".").rstrip() + "\n"


def main():
    runnable = [name for name, tutorial in TUTORIALS.items() if tutorial.arguments is not None]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(runnable)}")
    for name in parser.parse_args().names or runnable:
        if name not in runnable:
            parser.error(f"NAME must be one of {', '.join(runnable)}. Received: {name}")
        print(f"examples/{name}.py ...", flush=True)
        run(name)


if __name__ == "__main__":
    main()
