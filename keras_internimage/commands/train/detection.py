"""What a training for objects, their boxes and masks, has of its own."""

import hashlib
import pathlib

import keras
import numpy as np

from keras_internimage import models
from keras_internimage.checkpoints import open_checkpoint, published
from keras_internimage.checkpoints.keras_files import SUFFIXES
from keras_internimage.checkpoints.keras_files import read as read_keras_file
from keras_internimage.checkpoints.names import families
from keras_internimage.checkpoints.read import of_backbone
from keras_internimage.commands.train import output, tasks
from keras_internimage.commands.train.settings import CUSTOM
from keras_internimage.data import coco_images, labels
from keras_internimage.data.coco import read_coco
from keras_internimage.data.coco_layout import Part
from keras_internimage.data.detection_loader import DetectionFiles
from keras_internimage.detector import CocoEvaluation, Detector
from keras_internimage.detector.loading import resizing_at
from keras_internimage.models.dense import build_backbone

FILES = (labels.FILE,)
# Logit of a mask where none is learnt: probabilities of 1e-9.
_NO_MASK = -20.0
# JAX and TensorFlow compile a program for each size: large images are filled up to multiples of
# this in validation.
_MULTIPLE, _LARGE = 128, 512


def scan(options, split, seed):
    """The images and objects of a folder, each image read once."""
    return coco_images.scan_detection(
        pathlib.Path(options.data).resolve(),
        split,
        seed,
        options.skip_bad,
        options.threads,
        masks=options.masks,
    )


def rows(images, settings):
    """What `images.csv` holds."""
    return [
        {"part": part, "id": image.id, **output.entry(image.path, settings.data)}
        for part in output.PARTS
        for image in getattr(images, part)
    ]


def record(images):
    """What `run.json` holds of the images besides the names of their classes."""
    return {
        "objects": {
            "folder": str(images.folder),
            "category_ids": images.category_ids,
            "annotations": [str(path) for path in images.annotations],
            "sha256": [_digest(path) for path in images.annotations],
            "folders": [str(path) for path in images.folders],
            "masks": images.masks,
        }
    }


def restored(rows, settings, kept, bad):
    """The images that a training started with: of `images.csv`, `run.json` and the annotations.

    Raises:
        OutputError: an annotation file is gone, or another one.
    """
    known = kept["objects"]
    files, folders = (tuple(map(pathlib.Path, known[name])) for name in ("annotations", "folders"))
    for path, digest in zip(files, known["sha256"], strict=True):
        if not path.is_file() or _digest(path) != digest:
            there = "another one" if path.is_file() else "no such file"
            raise output.OutputError(
                "The annotations must be those that the training started with. "
                f"Received: {path}, {there}"
            )
    parts = []
    for side, path, folder in zip(output.PARTS, files, folders, strict=True):
        part = Part(path, folder, read_coco(path, skip_bad=True))
        by_path = {image.path: image for image in coco_images.annotated(part, known["masks"])}
        wanted = [row["file"] for row in rows if row["part"] == side]
        parts.append(tuple(by_path[path] for path in wanted))
    return coco_images.DetectionImages(
        pathlib.Path(known["folder"]),
        tuple(kept["classes"]),
        tuple(known["category_ids"]),
        *parts,
        files,
        folders,
        known["masks"],
        bad,
    )


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_model(settings, classes, weights):
    """The variant's detector, random or with weights: of a whole one, or of the backbone alone."""
    detector = tasks.detector(settings.variant)
    whole = weights if weights is not None and _is_whole(weights, detector) else None
    of_backbone = {"drop_path_rate": settings.drop_path, "image_shape": (None, None, 3)}
    backbone_weights = None if whole else weights
    variant = None if settings.variant == CUSTOM else settings.variant
    if variant is None:
        backbone = models.InternImageBackbone(
            **settings.network(), **of_backbone, weights=backbone_weights
        )
    else:
        backbone = build_backbone(variant, whole, backbone_weights, **of_backbone)
    model = _models()[detector](
        backbone,
        classes=classes,
        channels=settings.decoder_channels,
        weights=whole,
        variant=variant,
        name=detector,
    )
    if settings.masks == "none":
        without_masks(model)
    return model


