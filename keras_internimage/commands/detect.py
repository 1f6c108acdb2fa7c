"""`internimage-detect MODEL IMAGE... --out DIR`: the objects in images.

Exits with 0; with 1 where some of the images could not be read; with 2 and one line on standard
error for what cannot be done.
"""

import argparse
import pathlib
import sys

from keras_internimage import backends, command_line, files

PROGRAM = "internimage-detect"
RESULTS, TABLE = "detections.json", "detections.csv"
THRESHOLD = 0.3
COLUMNS = ("image", "label", "score", "left", "top", "right", "bottom", "area")
_EPILOG = f"""\
DIR holds pictures/ (JPEG) with boxes, masks and names; {RESULTS}, COCO's format for results, with
masks as run lengths; and {TABLE}: a row for each object, its box and the area of its mask in
pixels. The id of an image is the name of its file, or its number by --annotations. What other
programs wrote there is never replaced.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = command_line.parser(
        PROGRAM, "Finds the objects in images, by a finished model.", epilog=_EPILOG
    )
    made.add_argument(
        "model",
        metavar="MODEL",
        help="name of a published checkpoint of detection (internimage-convert list), folder of "
        "internimage-train, .keras file, or, with --weights, a variant such as T",
    )
    command_line.add_images(made)
    made.add_argument(
        "--weights", metavar="FILE", help="official file (.pth) for a variant, or coco"
    )
    made.add_argument(
        "--labels",
        metavar="FILE",
        help="JSON, one name a line, or coco (default: labels.json beside the model)",
    )
    made.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        metavar="P",
        help=f"least probability of what is shown and written (default {THRESHOLD}); 0 writes all "
        "that the model gives, which COCO's evaluation needs",
    )
    made.add_argument(
        "--shorter-side",
        type=int,
        metavar="PIXELS",
        help="size at which the model sees images (default: that of its labels, or 800; the "
        "longer side is at most 1.67 times as long)",
    )
    made.add_argument(
        "--annotations",
        metavar="FILE",
        help=f"COCO's annotation file of the images: {RESULTS} has its numbers of images and "
        "classes",
    )
    made.add_argument("--no-pictures", action="store_true", help="write JSON and CSV alone")
    made.add_argument("--batch-size", type=int, default=1, metavar="N", help="default 1")
    made.add_argument("--backend", choices=backends.BACKENDS, help="Keras' backend")
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command_line.exit_code(PROGRAM, _detect, parser().parse_args(argv))


def _detect(arguments):
    command_line.check_positive(arguments, "shorter_side", "batch_size")
    if not 0 <= arguments.threshold < 1:
        raise ValueError(
            "--threshold must be at least 0 and less than 1. "
            f"Received: --threshold {arguments.threshold}"
        )
    out = pathlib.Path(arguments.out)
    command_line.check_out(out)
    backends.use(arguments.backend)
    from keras_internimage.detector import loading

    place = loading.locate(arguments.model, arguments.weights)
    # From here on Keras is imported.
    backends.hide_tensorflow()
    from keras_internimage.commands import images

    labels = loading.read_labels(arguments.labels)
    found, bad = images.find(arguments.images, out)
    known = None
    if arguments.annotations is not None:
        known = _annotated(arguments.annotations, found, bad)
        images.check_found(found, bad, arguments.images)
    say = command_line.remark(PROGRAM)
    side = arguments.shorter_side
    detector = loading.assemble(
        place,
        labels,
        None if side is None else loading.resizing_at(side),
        say,
        threshold=arguments.threshold,
    )
    if known is not None:
        _take_ids(detector, known[0], say)
    _write_all(arguments, detector, found, bad, known)
    for file, reason in bad:
        print(f"{PROGRAM}: {images.shown(file)}: {reason}", file=sys.stderr)
    return 1 if bad else 0


def _annotated(path, found, bad):
    """The annotations, and the number of each image by its file; others are moved to `bad`."""
    from keras_internimage.data.coco import read_coco

    dataset = read_coco(path)
    numbers: dict[str, list[int]] = {}
    for image in dataset.images:
        numbers.setdefault(pathlib.PurePath(image.file_name).name, []).append(image.id)
    ids = {}
    for name, file in list(found.items()):
        same = numbers.get(file.name, [])
        if len(same) == 1:
            ids[name] = same[0]
            continue
        what = "is not" if not same else "is there more than once"
        bad.append((file, f"{what} in {path}"))
        del found[name]
    return dataset, ids


def _take_ids(detector, dataset, say):
    """Has a detector call its classes as the annotations do."""
    from keras_internimage.commands import class_names

    names, known = dataset.class_names, detector.class_names
    class_names.check(dataset.path, names, detector.classes, known, say)
    detector.category_ids = dataset.category_ids


def _write_all(arguments, detector, found, bad, known):
    """Writes the results of all images; adds those that cannot be read to `bad`."""
    from keras_internimage.commands import images
    from keras_internimage.data import ahead
    from keras_internimage.detector.drawing import Drawing
    from keras_internimage.progress import Progress

    out = pathlib.Path(arguments.out)
    pictures = not arguments.no_pictures
    planned = [_picture(name) for name in found] if pictures else []
    for folder in ("", "pictures") if pictures else ("",):
        (out / folder).mkdir(exist_ok=True)
    files.write_manifest(out, [*planned, RESULTS, TABLE])
    drawing = Drawing(detector.class_names, command_line.remark(PROGRAM)) if pictures else None
    rows, table = [], []
    with Progress("Detecting", len(found)) as progress:
        read = ahead.batches(
            list(found), lambda name: images.read(found[name]), arguments.batch_size
        )
        for batch in read:
            for name, reason, image, objects in _detected(detector, batch, arguments.batch_size):
                progress.advance()
                if reason is not None:
                    bad.append((found[name], reason))
                    continue
                number = known[1][name] if known else found[name].name
                of_image = objects.coco(number, detector.category_ids)
                rows += of_image
                table += _table(found[name], detector, objects)
                if drawing is not None:
                    with files.atomic_write(out / _picture(name)) as unfinished:
                        drawing.draw(image, objects).save(unfinished, quality=92)
    images.write_json(out / RESULTS, rows)
    images.write_csv(out / TABLE, COLUMNS, table)
    files.write_manifest(out)


def _detected(detector, batch, batch_size):
    """`(name, reason, image, objects)` of the images of a batch."""
    readable = [image for _, (reason, image) in batch if reason is None]
    try:
        objects = iter(detector.predict(readable, batch_size))
    except MemoryError:
        return [
            (name, reason or "does not fit into memory", None, None) for name, (reason, _) in batch
        ]
    return [
        (name, reason, image, None if reason else next(objects)) for name, (reason, image) in batch
    ]


def _table(path, detector, objects):
    """Rows of the table: `COLUMNS`."""
    from keras_internimage.commands import images

    for index, (box, label, score) in enumerate(
        zip(objects.boxes.tolist(), objects.labels, objects.scores, strict=True)
    ):
        area = int(objects.window(index)[2].sum())
        sides = (f"{side:.1f}" for side in box)
        name = detector.class_names[label]
        yield (images.shown(path), name, f"{score:.4f}", *sides, area)


def _picture(name):
    return f"pictures/{name}.jpg"


if __name__ == "__main__":
    sys.exit(main())
