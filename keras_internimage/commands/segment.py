"""`internimage-segment MODEL IMAGE... --out DIR`: the class of each pixel of images.

Exits with 0; with 1 where some of the images could not be read; with 2 and one line on standard
error for what cannot be done.
"""

import argparse
import pathlib
import sys

from keras_internimage import backends, command_line, files

PROGRAM = "internimage-segment"
AREAS = "areas.json"
_EPILOG = """\
DIR holds masks/ (PNG, the classes' numbers with a palette), overlays/ (JPEG), legends/ (PNG),
classes.txt and areas.json: the share of each class in each image. What other programs wrote there
is never replaced.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = command_line.parser(
        PROGRAM, "Tells the class of each pixel of images, by a finished model.", epilog=_EPILOG
    )
    made.add_argument(
        "model",
        metavar="MODEL",
        help="name of a published checkpoint of UperNet (internimage-convert list), folder of "
        "internimage-train, .keras file, or, with --weights, a variant such as T",
    )
    command_line.add_images(made)
    made.add_argument(
        "--weights",
        metavar="FILE",
        help="official file (.pth) for a variant, or ade20k, cityscapes",
    )
    made.add_argument(
        "--labels",
        metavar="FILE",
        help="JSON, one name a line, classes.txt with colours, or ade20k, cityscapes "
        "(default: labels.json and classes.txt beside the model)",
    )
    made.add_argument(
        "--shorter-side",
        type=int,
        metavar="PIXELS",
        help="size at which the model sees images (default: the published one, that of the "
        "labels, or the images' own)",
    )
    made.add_argument(
        "--crop", type=int, metavar="PIXELS", help="slide a window of this side over the image"
    )
    made.add_argument(
        "--stride", type=int, metavar="PIXELS", help="of the window (default: 2/3 of --crop)"
    )
    made.add_argument(
        "--multi-scale", action="store_true", help="average over six scales, each also mirrored"
    )
    made.add_argument("--flip", action="store_true", help="average with the mirrored image")
    made.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="windows at a time (default 4)"
    )
    made.add_argument("--backend", choices=backends.BACKENDS, help="Keras' backend")
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command_line.exit_code(PROGRAM, _segment, parser().parse_args(argv))


def _segment(arguments):
    _check(arguments)
    out = pathlib.Path(arguments.out)
    command_line.check_out(out)
    backends.use(arguments.backend)
    from keras_internimage.commands import images
    from keras_internimage.segmenter import SCALES, Resizing, drawing, loading

    place = loading.locate(arguments.model, arguments.weights)
    # From here on Keras is imported.
    backends.hide_tensorflow()
    labels = loading.read_labels(arguments.labels)
    found, bad = images.find(arguments.images, out)
    segmenter = loading.assemble(
        place,
        labels,
        arguments.shorter_side and Resizing(arguments.shorter_side, multiple=32),
        command_line.remark(PROGRAM),
        crop=arguments.crop,
        stride=arguments.stride,
        scales=SCALES if arguments.multi_scale else (1.0,),
        flip=arguments.flip or arguments.multi_scale,
        batch_size=arguments.batch_size,
    )
    if segmenter.classes > drawing.MOST_CLASSES:
        raise ValueError(
            f"MODEL must have at most {drawing.MOST_CLASSES} classes, for masks with a palette. "
            f"Received: {arguments.model} with {segmenter.classes}"
        )
    results = _write_all(out, segmenter, found, bad)
    content = {
        "model": str(place) if isinstance(place, pathlib.Path) else place.name,
        "images": results,
        "failed": [{"file": images.shown(file), "reason": reason} for file, reason in bad],
    }
    images.write_json(out / AREAS, content)
    files.write_manifest(out)
    for file, reason in bad:
        print(f"{PROGRAM}: {images.shown(file)}: {reason}", file=sys.stderr)
    return 1 if bad else 0


def _check(arguments):
    command_line.check_positive(arguments, "shorter_side", "crop", "stride", "batch_size")
    crop, stride = arguments.crop, arguments.stride
    if stride is not None and (crop is None or stride > crop):
        raise ValueError(
            "--stride needs --crop, and must be at most that. "
            f"Received: --stride {stride}" + ("" if crop is None else f" --crop {crop}")
        )


def _results(name):
    """The files of an image's results, within the folder."""
    return {
        "mask": f"masks/{name}.png",
        "overlay": f"overlays/{name}.jpg",
        "legend": f"legends/{name}.png",
    }


def _write_all(out, segmenter, found, bad):
    """Writes the results of all images; adds those that cannot be read to `bad`."""
    from keras_internimage.commands import images
    from keras_internimage.data.palette import FILE, classes_text
    from keras_internimage.progress import Progress

    planned = [file for name in found for file in _results(name).values()]
    _check_classes(out, segmenter, planned)
    for folder in ("", "masks", "overlays", "legends"):
        (out / folder).mkdir(exist_ok=True)
    files.write_manifest(out, [*planned, AREAS, FILE])
    images.write_text(out / FILE, classes_text(segmenter.labels, segmenter.palette))
    results = []
    with Progress("Segmenting", len(found)) as progress:
        for name, path in found.items():
            reason, image = images.read(path)
            if reason is None:
                try:
                    results.append(_write(out, segmenter, name, path, image))
                except MemoryError:
                    reason = "does not fit into memory"
            if reason is not None:
                bad.append((path, reason))
            progress.advance()
    return results


def _write(out, segmenter, name, path, image):
    """Writes the results of an image; returns what is noted of it."""
    import numpy as np

    from keras_internimage.commands import images
    from keras_internimage.segmenter import drawing

    labels = segmenter.label_map(image)
    pixels = np.bincount(labels.ravel(), minlength=segmenter.classes)
    classes = [
        {
            "class": int(number),
            "label": segmenter.labels[number],
            "color": list(segmenter.palette[number]),
            "pixels": int(pixels[number]),
            "share": round(float(pixels[number] / labels.size), 6),
        }
        for number in np.argsort(-pixels, kind="stable")
        if pixels[number]
    ]
    rows = [(row["label"], tuple(row["color"]), row["share"]) for row in classes]
    pictures = {
        "mask": drawing.with_palette(labels, segmenter.palette),
        "overlay": drawing.overlay(image, labels, segmenter.palette),
        "legend": drawing.legend(rows),
    }
    written = _results(name)
    for kind, picture in pictures.items():
        with files.atomic_write(out / written[kind]) as unfinished:
            picture.save(unfinished, **({"quality": 92} if kind == "overlay" else {}))
    size = {"width": image.width, "height": image.height}
    return {"file": images.shown(path), **size, **written, "classes": classes}


def _check_classes(out, segmenter, planned):
    """Refuses to put masks beside those of an earlier run with other classes."""
    from keras_internimage.commands import images
    from keras_internimage.data.palette import FILE, classes_text

    masks = {f"masks/{path.name}" for path in (out / "masks").glob("*.png")}
    others = sorted(masks - set(planned))
    earlier = (out / FILE).read_text("utf-8") if (out / FILE).is_file() else None
    if others and earlier != classes_text(segmenter.labels, segmenter.palette):
        raise ValueError(
            "--out must be a new folder, or one of the model's classes. "
            f"Received: --out {out}, where {images.shown(others[0])} is of other classes ({FILE})"
        )


if __name__ == "__main__":
    sys.exit(main())
