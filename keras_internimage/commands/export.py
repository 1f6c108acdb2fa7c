"""`internimage-export MODEL OUT`: a finished model as a file for other programs.

Exits with 0, or with 2 and one line on standard error for what cannot be done.
"""

import argparse
import pathlib
import sys

from keras_internimage import backends, command_line

PROGRAM = "internimage-export"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    from keras_internimage.exports.formats import FORMATS

    made = command_line.parser(PROGRAM, "A Keras model as a file for other programs.")
    command_line.add_model(made)
    made.add_argument(
        "out",
        metavar="OUT",
        help="ends in .tflite, .onnx, .xml or .pt2; or a folder, for a SavedModel",
    )
    made.add_argument("--format", choices=list(FORMATS), help="default: by the suffix of OUT")
    made.add_argument("--precision", default="float32", help="float32, float16, bfloat16 or int8")
    made.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images; 0 for an unknown one (default: the model's)",
    )
    made.add_argument("--batch-size", type=int, help="default: unknown")
    made.add_argument("--calibration", metavar="NPY", help="file of images, for int8")
    made.add_argument(
        "--labels",
        metavar="FILE",
        help="names of the classes: JSON, or one a line (default: labels.json beside the model, "
        "ImageNet's of a published checkpoint)",
    )
    made.add_argument("--no-labels", action="store_true", help="leave the names out")
    made.add_argument(
        "--preprocessing",
        action=argparse.BooleanOptionalAction,
        help="take uint8 RGB images and normalise them in the file (default: yes for a model with "
        "labels, no for a .keras file alone)",
    )
    made.add_argument(
        "--argmax",
        action="store_true",
        help="of a segmentation model: the class of each pixel, at the images' size, not logits",
    )
    made.add_argument("--native", action="store_true", help="keep the native operator")
    made.add_argument("--no-deform-conv", action="store_true", help="ONNX without DeformConv")
    made.add_argument("--no-verify", action="store_true", help="do not run the file")
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command_line.exit_code(PROGRAM, _export, parser().parse_args(argv))


def _export(arguments):
    if arguments.labels and arguments.no_labels:
        raise ValueError("--labels and --no-labels must not be given together")
    from keras_internimage import predictor

    # All that can be wrong is looked for before a model is loaded, or downloaded.
    place = predictor.locate(arguments.model)
    task = getattr(place, "task", None)  # of a published checkpoint
    if arguments.argmax and task not in (None, "segmentation"):
        does = "detects" if task == "detection" else "classifies"
        raise ValueError(
            f"--argmax needs a segmentation model. Received: {arguments.model}, which {does}"
        )
    import numpy as np

    from keras_internimage.exports import detectors, exporting

    target = exporting.find_target(
        pathlib.Path(arguments.out),
        arguments.format,
        arguments.precision,
        arguments.native,
        arguments.calibration is not None,
        not arguments.no_verify,
    )
    if task == "detection":
        detectors.check(arguments.precision, arguments.argmax)
    if target.backend != "tensorflow":  # SavedModels are run by TensorFlow, whoever writes them
        backends.hide_tensorflow()
    from keras_internimage.detector import loading as detector
    from keras_internimage.segmenter import loading as segmenter

    kinds = {"classification": predictor, "segmentation": segmenter, "detection": detector}
    options = {
        "format": arguments.format,
        "precision": arguments.precision,
        "batch_size": arguments.batch_size,
        "verify": not arguments.no_verify,
        "native": arguments.native,
        "calibration": arguments.calibration and np.load(arguments.calibration),
        "deform_conv": not arguments.no_deform_conv,
        "include_argmax": arguments.argmax,
    }
    if arguments.size is not None:
        options["input_shape"] = (*(size or None for size in arguments.size), 3)
    if arguments.preprocessing is not None:
        options["include_preprocessing"] = arguments.preprocessing
    if arguments.no_labels:
        options["labels"] = None
    kind = kinds["segmentation" if arguments.argmax else task or "classification"]
    labels = kind.read_labels(arguments.labels)
    model = None if task else predictor.load_model(place)
    if model is not None and not arguments.argmax:
        if segmenter.is_segmentation(model):
            kind = segmenter
        elif detector.is_detector(model):
            kind = detector
        labels = kind.read_labels(arguments.labels)
    beside = getattr(kind, "known_classes", predictor.labels_beside)
    if task or beside(place) is not None:
        say = command_line.remark(PROGRAM)
        kind.assemble(place, labels, None, say, model=model).export(arguments.out, **options)
        return 0
    # It need not be a finished model of any of the tasks.
    if labels is not None:
        options["labels"] = getattr(labels, "names", None) or labels.classes
    exporting.export(model, arguments.out, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
