"""`internimage-export MODEL OUT`: `keras_internimage.export` as a command.

Exits with 0, or with 2 and one line on standard error for what cannot be done.
"""

import argparse
import pathlib
import sys


def _parser():
    from keras_internimage.exports.formats import FORMATS

    parser = argparse.ArgumentParser(
        prog="internimage-export", description="A Keras model as a file for other programs."
    )
    parser.add_argument("model", help=".keras file, or the name of a published checkpoint")
    parser.add_argument(
        "out", help="ends in .tflite, .onnx, .xml or .pt2; or a folder, for a SavedModel"
    )
    parser.add_argument("--format", choices=list(FORMATS), help="default: by the suffix of OUT")
    parser.add_argument("--precision", default="float32", help="float32, float16, bfloat16 or int8")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images; 0 for an unknown one (default: the model's)",
    )
    parser.add_argument("--batch-size", type=int, help="default: unknown")
    parser.add_argument("--calibration", metavar="NPY", help="file of images, for int8")
    parser.add_argument("--labels", metavar="TXT", help="file of the classes' names, one a line")
    parser.add_argument("--preprocessing", action="store_true", help="take uint8 RGB images")
    parser.add_argument("--native", action="store_true", help="keep the native operator")
    parser.add_argument("--no-deform-conv", action="store_true", help="ONNX without DeformConv")
    parser.add_argument("--no-verify", action="store_true", help="do not run the file")
    return parser


def _load(name):
    import keras

    import keras_internimage
    from keras_internimage.checkpoints import published

    if name.endswith(".keras"):
        return keras.saving.load_model(name, compile=False)
    if name not in published.names():
        raise ValueError(
            "`model` must be a .keras file (internimage-convert makes one of a checkpoint) or the "
            f"name of a published checkpoint. Received: {name}"
        )
    variant = published.find(name).variant
    return getattr(keras_internimage, f"InternImage{variant}")(weights=name)


def main(argv=None):
    arguments = _parser().parse_args(argv)
    import numpy as np

    from keras_internimage.checkpoints.errors import CheckpointError
    from keras_internimage.exports import exporting

    try:
        # Before a model is loaded, or downloaded.
        calibration = arguments.calibration and np.load(arguments.calibration)
        labels = arguments.labels and pathlib.Path(arguments.labels).read_text().splitlines()
        exporting.find_target(
            pathlib.Path(arguments.out),
            arguments.format,
            arguments.precision,
            arguments.native,
            calibration is not None,
            not arguments.no_verify,
        )
        shape = None
        if arguments.size is not None:
            shape = (*(size or None for size in arguments.size), 3)
        exporting.export(
            _load(arguments.model),
            arguments.out,
            format=arguments.format,
            precision=arguments.precision,
            input_shape=shape,
            batch_size=arguments.batch_size,
            verify=not arguments.no_verify,
            native=arguments.native,
            calibration=calibration,
            include_preprocessing=arguments.preprocessing,
            labels=labels,
            deform_conv=not arguments.no_deform_conv,
        )
    except (ValueError, OSError, ImportError, RuntimeError, CheckpointError) as error:
        print(f"internimage-export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
