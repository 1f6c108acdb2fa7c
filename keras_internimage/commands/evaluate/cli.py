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
TASKS = ("classification", "segmentation", "detection")
# Options of one task alone.
_OF_TASK = {
    "ground_truth": "classification",
    "multi_scale": "segmentation",
    "reduce_zero_label": "segmentation",
    "annotations": "detection",
}
_EPILOG = """\
FOLDER for classification: one folder of images for each class, train/ and val/ with these (val/ is
used), or a flat folder with a file of labels. For segmentation: images/ and masks/, with train/ and
val/ inside or without (val/ is used), or ADE20K, PASCAL VOC or Cityscapes as downloaded. For
detection: COCO as downloaded, what Roboflow exports, or images alone, with --annotations.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = command_line.parser(
        PROGRAM, "Measures how well a finished model does on labelled images.", epilog=_EPILOG
    )
    command_line.add_model(made)
    made.add_argument(
        "folder",
        metavar="FOLDER",
        help="images by class, images and masks, or images and COCO's annotations",
    )
    made.add_argument("--task", choices=TASKS, help="default: by what FOLDER holds")
    made.add_argument(
        "--json", metavar="FILE", help="write the results there, with those of each class"
    )
    made.add_argument(
        "--predictions",
        metavar="PATH",
        help="write what the model says of every image there: for classification a .csv file, for "
        "segmentation a folder of masks, for detection COCO's results, a .json file",
    )
    made.add_argument(
        "--labels",
        metavar="FILE",
        help="names of the model's classes (default: labels.json beside the model)",
    )
    made.add_argument("--batch-size", type=int, metavar="N", help="default 16; for detection 1")
    made.add_argument(
        "--resolution",
        type=int,
        metavar="PIXELS",
        help="side of the images, for detection the shorter one (default: the model's)",
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
    group = made.add_argument_group("segmentation")
    group.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="0 in masks is ignored, 1 is the first class (default for ADE20K)",
    )
    group.add_argument(
        "--multi-scale", action="store_true", help="average over six scales, each also mirrored"
    )
    group = made.add_argument_group("detection")
    group.add_argument(
        "--annotations", metavar="FILE", help="COCO's annotations of the images in FOLDER"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command_line.exit_code(PROGRAM, _evaluate, parser().parse_args(argv))


def _evaluate(options):
    command_line.check_positive(options, "batch_size", "resolution")
    if options.json is not None:
        command_line.check_file(pathlib.Path(options.json), "--json", (".json",))
    backends.use(options.backend)
    from keras_internimage import predictor

    place = predictor.locate(options.model)
    # From here on Keras is imported.
    backends.hide_tensorflow()
    from keras_internimage.commands.evaluate import (
        classification,
        detection,
        predictions,
        segmentation,
    )

    task = _task(options)
    if options.predictions is not None:
        predictions.check(options, task)
    kinds = (classification, segmentation, detection)
    kind = dict(zip(TASKS, kinds, strict=True))[task]
    results, failed = kind.evaluate(options, place, command_line.remark(PROGRAM))
    name = str(place) if isinstance(place, pathlib.Path) else place.name
    rows = kind.lines(results)
    rest = ("",) * (len(rows[0]) - 2)
    rows = [("model", name, *rest), ("data", str(options.folder), *rest), *rows]
    print("\n".join(command_line.columns(rows)))
    if options.json is not None:
        _write(options, name, task, results, failed)
    for path, reason in failed:
        print(f"{PROGRAM}: {_shown(path)}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _task(options):
    """The task, by --task or by what the folder holds.

    Raises:
        ValueError: an option is for another task.
    """
    from keras_internimage.data import coco_layout, mask_layout

    task, held = options.task, ""
    if task is None:
        if options.annotations is not None or coco_layout.holds_coco(options.folder):
            task, held = "detection", ", with COCO's annotations"
        elif mask_layout.holds_masks(options.folder):
            task, held = "segmentation", ", with masks"
        else:
            task, held = "classification", ", without masks"
    for name, of_task in _OF_TASK.items():
        value = getattr(options, name)
        if value and task != of_task:
            option = name.replace("_", "-")
            given = f"--{option}" if value is True else f"--{option} {value}"
            raise ValueError(
                f"--{option} is for {of_task}. Received: {given} for {options.folder}{held}"
            )
    return task


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
