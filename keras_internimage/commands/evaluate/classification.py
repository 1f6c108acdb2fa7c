"""Top-1 and top-5 accuracy of a classifier."""

import pathlib

import numpy as np

from keras_internimage import predictor
from keras_internimage.commands.evaluate import labelled, predictions
from keras_internimage.data.check import explain
from keras_internimage.progress import Progress
from keras_internimage.report.metrics import interval, rank


def evaluate(options, place, say):
    """Evaluates a classifier on a folder of images.

    Returns:
        `(results, failed)`: what is printed and written, and `(path, reason)` of images that
        cannot be read.

    Raises:
        FolderError: the images' classes are not those of the model.
        ValueError: no image can be read, or an argument does not fit the model.
    """
    images = labelled.find(options.folder, options.ground_truth)
    labels = predictor.read_labels(options.labels)
    published = not isinstance(place, pathlib.Path)
    if published:
        predictor.check_published_classifier(place)
        known, classes = getattr(place, "labels", None), place.classes  # of a repository
    else:
        labels = labels or predictor.labels_beside(place)
        known, classes = (None, None) if labels is None else (labels.classes, len(labels.classes))
    truth = None
    if classes is not None:  # what does not fit is refused before the model is loaded
        truth = labelled.numbered(images, known, classes, _wordnet_ids)
    made = predictor.assemble(place, labels, options.resolution, say)
    if truth is None:
        truth = labelled.numbered(images, known, len(made.labels), _wordnet_ids)
    ranks, failed, said = [], [], []
    of_class = [[0, 0] for _ in made.labels]  # images, right ones
    with Progress("Evaluating", len(images.files)) as progress:
        # The published accuracies were measured on the pixels as they are stored.
        stream = made.stream(images.files, options.batch_size or 16, exif_orientation=not published)
        for label, (file, scores, error) in zip(truth, stream, strict=True):
            progress.advance()
            if error is not None:
                missing = isinstance(error, FileNotFoundError)
                failed.append((file, "no such file" if missing else explain(file, error)))
                said.append((file, label, None, failed[-1][1]))
                continue
            if options.predictions is not None:
                said.append((file, label, scores, ""))
            ranks.append(int(rank(np.array([label]), scores[None])[0]))
            of_class[label][0] += 1
            of_class[label][1] += ranks[-1] == 0
    if not ranks:
        raise ValueError(
            "At least one image must be readable. "
            f"Received: {len(images.files)} files, such as {failed[0][0]}: {failed[0][1]}"
        )
    if options.predictions is not None:
        predictions.write_classes(options.predictions, said, made.labels)
    right = sum(place == 0 for place in ranks)
    results = {
        "labels": images.source,
        "images": len(ranks),
        "classes": len(made.labels),
        "resolution": made.resolution,
        "top1": right / len(ranks),
        "top1_interval": list(interval(right, len(ranks))),
    }
    if len(made.labels) > predictions.TOP:
        results["top5"] = sum(place < predictions.TOP for place in ranks) / len(ranks)
    if published and place.top1 is not None:
        results["published"] = {"top1": place.top1 / 100, "data": "ImageNet-1k validation"}
    results["per_class"] = [
        {"label": name, "images": count, "top1": good / count if count else None}
        for name, (count, good) in zip(made.labels, of_class, strict=True)
    ]
    return results, failed


def lines(results):
    """Rows `(name, value, remark)` of the table."""
    low, high = results["top1_interval"]
    published = results.get("published")
    remark = f"95 % interval {low:.2%} to {high:.2%}"
    if published:
        remark += f"; published: {published['top1']:.1%} ({published['data']})"
    rows = [
        ("labels", results["labels"], ""),
        ("images", str(results["images"]), f"at {results['resolution']} pixels"),
        ("top-1", f"{results['top1']:.2%}", remark),
    ]
    if "top5" in results:
        rows.append(("top-5", f"{results['top5']:.2%}", ""))
    return rows


def _wordnet_ids():
    from keras_internimage.preprocessing import decode_predictions

    ranks = np.arange(labelled.IMAGENET_CLASSES, 0, -1, "float32")[None]
    return [row[0] for row in decode_predictions(ranks, top=labelled.IMAGENET_CLASSES)[0]]
