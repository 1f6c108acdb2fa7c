"""`internimage-train DATA_DIR`: fine-tunes an InternImage: images by class, masks, or objects.

Exits with 0; with 2 and one message on standard error for what cannot be done; with 130 where
Ctrl-C stopped it (143 for SIGTERM). Then, and where the disk is full, it prints the command that
resumes the training.
"""

import argparse
import dataclasses
import importlib.util
import pathlib
import shlex
import sys

from keras_internimage import backends, command_line

PROGRAM = "internimage-train"
# Settings that may be given when a finished training is extended.
_MAY_CHANGE = ("epochs", "early_stopping")
_EPILOG = """\
DATA_DIR has one folder of images for each class, or train/ and val/ with these inside. For
segmentation, a class for each pixel: images/ and masks/, with train/ and val/ inside or without, or
ADE20K, PASCAL VOC or Cityscapes as downloaded; classes.txt names the classes. For detection,
annotations of COCO's format: annotations/instances_train2017.json with train2017/, and the same of
val2017; train/ and valid/, each with _annotations.coco.json, as Roboflow exports them; or one JSON
file beside a folder of images. Every image and mask is read once before the training starts. In
the output folder: model.keras, labels.json, report.html with its pictures, history.csv, images.csv
(which image was used for what), logs/ for TensorBoard, last.keras and best.keras to resume from.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options. All are None where not given."""
    from keras_internimage.commands.train import settings, tasks
    from keras_internimage.variants import VARIANTS

    made = command_line.parser(
        PROGRAM,
        "Fine-tunes an InternImage on images by class, with masks, or with annotated objects.",
        epilog=_EPILOG,
    )
    made.add_argument(
        "data",
        metavar="DATA_DIR",
        help="folder of images by class, of images and masks, or with COCO's annotations",
    )
    made.add_argument("--task", choices=list(tasks.TASKS), help="default: by what DATA_DIR holds")
    made.add_argument("--output", metavar="DIR", help="default: DATA_DIR's name and -internimage")
    made.add_argument(
        "--resume",
        action="store_true",
        help="resume the unfinished training in --output; with --epochs, extend a finished one",
    )
    made.add_argument("--backend", choices=backends.BACKENDS, help="default: Keras' own choice")

    group = made.add_argument_group("network")
    group.add_argument("--variant", choices=list(VARIANTS), help="default: T, the smallest")
    group.add_argument(
        "--weights",
        metavar="WEIGHTS",
        help="imagenet, imagenet22k, for segmentation also ade20k or cityscapes, for detection "
        "imagenet or coco, the name of a published checkpoint, a path, or none",
    )
    group.add_argument("--resolution", type=int, metavar="PIXELS", help="default: the variant's")
    group.add_argument("--channels", type=int, metavar="C", help="of a network of any other size")
    group.add_argument("--depths", type=int, nargs=4, metavar="N", help="its blocks by stage")
    group.add_argument("--groups", type=int, nargs=4, metavar="N", help="its DCNv3 groups by stage")

    group.add_argument(
        "--decoder-channels",
        type=int,
        metavar="C",
        help="of UperNet, for segmentation (512), or the pyramid, for detection (256)",
    )

    group = made.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=settings.recipe_names(),
        help="default: finetune, of random weights scratch; for segmentation those of -upernet, "
        "for detection those of -detection",
    )
    group.add_argument("--epochs", type=int, metavar="N", help="default: the recipe's")
    group.add_argument("--batch-size", type=int, metavar="N", help="default: by the device")
    group.add_argument("--accumulation", type=int, metavar="N", help="batches in a step (1)")
    group.add_argument("--precision", choices=settings.PRECISIONS, help="default: by the device")
    group.add_argument(
        "--learning-rate", type=float, metavar="RATE", help="the highest (default: the recipe's)"
    )
    group.add_argument("--drop-path", type=float, metavar="P", help="default: the recipe's")
    group.add_argument(
        "--ema", type=float, metavar="M", help="moving average of the weights; 0: none (recipe's)"
    )
    group.add_argument("--freeze", type=int, metavar="N", help="stages that are not trained (0)")
    group.add_argument(
        "--early-stopping",
        type=int,
        metavar="N",
        help="end after N epochs without a better one in validation; 0: never (0)",
    )
    group.add_argument(
        "--class-weights",
        choices=settings.BALANCING,
        help="balanced: rare classes count more in the loss (none)",
    )
    group.add_argument("--seed", type=int, metavar="N", help="of all that is random (0)")

    group = made.add_argument_group("images")
    group.add_argument(
        "--validation-split", type=float, metavar="P", help="share of the images (0.2)"
    )
    group.add_argument(
        "--sampling",
        choices=settings.BALANCING,
        help="balanced: rare classes are shown more often (none)",
    )
    group.add_argument(
        "--reduce-zero-label",
        action="store_true",
        default=None,
        help="0 in masks is ignored, 1 is the first class (default for ADE20K)",
    )
    group.add_argument(
        "--masks",
        choices=settings.MASKS,
        help="of objects, for detection: those annotated; rectangles: the box where there is none; "
        "none: boxes alone (default: none where no object has one)",
    )
    group.add_argument("--skip-bad", action="store_true", help="leave out unreadable images")
    group.add_argument("--threads", type=int, metavar="N", help="that read images (one a core)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parser().parse_args(argv)
    from keras_internimage.commands.train import checks, disk
    from keras_internimage.commands.train.stopping import Diverged, Stopped

    folder = pathlib.Path(options.output) if options.output else _default_output(options.data)
    try:
        checks.ranges(options)
        with disk.naming(folder):
            return _main(options, folder)
    except disk.DiskFull as error:
        print(f"{PROGRAM}: error: {error}.{_how_to_resume(options, folder)}", file=sys.stderr)
        return 2
    except (ValueError, OSError, ImportError, Diverged) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Stopped) as error:
        number = getattr(error, "signal", 2)
        print(f"{PROGRAM}: stopped.{_how_to_resume(options, folder)}", file=sys.stderr)
        return 128 + number


