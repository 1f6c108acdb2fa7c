"""Average precision of detections, as COCO defines it, by its own program `pycocotools`."""

import contextlib
import dataclasses
import importlib.util
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from keras_internimage.data.coco import CocoDataset, CocoObject, read_coco
from keras_internimage.data.coco_masks import RunLengths, draw_mask, lengths

# COCO's twelve numbers, in its order: precision over overlaps from 0.5 to 0.95, at 0.5, at 0.75,
# and of small, medium and large objects; recall with at most 1, 10 and 100 detections an image,
# and of these objects.
NUMBERS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
# Where a precision-recall curve is read.
RECALLS = np.linspace(0, 1, 101)
_ALL, _MOST = 0, -1  # of COCO's ranges of areas, and numbers of detections


class Detected(Protocol):
    """What was detected in an image, such as `detector.Detections`."""

    def coco(self, image_id: Any, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of a COCO results file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Precision:
    """How good boxes, or masks, are. NaN stands for what there are no objects for.

    Attributes:
        numbers: `NUMBERS` by name, from 0 to 1.
        per_class: AP of each class, `(classes,)`.
        per_class_50: AP at an overlap of 0.5, `(classes,)`.
        curve: precision at each of `RECALLS`, at an overlap of 0.5, mean over the classes.
    """

    numbers: dict[str, float]
    per_class: np.ndarray
    per_class_50: np.ndarray
    curve: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class CocoScores:
    """What `CocoMetrics.result` found.

    Attributes:
        class_names: of the classes, by label.
        objects: how many there are of each class, without crowds, `(classes,)`.
        box: `Precision` of the boxes.
        mask: of the masks; None where the annotations have none.
    """

    class_names: tuple[str, ...]
    objects: np.ndarray
    box: Precision
    mask: Precision | None


class CocoMetrics:
    """COCO's average precision of boxes and masks.

    ```python
    metrics = CocoMetrics(read_coco("annotations/instances_val2017.json"))
    for image in metrics.images:
        metrics.add(image.id, detector.predict(folder / image.file_name)[0])
    print(metrics.result().box.numbers["AP"])
    ```

    Evaluation is that of pycocotools, which has to be installed (extra `coco`). Objects are handed
    over as the file has them, but for their ids: pycocotools takes an object of id 0 for none, and
    some programs count from there. An object without a segmentation, where others have one,
    counts neither as missed nor as found by its mask.

    Args:
        annotations: a `CocoDataset`, or the path of an annotation file.
        image_ids: of the images that are evaluated; None for all.
        masks: whether masks are evaluated; None for where an object has one.

    Attributes:
        dataset: the `CocoDataset`.
        images: its `CocoImage`s that are evaluated.
        rows: what was added, as rows of a COCO results file.

    Raises:
        ImportError: pycocotools is not installed.
        FileNotFoundError, CocoError: as `read_coco`.
        ValueError: an image is not in the file, or there is none.
    """

    def __init__(
        self,
        annotations: CocoDataset | str | os.PathLike,
        image_ids: Iterable[int] | None = None,
        masks: bool | None = None,
    ):
        check_installed()
        if not isinstance(annotations, CocoDataset):
            annotations = read_coco(annotations)
        self.dataset = annotations
        known = {image.id: image for image in annotations.images}
        wanted = list(known) if image_ids is None else list(dict.fromkeys(image_ids))
        unknown = [number for number in wanted if number not in known]
        if unknown or not wanted:
            what = f"image {unknown[0]!r}, which is not" if unknown else "none"
            raise ValueError(
                f"`image_ids` must be images of the annotations, one or more. Received: {what} in "
                f"{annotations.path}"
            )
        self.images = tuple(known[number] for number in wanted)
        chosen = set(wanted)
        self._objects = [x for x in annotations.annotations if x.image_id in chosen]
        if masks is None:
            masks = any(x.segmentation is not None for x in self._objects)
        self._masks, self._sizes = masks, known
        self.reset()

    def reset(self) -> None:
        """Forgets what was added."""
        self.rows: list[dict[str, Any]] = []
        self._added: set[int] = set()

    def add(self, image_id: int, detections: Detected) -> None:
        """Adds what was detected in an image.

        Args:
            image_id: of the image in the file.
            detections: such as `detector.Detections`: its labels are those of the `CocoDataset`,
                its boxes and masks in pixels of the image as the file knows it.

        Raises:
            ValueError: the image is not evaluated, or was added before.
        """
        if image_id not in self._sizes or image_id in self._added:
            twice = "added before" if image_id in self._added else "not in the annotations"
            raise ValueError(f"`image_id` must be new. Received: image_id={image_id!r}, {twice}")
        self._added.add(image_id)
        self.rows += detections.coco(image_id, self.dataset.category_ids)

    def result(self) -> CocoScores:
        """The numbers of all images; one that was not added counts as one without detections."""
        counts = [x.label for x in self._objects if not x.crowd]
        classes = len(self.dataset.class_names)
        return CocoScores(
            self.dataset.class_names,
            np.bincount(np.array(counts, int), minlength=classes),
            self._evaluate("bbox"),
            self._evaluate("segm") if self._masks else None,
        )

    def _evaluate(self, kind):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
            truth, found = COCO(), COCO()
            truth.dataset = self._truth(kind)
            truth.createIndex()
            found.dataset = {**truth.dataset, "annotations": self._found(kind)}
            found.createIndex()
            evaluation = COCOeval(truth, found, kind)
            evaluation.params.imgIds = [image.id for image in self.images]
            evaluation.params.catIds = list(self.dataset.category_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        precision = evaluation.eval["precision"]  # overlap, recall, class, area, most
        precision = np.where(precision < 0, np.nan, precision)[..., _ALL, _MOST]
        numbers = np.where(evaluation.stats < 0, np.nan, evaluation.stats).tolist()
        return Precision(
            dict(zip(NUMBERS, numbers, strict=True)),
            _mean(precision, (0, 1)),
            _mean(precision[0], 0),
            _mean(precision[0], 1),
        )

    def _truth(self, kind):
        """The annotations as pycocotools takes them."""
        annotations = []
        for number, one in enumerate(self._objects, start=1):
            image = self._sizes[one.image_id]
            left, top, right, bottom = one.box
            made = {
                "id": number,
                "image_id": one.image_id,
                "category_id": self.dataset.category_ids[one.label],
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": int(one.crowd),
                "area": _area(one, image),
            }
            if kind == "segm":
                made["segmentation"] = _segmentation(one, image)
                made["iscrowd"] = int(one.crowd or one.segmentation is None)
            annotations.append(made)
        images = [{"id": x.id, "height": x.height, "width": x.width} for x in self.images]
        names = zip(self.dataset.category_ids, self.dataset.class_names, strict=True)
        categories = [{"id": number, "name": name} for number, name in names]
        return {"images": images, "categories": categories, "annotations": annotations}

    def _found(self, kind):
        """What was detected, with the area by which its size is judged."""
        if kind == "bbox":
            areas = [row["bbox"][2] * row["bbox"][3] for row in self.rows]
        else:
            from pycocotools import mask

            areas = [float(mask.area(row["segmentation"])) for row in self.rows]
        extent = "bbox" if kind == "bbox" else "segmentation"
        return [
            {
                **{name: row[name] for name in ("image_id", "category_id", "score", extent)},
                **{"id": number, "iscrowd": 0, "area": area},
            }
            for number, (row, area) in enumerate(zip(self.rows, areas, strict=True), start=1)
        ]


def check_installed() -> None:
    """Raises ImportError unless pycocotools is installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise ImportError(
            "pycocotools must be installed for COCO's average precision: "
            "pip install 'keras-internimage[coco]'"
        )


def _mean(values, axis):
    """The mean of what is known, NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis)
    count = known.sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _area(one: CocoObject, image) -> float:
    if one.area is not None:
        return one.area
    if one.segmentation is not None:
        return float(draw_mask(one.segmentation, image.height, image.width).sum())
    left, top, right, bottom = one.box
    return (right - left) * (bottom - top)


def _segmentation(one: CocoObject, image) -> Any:
    if isinstance(one.segmentation, RunLengths):
        runs = lengths(one.segmentation, image.height, image.width)
        return {"size": [image.height, image.width], "counts": runs.tolist()}
    if one.segmentation is None:  # its box stands for the place where nothing counts
        left, top, right, bottom = one.box
        return [[left, top, right, top, right, bottom, left, bottom]]
    return [outline.ravel().tolist() for outline in one.segmentation]
