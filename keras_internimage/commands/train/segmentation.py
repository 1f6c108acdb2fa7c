"""What a training for classes of pixels has of its own."""

import dataclasses
import pathlib

from keras_internimage import models, training
from keras_internimage.checkpoints import open_checkpoint, published
from keras_internimage.checkpoints.keras_files import SUFFIXES
from keras_internimage.checkpoints.keras_files import read as read_keras_file
from keras_internimage.checkpoints.names import families
from keras_internimage.checkpoints.read import of_backbone
from keras_internimage.commands.train import output
from keras_internimage.commands.train.layers import copy_weights
from keras_internimage.commands.train.settings import CUSTOM
from keras_internimage.data import labels, masks, palette
from keras_internimage.data.mask_files import MaskEncoding
from keras_internimage.data.mask_loader import SegmentationFiles

FILES = (labels.FILE, palette.FILE)
OUTPUTS = ("logits", "auxiliary")
# Heights and widths of validation images are filled up to multiples of this part of the
# resolution: JAX and XLA compile a program for each size.
SIZES = 4


def scan(options, split, seed):
    """The images and masks of a folder, each of them read once."""
    return masks.scan_segmentation(
        pathlib.Path(options.data).resolve(),
        split,
        seed,
        options.skip_bad,
        options.threads,
        reduce_zero_label=options.reduce_zero_label,
    )


def rows(images, settings):
    """What `images.csv` holds."""
    return [
        {
            "part": part,
            **output.entry(image, settings.data),
            **output.entry(mask, settings.data, "mask", "mask bytes"),
        }
        for part in output.PARTS
        for image, mask in getattr(images, part)
    ]


def record(images):
    """What `run.json` holds of the images besides the names of their classes."""
    return {
        "masks": {
            "folder": str(images.folder),
            "palette": images.palette,
            "encoding": dataclasses.asdict(images.encoding),
            "train_pixels": images.train_pixels,
            "validation_pixels": images.validation_pixels,
        }
    }


def restored(rows, settings, kept, bad):
    """The images that a training started with: of `images.csv`, and of `run.json`."""
    names, known = tuple(kept["classes"]), kept["masks"]
    parts = [
        tuple((row["file"], row["mask"]) for row in rows if row["part"] == part)
        for part in output.PARTS
    ]
    return masks.SegmentationImages(
        pathlib.Path(known["folder"]),
        names,
        _tuples(known["palette"]),
        *parts,
        MaskEncoding(**{name: _tuples(value) for name, value in known["encoding"].items()}),
        tuple(known["train_pixels"]),
        tuple(known["validation_pixels"]),
        bad,
    )


def _tuples(value):
    """What JSON made lists of, as it was."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def build_model(settings, classes, weights, auxiliary=True):
    """UperNet, random or with weights: of a whole UperNet, or of the backbone alone."""
    if auxiliary and weights is not None and _lacks_auxiliary(weights):
        made = build_model(settings, classes, None)
        copy_weights(build_model(settings, classes, weights, auxiliary=False), made)
        return made
    whole = weights is not None and _is_whole(weights)
    of_backbone = {"drop_path_rate": settings.drop_path}
    of_heads = {
        "classes": classes,
        "auxiliary": auxiliary,
        "channels": settings.decoder_channels,
        "weights": weights if whole else None,
        "name": "upernet",
    }
    shape = (None, None, 3)
    backbone_weights = None if whole else weights
    if settings.variant == CUSTOM:
        backbone = models.InternImageBackbone(
            **settings.network(), **of_backbone, image_shape=shape, weights=backbone_weights
        )
        return models.UperNet(backbone, **of_heads)
    build = getattr(models, f"UperNet{settings.variant}")
    return build(input_shape=shape, backbone_weights=backbone_weights, **of_heads, **of_backbone)


def _is_whole(weights):
    """Whether weights are those of a UperNet, and not of a backbone or a classifier."""
    if weights in published.SEGMENTATION_DATA:
        return True
    if weights in published.names():
        return published.find(weights).task == "segmentation"
    if weights in published.IMAGENET_CLASSES:
        return False
    if weights.endswith(SUFFIXES):
        return read_keras_file(weights).table is families.TABLES["upernet"]
    # Whatever container has them: which one counts is decided where they are loaded.
    found = open_checkpoint(weights, containers=of_backbone("DCNv4"))
    return families.of_official(found.shapes()) == "upernet"


def _lacks_auxiliary(weights):
    """Whether weights are of a UperNet without its auxiliary head, as a training leaves it."""
    if not weights.endswith(SUFFIXES) or not _is_whole(weights):
        return False
    found = read_keras_file(weights)
    return not any(map(found.table.is_optional, found.official_shapes()))


def finished_model(settings, classes):
    """The model that is handed over, still random: without the auxiliary head."""
    return build_model(settings, classes, None, auxiliary=False)


def objective(row, classes):
    """Arguments of `compile`. The official recipes divide the loss by all pixels."""
    average = "all" if row.official else "valid"
    return {
        "loss": {name: training.SegmentationLoss(average=average) for name in OUTPUTS},
        "loss_weights": {"logits": 1.0, "auxiliary": training.AUXILIARY_WEIGHT},
        "metrics": {"logits": [training.MeanIoU(classes)]},
    }


def batches(settings, row, images, threads):
    """Batches for training and for validation: crops, and whole images one by one."""
    common = {"seed": settings.seed, "outputs": OUTPUTS, "threads": threads}
    train = SegmentationFiles.for_training(
        images.train,
        images.encoding,
        settings.batch_size,
        row,
        multiple=settings.accumulation,
        **common,
    )
    validation = SegmentationFiles(
        images.validation,
        images.encoding,
        1,
        training=False,
        fit=(4 * settings.resolution, settings.resolution),
        size_multiple=max(32, settings.resolution // SIZES),
        **common,
    )
    return train, validation


def measures(settings, images, average):
    """Callbacks that measure what `objective` does not; there are none."""
    return []


def write_labels(folder, settings, images):
    """Writes what a finished model needs beside it."""
    labels.Labels(images.class_names, settings.resolution, settings.variant).write(folder)
    with output.durable_write(folder / palette.FILE) as unfinished:
        text = palette.classes_text(images.class_names, images.palette)
        pathlib.Path(unfinished).write_text(text, "utf-8", newline="")


def results(model, settings, images, validation, common):
    """The `SegmentationResults` of a finished model; `common` is what both tasks tell.

    It is validated as `internimage-evaluate` does it: whole images, at their own size.
    """
    from keras_internimage.commands.evaluate.segmentation import confusion
    from keras_internimage.report import SegmentationResults
    from keras_internimage.report.mask_gallery import Worst
    from keras_internimage.segmenter import Segmenter
    from keras_internimage.segmenter.loading import resizing_at

    segmenter = Segmenter(
        model,
        images.class_names,
        palette=images.palette,
        resizing=resizing_at(settings.resolution),
    )
    worst = Worst(images.palette)
    counts, failed = confusion(segmenter, images, worst.add)
    shared = common()
    known = {str(path) for path, _ in shared["skipped"]}
    shared["skipped"] += [(path, reason) for path, reason in failed if str(path) not in known]
    return SegmentationResults(
        class_names=list(images.class_names),
        counts=counts,
        worst=worst,
        train_pixels=images.train_pixels,
        **shared,
    )