def without_masks(model):
    """Has a model make empty masks, and not learn any: nobody would know what they mean."""
    for head in model.mask_heads_by_name().values():
        kernel, bias = head.predictions.kernel, head.predictions.bias
        kernel.assign(np.zeros(kernel.shape))
        bias.assign(np.full(bias.shape, _NO_MASK))
        head.trainable = False


def _models():
    return {tasks.MASK_RCNN: models.MaskRCNN, tasks.CASCADE: models.CascadeMaskRCNN}


def _is_whole(weights, detector):
    """Whether weights are those of such a detector; of all others the backbone is taken."""
    if weights in published.DETECTION_DATA:
        return True
    if weights in published.names():
        row = published.find(weights)
        return row.task == "detection" and tasks.detector(row.variant) == detector
    if weights in published.IMAGENET_CLASSES:
        return False
    if weights.endswith(SUFFIXES):
        return read_keras_file(weights).table is families.TABLES[detector]
    # Whatever container has them: which one counts is decided where they are loaded.
    found = open_checkpoint(weights, containers=of_backbone("DCNv4"))
    return families.of_official(found.shapes()) == detector


def finished_model(settings, classes):
    """The model that is handed over, still random."""
    return build_model(settings, classes, None)


def objective(row, classes):
    """Arguments of `compile`: none, the losses are the model's own."""
    return {}


def batches(settings, row, images, threads):
    """Batches for training and for validation: the latter one by one."""
    common = {"seed": settings.seed, "masks": settings.masks, "threads": threads}
    train = DetectionFiles.for_training(
        images.train,
        settings.batch_size,
        row,
        multiple=settings.accumulation,
        **common,
    )
    seen = resizing_at(settings.resolution)
    validation = DetectionFiles(
        images.validation, 1, training=False, fit=(seen.longest, seen.shortest), **common
    )
    return train, validation


def _options(settings):
    """Of the `Detector` that validates."""
    compiles = keras.config.backend() != "torch" and settings.resolution >= _LARGE
    multiple = {"multiple": _MULTIPLE} if compiles else {}
    return {"resizing": resizing_at(settings.resolution), **multiple}


class _Evaluation(CocoEvaluation):
    """Average precision of what is saved: of the moving average of the weights, if there is one."""

    def __init__(self, settings, images, average):
        super().__init__(images.validation_data(), images.folders[1], **_options(settings))
        self.average = average

    def on_epoch_end(self, epoch, logs=None):
        if self.average is not None:
            self.average.on_test_begin()
        try:
            super().on_epoch_end(epoch, logs)
        finally:
            if self.average is not None:
                self.average.on_test_end()


def measures(settings, images, average):
    """Callbacks that measure what `objective` does not: average precision."""
    return [_Evaluation(settings, images, average)]


def write_labels(folder, settings, images):
    """Writes what a finished model needs beside it."""
    labels.Labels(images.class_names, settings.resolution, settings.variant).write(folder)


def results(model, settings, images, validation, common):
    """The `DetectionResults` of a finished model; `common` is what all tasks tell.

    It is validated as `internimage-evaluate` does it: one image at a time, in its own pixels.
    """
    from keras_internimage.data.check import explain
    from keras_internimage.data.coco_metrics import CocoMetrics
    from keras_internimage.detector.evaluation import collect, evaluate_files
    from keras_internimage.progress import Progress
    from keras_internimage.report import DetectionResults
    from keras_internimage.report.object_gallery import WorstObjects

    detector = Detector(model, images.class_names, **_options(settings))
    data = images.validation_data()
    metrics, worst = CocoMetrics(data), WorstObjects(images.class_names)
    with Progress("Validating the model", len(data.images)) as progress:
        failed = evaluate_files(
            detector,
            metrics,
            lambda image: images.folders[1] / image.file_name,
            seen=collect(worst, data),
            advance=progress.advance,
        )
    shared = common()
    known = {str(path) for path, _ in shared["skipped"]}
    shared["skipped"] += [
        (str(path), explain(path, error)) for path, error in failed if str(path) not in known
    ]
    counts = [one.label for image in images.train for one in image.objects]
    return DetectionResults(
        class_names=list(images.class_names),
        scores=metrics.result(),
        worst=worst,
        train_objects=np.bincount(counts, minlength=len(images.class_names)),
        **shared,
    )
