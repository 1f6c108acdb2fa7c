"""Every published checkpoint whose file is at hand, measured on the data that is at hand.

    python benchmarks/scoreboard.py [--imagenet DIR] [--ade20k DIR] [--cityscapes DIR] [--coco DIR]
        [--backend NAME] [--only NAME ...] [--multi-scale] [--again] [--out DIR]

A file is at hand where `internimage-convert download NAME` has put it, in Keras' cache; nothing is
downloaded. Each is measured by `internimage-evaluate` in a process of its own, which prints its
progress. DIR of --out (default: scoreboard) gets `scoreboard.md`, the table; `NAME.json`, the
numbers; and every prediction, `NAME.csv`, `NAME.json` of COCO's results or a folder of masks. What
an earlier run measured there on the same data is kept; --again measures it anew. Checkpoints that
were not measured are in the table, too, with the reason.

    python benchmarks/scoreboard.py --published

prints the published figures, and the command for each: the tables of docs/evaluation.md.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_internimage import files
from keras_internimage.checkpoints import download, published
from keras_internimage.checkpoints.published import Published

PROGRAM = "keras_internimage.commands.evaluate.cli"
TABLE = "scoreboard.md"
# Option of the folder by what a checkpoint is measured on, and its name in the commands shown.
DATA = {
    "imagenet": ("imagenet", "imagenet/val"),
    "ade20k": ("ade20k", "ADEChallengeData2016"),
    "cityscapes": ("cityscapes", "cityscapes"),
    "mapillary2cityscapes": ("cityscapes", "cityscapes"),
    "coco": ("coco", "coco"),
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number of a checkpoint: how it is called, what was published, where a result has it."""

    name: str
    published: float
    place: tuple[str, ...]

    def measured(self, results: dict) -> float:
        """In percent, of the results of `internimage-evaluate`."""
        value = results
        for key in self.place:
            value = value[key]
        return 100 * value


def figures(row: Published, multi_scale: bool = False) -> list[Figure]:
    """What a checkpoint is measured by; none where nothing was published."""
    found = {
        "classification": [Figure("top-1", row.top1, ("top1",))],
        "segmentation": [
            Figure("mIoU, six scales", row.miou_multiscale, ("miou",))
            if multi_scale
            else Figure("mIoU", row.miou, ("miou",))
        ],
        "detection": [
            Figure("box AP", row.box_ap, ("box", "AP")),
            Figure("mask AP", row.mask_ap, ("mask", "AP")),
        ],
    }[row.task]
    return [figure for figure in found if figure.published is not None]


def command(row: Published, folder: str, *options: str) -> list[str]:
    """The arguments of `internimage-evaluate`."""
    return [row.name, folder, *options]


def print_published() -> None:
    """The tables of the published figures."""
    heads = {
        "classification": ("checkpoint", "pixels", "top-1"),
        "segmentation": ("checkpoint", "shorter side", "mIoU", "six scales and flips"),
        "detection": ("checkpoint", "shorter side", "box AP", "mask AP"),
    }
    numbers = {
        "classification": ("top1",),
        "segmentation": ("miou", "miou_multiscale"),
        "detection": ("box_ap", "mask_ap"),
    }
    for task, names in heads.items():
        print(f"\n## {task.capitalize()}\n")
        print(line(*names, "command"))
        print(line(*("---" for _ in names), "---"))
        for row in published.PUBLISHED:
            if row.task == task and figures(row):
                shown = " ".join(["internimage-evaluate", *command(row, DATA[row.data][1])])
                values = [percent(getattr(row, name)) for name in numbers[task]]
                print(line(row.name, row.resolution, *values, f"`{shown}`"))


def percent(number: float) -> str:
    """As published: with one digit, or two."""
    return f"{number:.2f}".removesuffix("0")


def line(*cells) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def missing(row: Published, options: argparse.Namespace) -> str | None:
    """Why a checkpoint cannot be measured here, or None."""
    if not figures(row, options.multi_scale):
        return "nothing was published"
    folder = DATA[row.data][0]
    if getattr(options, folder) is None:
        return f"no data: --{folder}"
    if not os.path.isfile(download.cached_path(row)):
        return f"no file: internimage-convert download {row.name}"
    return None