def _main(options, folder):
    from keras_internimage.commands.train import checks, output, settings

    state = output.state(folder)
    if options.resume and state is output.State.NEW:
        raise output.OutputError(
            "--resume needs the output of a training. "
            f"Received: --output {folder}, which holds none"
        )
    if state is output.State.FINISHED and not options.resume:
        raise output.OutputError(
            "--output must be a new folder; --resume --epochs N extends the training in it. "
            f"Received: --output {folder}, which holds a finished training"
        )
    if state is output.State.FINISHED and options.epochs is None:
        raise output.OutputError(
            "--resume needs an unfinished training, or --epochs N to extend a finished one. "
            f"Received: --output {folder}, which holds a finished training"
        )
    if state is output.State.UNFINISHED and not options.resume:
        raise output.OutputError(
            "--output must be a new folder; --resume resumes the training in it. "
            f"Received: --output {folder}, which holds an unfinished training"
        )
    if options.resume:
        kept = output.read_settings(folder)
        its = settings.from_json(kept.get("settings", {}))
        backends.use(options.backend or its.backend)
    else:
        backends.use(options.backend)
    backends.hide_tensorflow()
    for module in ("tensorboardX", "jinja2", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"The package {module} must be installed: pip install 'keras-internimage[train]'"
            )
    if options.resume:
        return _resume(options, folder, kept)
    checks.new_training(options, folder)
    return _new(options, folder)


