"""`internimage-evaluate MODEL FOLDER`: how well a finished model does on labelled images.

Exits with 0; with 1 where some of the images could not be read; with 2 and one message on standard
error for what cannot be done.
"""

import argparse
import json
import pathlib
import sys

from keras_internimage import backends, command_line, files

PROGRAM = "internimage-evaluate"
TASKS = ("classification", "segmentation")
_EPILOG = """\
FOLDER for classification: one folder of images for each class, train/ and val/ with these (val/ is
used), or a flat folder with a file of labels. For segmentation: images/ and masks/, with train/ and
val/ inside or without (val/ is used), or ADE20K, PASCAL VOC or Cityscapes as downloaded.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = command_line.parser(
        PROGRAM, "Measures how well a finished model does on labelled images.", epilog=_EPILOG
    )
    command_line.add_model(made)
    made.add_argument("folder", metavar="FOLDER", help="images by class, or images and masks")
    made.add_argument("--task", choices=TASKS, help="default: by what FOLDER holds")
    made.add_argument(
        "--json", metavar="FILE", help="write the results there, with those of each class"
    )
    made.add_argument(
        "--labels",
        metavar="FILE",
        help="names of the model's classes (default: labels.json beside the model)",
    )
    made.add_argument("--backend", choices=backends.BACKENDS, help="Keras' backend")
    group = made.add_argument_group("classification")
    group.add_argument(
        "--ground-truth",
        metavar="FILE",
        help="labels of a flat folder: lines `name number`; or a number or WordNet id for each "
        "image, in ILSVRC2012_validation_ground_truth.txt its numbers (default: "
        "ImageNet's files, where they lie in FOLDER or beside it)",
    )
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="default 16")
    group.add_argument("--resolution", type=int, metavar="PIXELS", help="default: the model's")
    group = made.add_argument_group("segmentation")
    group.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="0 in masks is ignored, 1 is the first class (default for ADE20K)",
    )
    group.add_argument(
        "--multi-scale", action="store_true", help="average over six scales, each also mirrored"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command_line.exit_code(PROGRAM, _evaluate, parser().parse_args(argv))


def _evaluate(options):
    command_line.check_positive(options, "batch_size", "resolution")
    if options.json is not None:
        if not pathlib.Path(options.json).absolute().parent.is_dir():
            raise ValueError(f"The folder of --json must exist. Received: --json {options.json}")
        files.check_file(options.json, (".json",))
    backends.use(options.backend)
    from keras_internimage import predictor

    place = predictor.locate(options.model)
    # From here on Keras is imported.
    backends.hide_tensorflow()
    from keras_internimage.commands.evaluate import classification, segmentation
    from keras_internimage.data import mask_layout

    task = options.task
    if task is None:
        task = TASKS[mask_layout.holds_masks(options.folder)]
    if task == "segmentation" and options.ground_truth is not None:
        raise ValueError(
            "--ground-truth is for classification. "
            f"Received: --ground-truth {options.ground_truth} for {options.folder}, with masks"
        )
    if task == "classification" and options.multi_scale:
        raise ValueError(
            "--multi-scale is for segmentation. "
            f"Received: --multi-scale for {options.folder}, without masks"
        )
    kind = segmentation if task == "segmentation" else classification
    results, failed = kind.evaluate(options, place, command_line.remark(PROGRAM))
    name = str(place) if isinstance(place, pathlib.Path) else place.name
    rows = [("model", name, ""), ("data", str(options.folder), ""), *kind.lines(results)]
    print("\n".join(command_line.columns(rows)))
    if options.json is not None:
        _write(options, name, task, results, failed)
    for path, reason in failed:
        print(f"{PROGRAM}: {_shown(path)}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _shown(path):
    from keras_internimage.data.check import printable

    return printable(str(path))


def _write(options, name, task, results, failed):
    content = {
        "model": name,
        "task": task,
        "data": str(options.folder),
        **results,
        "failed": [{"file": _shown(path), "reason": reason} for path, reason in failed],
    }
    with files.atomic_write(options.json) as unfinished:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        pathlib.Path(unfinished).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