def measure(row: Published, options: argparse.Namespace) -> dict:
    """The results of `internimage-evaluate`, of now or kept from an earlier run.

    Raises:
        RuntimeError: the command failed.
    """
    multi_scale = options.multi_scale and row.task == "segmentation"
    name = f"{row.name}-multi-scale" if multi_scale else row.name
    path = options.out / f"{name}.json"
    folder = str(pathlib.Path(getattr(options, DATA[row.data][0])).resolve())
    if path.is_file() and not options.again:
        kept = json.loads(path.read_text("utf-8"))
        if (kept.get("model"), kept.get("data")) == (row.name, folder):
            print(f"{name}: kept from an earlier run", file=sys.stderr)
            return kept
    ending = {"classification": ".csv", "segmentation": "", "detection": "-coco.json"}[row.task]
    predictions = options.out / f"{name}-predictions{ending}"
    arguments = command(row, folder, "--json", str(path), "--predictions", str(predictions))
    arguments += ["--multi-scale"] if multi_scale else []
    arguments += ["--backend", options.backend] if options.backend else []
    print(f"internimage-evaluate {' '.join(arguments)}", file=sys.stderr, flush=True)
    ended = subprocess.run(
        [sys.executable, "-m", PROGRAM, *arguments], stdout=subprocess.DEVNULL, check=False
    )
    if ended.returncode not in (0, 1):  # 1: some images could not be read; they are counted
        raise RuntimeError(f"{row.name} must be measurable. Received: {ended.returncode} as above")
    return json.loads(path.read_text("utf-8"))


def table(rows: list[tuple]) -> str:
    """The table of `(checkpoint, figure, published, measured, difference, images, remark)`."""
    heads = "checkpoint", "figure", "published", "measured", "difference", "images", "remark"
    return "\n".join([line(*heads), line(*("---" for _ in heads)), *(line(*r) for r in rows), ""])


def rows_of(row: Published, results: dict, multi_scale: bool) -> list[tuple]:
    """Rows of the table for a measured checkpoint."""
    failed = len(results["failed"])
    remark = f"{failed} files could not be read" if failed else ""
    found = []
    for figure in figures(row, multi_scale and row.task == "segmentation"):
        value = figure.measured(results)
        difference = f"{value - figure.published:+.2f}"
        numbers = percent(figure.published), f"{value:.2f}", difference, results["images"]
        found.append((row.name, figure.name, *numbers, remark))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, _ in dict.fromkeys(DATA.values()):
        parser.add_argument(f"--{option}", metavar="DIR", help="as internimage-evaluate takes it")
    parser.add_argument("--backend", help="of Keras")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=published.names())
    parser.add_argument("--multi-scale", action="store_true", help="of segmentation models")
    parser.add_argument("--again", action="store_true", help="keep no earlier result")
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, default="scoreboard")
    parser.add_argument("--published", action="store_true", help="print the published figures")
    options = parser.parse_args(argv)
    if options.published:
        print_published()
        return 0
    for option, _ in dict.fromkeys(DATA.values()):
        folder = getattr(options, option)
        if folder is not None and not os.path.isdir(folder):
            parser.error(f"--{option} must be a folder. Received: {folder}")
    options.out.mkdir(exist_ok=True)
    lines, failed = [], False
    for row in published.PUBLISHED:
        if options.only and row.name not in options.only:
            continue
        reason = missing(row, options)
        if reason is None:
            try:
                lines += rows_of(row, measure(row, options), options.multi_scale)
                continue
            except RuntimeError as error:
                reason, failed = str(error), True
        lines.append((row.name, "", "", "not measured", "", "", reason))
    text = table(lines)
    with files.atomic_write(options.out / TABLE) as unfinished:
        pathlib.Path(unfinished).write_text(text, "utf-8")
    print(text, end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