def _new(options, folder):
    import keras

    from keras_internimage.commands.train import device as devices
    from keras_internimage.commands.train import output, run, settings, settings_table, tasks

    images = (
        tasks.of(options)
        .module()
        .scan(
            options,
            options.validation_split or settings.VALIDATION_SPLIT,
            settings.SEED if options.seed is None else options.seed,
        )
    )
    device = devices.find()
    chosen, reasons = settings.choose(
        options,
        keras.config.backend(),
        len(images.train),
        device,
        len(images.class_names),
        getattr(images, "reduce_zero_label", False),
        getattr(images, "masks", settings.MASKS[0]),
    )
    _print_table(settings_table.table(chosen, reasons, images, device))
    for path, reason in images.bad:
        print(f"left out: {path}: {reason}")
    for note in images.notes:
        print(f"note: {note}")
    run.seed_everything(chosen.seed)
    keras.config.set_dtype_policy(chosen.precision)
    model = run.build_model(chosen, len(images.class_names), chosen.weights)
    with output.locked(folder):
        if output.state(folder) is not output.State.NEW:
            raise output.OutputError(
                f"--output must be a new folder. Received: --output {folder}, where another "
                "training was started meanwhile"
            )
        print(f"The output goes to {folder}\n", flush=True)
        training = run.Run(folder, chosen, images, options.threads)
        try:
            training.begin(model, reasons)
            return _train(options, training, model, 0)
        finally:
            training.close()


def _resume(options, folder, kept):
    from keras_internimage.commands.train import output, run, settings

    chosen = settings.from_json(kept["settings"])
    extends = bool(kept.get("finished"))
    settings.check_same(options, chosen, _MAY_CHANGE if extends else ())
    with output.locked(folder):
        rows = output.read_images(folder, chosen.data, options.skip_bad)
        bad = tuple((pathlib.Path(path), reason) for path, reason in kept["skipped"])
        images = chosen.of_task().module().restored(rows, chosen, kept, bad)
        run.seed_everything(chosen.seed)
        if extends:
            chosen = dataclasses.replace(
                chosen, **{n: getattr(options, n) for n in _MAY_CHANGE if _given(options, n)}
            )
        del kept["settings"]
        training = run.Run(folder, chosen, images, options.threads, kept)
        try:
            model, done = training.resume()
            if extends:
                training.extend(done)
            training.check_room(model)
            print(f"Resuming in {folder} after {done} of {chosen.epochs} epochs\n", flush=True)
            return _train(options, training, model, done)
        finally:
            training.close()


def _train(options, training, model, done):
    from keras_internimage.commands.train import disk, output
    from keras_internimage.data.check import count

    if not training.is_done(done):
        training.fit(model, done)
    del model
    with disk.naming(training.folder / output.REPORT):
        best, history, report = training.finish()
    training.write_settings(finished=True)
    task = training.settings.of_task()
    trained = len(history[task.metric])
    if trained < training.settings.epochs:
        epochs = count(training.settings.early_stopping, "epoch")
        print(
            f"Stopped early, after {trained} of {training.settings.epochs} epochs: no better one "
            f"for {epochs}."
        )
    skipped = training.skipped()
    if skipped:
        files = count(len(skipped), "file")
        print(f"{files} became unreadable during the training; the report lists them.")
    print(
        f"\n{training.folder / output.MODEL} has the weights of the best epoch, "
        f"{best + 1} of {trained}: {history[task.metric][best]:.1%} {task.measure}."
        f"\n{report} shows the rest."
        f"\nTry: {task.try_it} {shlex.quote(str(training.folder))} IMAGE"
    )
    return 0


def _default_output(data):
    """A folder in the current one, or beside the data where the current folder is inside it."""
    data = pathlib.Path(data).resolve()
    folder = pathlib.Path(f"{data.name}-internimage")
    return data.parent / folder if folder.resolve().is_relative_to(data) else folder


def _given(options, name):
    return getattr(options, name) is not None


def _how_to_resume(options, folder):
    from keras_internimage.commands.train import output

    if not (folder / output.SETTINGS).is_file():
        return " Nothing was written."
    command = [PROGRAM, options.data, "--output", str(folder), "--resume"]
    return f" The last whole epoch is kept. Resume with:\n  {shlex.join(command)}"


def _print_table(rows):
    from keras_internimage.command_line import columns

    print("\n".join(columns(rows)))


if __name__ == "__main__":
    sys.exit(main())
