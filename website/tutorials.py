"""A page for each example: its source, and what it printed and drew when it was run.

    python website/tutorials.py [NAME ...]

runs the examples again, those of these names or all, and keeps their output and pictures in
docs/tutorials. An example that was changed since must be run again: a test compares its hash.
"""

import argparse
import dataclasses
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

from website.places import ROOT  # noqa: E402

FOLDER = ROOT / "docs" / "tutorials"
EXAMPLES = ROOT / "examples"


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """An example; `arguments` are those it is run with, None where `why_not` says why it is not.

    `pictures` are files that it writes into the folder it is run in.
    """

    title: str
    arguments: str | None = None
    pictures: tuple[str, ...] = ()
    why_not: str = "it needs the official weights, or a file made of them"


TUTORIALS = {
    "demo": Tutorial(
        "Start to finish", "--out demo --no-photographs", ("demo/curves.png", "demo/confusion.png")
    ),
    "classify": Tutorial("Classify photographs"),
    "fine_tune": Tutorial("Fine-tune a classifier"),
    "feature_extraction": Tutorial("Features", "--weights none"),
    "fine_tune_segmentation": Tutorial("Fine-tune UperNet"),
    "segment": Tutorial(
        "Train a small UperNet", "--out segmenter", ("segmenter/segmentation.jpg",)
    ),
    "detect": Tutorial(
        "Train a small Mask R-CNN",
        why_not="it takes long. What it drew is in [Detection](../detection.md#the-picture)",
    ),
    "visualize": Tutorial(
        "See what a model sees",
        "--small",
        ("sampling_points.png", "receptive_field.png", "grad_cam.png"),
    ),
    "train_distributed": Tutorial("Train on many devices", "run --epochs 1"),
    "run_onnx": Tutorial("Run an ONNX file"),
    "run_litert": Tutorial("Run a LiteRT file"),
    "run_saved_model": Tutorial("Run a SavedModel"),
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
    """Of an example's source."""
    return hashlib.sha256((EXAMPLES / f"{name}.py").read_bytes()).hexdigest()


def _page(name):
    tutorial, folder = TUTORIALS[name], FOLDER / name
    source = (EXAMPLES / f"{name}.py").read_text("utf-8").rstrip()
    parts = [f"# {tutorial.title}\n", f"`examples/{name}.py`:\n", f"```python\n{source}\n```\n"]
    if tutorial.arguments is None:
        parts.append(f"It was not run for this page: {tutorial.why_not}.\n")
    else:
        command = f"python examples/{name}.py {tutorial.arguments}".rstrip()
        output = (folder / "output.txt").read_text("utf-8").rstrip()
        parts.append(f"```text\n$ {command}\n{output}\n```\n")
    for picture in tutorial.pictures:
        file = pathlib.PurePath(picture).name
        parts.append(f"![{file} of examples/{name}.py]({name}/{file})\n")
    return "\n".join(parts)


def run(name: str) -> None:
    """Runs an example, and keeps what it prints and draws.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    tutorial = TUTORIALS[name]
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, EXAMPLES / f"{name}.py", *shlex.split(tutorial.arguments)]
        environment = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
        result = subprocess.run(
            command, cwd=temporary, env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            print(result.stdout + result.stderr, file=sys.stderr)
            result.check_returncode()
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        for picture in tutorial.pictures:
            shutil.copy(pathlib.Path(temporary, picture), folder)
        (folder / "output.txt").write_text(_shown(result.stdout, temporary), "utf-8")
        (folder / "source.sha256").write_text(digest(name) + "\n", "utf-8")


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
