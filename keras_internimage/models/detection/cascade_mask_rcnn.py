"""Cascade Mask R-CNN over any backbone with a feature pyramid."""

import os

import keras
from keras import ops

from keras_internimage.checkpoints.names.cascade_mask_rcnn import STAGES, TABLE
from keras_internimage.layers.composite import registered
from keras_internimage.layers.detection import CascadeBoxHead, MaskHead
from keras_internimage.models.detection import losses
from keras_internimage.models.detection.assignment import Matching, sample_regions
from keras_internimage.models.detection.cascade_losses import giou_loss, remaining
from keras_internimage.models.detection.region_losses import (
    mask_head_loss,
    may_trim,
    number_of_regions,
    region_labels,
)
from keras_internimage.models.detection.two_stage import TwoStageDetector
from keras_internimage.ops import boxes as box_ops

# The weight of each stage's losses, and what its deltas are multiplied by.
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
DEVIATIONS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


@registered
class CascadeMaskRCNN(TwoStageDetector):
    """Instantiates Cascade Mask R-CNN over a backbone: boxes, classes and masks of objects.

    ```
    P2..P6    = pyramid(backbone(images))
    regions_1 = best(nms(clip(decode(anchors, rpn(P2..P6)))))
    l_s, d_s  = box_head_s(roi_align(P2..P5, regions_s))                              s = 1, 2, 3
    regions_s+1 = clip(decode(regions_s, d_s of the class with the largest l_s))
    boxes     = best(nms_of_each_class(decode(regions_3, d_3), softmax(mean(l_1, l_2, l_3))))
    masks     = mean(sigmoid(mask_head_s(roi_align(P2..P5, boxes))))
    ```

    The class that moves a region to the next stage is never the background. Each stage's deltas
    count half or two thirds of the one before: later ones see better regions.

    Of the official models only names and shapes of weights are at hand. What they compute was
    written from a description in words, and is checked against a second program, in NumPy and
    float64, written from the same description alone.

    Call arguments, returns and targets of `fit` are those of `MaskRCNN`. The box heads have batch
    normalisation: `CascadeBoxHead` says how it behaves in training. Each stage samples its regions
    anew, from the objects and what the stage before has made of its own samples; a region is an
    object's if they overlap by 0.5, 0.6 and 0.7. The losses are named as those of `MaskRCNN`,
    those of a stage with its number, such as `class_loss_1`, and have the weights 1, 1/2 and 1/4
    in them, so that the loss is their sum; that of boxes is `10 (1 - GIoU)`. Of anchors only those
    within the image count, the loss of their deltas is quadratic below 1/9, and training looks at
    twice the number of `proposals`.

    Args:
        backbone: a Keras Functional model with `pyramid_outputs`, or the key of a variant; see
            `MaskRCNN`.
        classes: number of classes, without the background.
        bounding_box_format: of the boxes, as for `MaskRCNN`.
        weights: None (random initialization), "coco" (for a `variant`), the name of a published
            checkpoint, or a path: `.weights.h5`, `.keras`, an official `.pth` or `.safetensors`.
            If the checkpoint has another number of classes than `classes`, everything but the
            last layers is loaded and a line says so. The backbone must be an InternImage.
        max_detections: number of detections that are returned, 100 in the official models.
        score_threshold: detections are more probable.
        nms_threshold: of two boxes of a class that overlap more the worse one is dropped.
        proposals: number of regions that the heads look at.
        proposals_per_level: number of anchors of each map that proposals are made of.
        proposal_nms_threshold: of two proposals of one map that overlap more one is dropped.
        channels: of the pyramid's maps and the heads, 256 in the published models.
        units: width of the box heads' hidden layer, 1024 in the published models.
        pyramid_norm: whether layer norms follow the pyramid's convolutions, as for `MaskRCNN`.
        dtype: data type or policy of all layers but the backbone's. Scores, boxes and masks are
            float32 in mixed and half precision, too.
        variant: tells which published weights "coco" stands for, where `backbone` does not.
        name: name of the model.

    Raises:
        ValueError: an argument is not as said above, or the weights do not fit the model.

    Reference:
        [Cascade R-CNN](https://arxiv.org/abs/1906.09756) (TPAMI 2019); numbers and names are
        those of the official InternImage models for COCO.
    """

    rename_table = TABLE
    anchor_border = 0.0
    anchor_beta = 1 / 9
    training_factors = (2, 2)
    region_matching = tuple(
        Matching(overlap, overlap, None, samples=512, positives=128) for overlap in (0.5, 0.6, 0.7)
    )

    def __init__(
        self,
        backbone: keras.Model | str,
        classes: int = 80,
        bounding_box_format: str = "xyxy",
        weights: str | os.PathLike | None = None,
        max_detections: int = 100,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        proposals: int = 1000,
        proposals_per_level: int = 1000,
        proposal_nms_threshold: float = 0.7,
        channels: int = 256,
        units: int = 1024,
        pyramid_norm: bool | None = None,
        dtype: str | keras.DTypePolicy | None = None,
        variant: str | None = None,
        name: str = "cascade_mask_rcnn",
        trainable: bool = True,
    ):
        options = {
            "classes": classes,
            "bounding_box_format": bounding_box_format,
            "max_detections": max_detections,
            "score_threshold": score_threshold,
            "nms_threshold": nms_threshold,
            "proposals": proposals,
            "proposals_per_level": proposals_per_level,
            "proposal_nms_threshold": proposal_nms_threshold,
            "channels": channels,
            "units": units,
            "pyramid_norm": pyramid_norm,
        }
        super().__init__(backbone, options, weights, dtype, variant, name, trainable)

    def make_heads(self, dtype):
        stages = range(1, STAGES + 1)
        self.box_heads = [
            CascadeBoxHead(self.classes, self.units, name=f"box_head{k}", dtype=dtype)
            for k in stages
        ]
        self.mask_heads = [
            MaskHead(self.classes, name=f"mask_head{k}", dtype=dtype) for k in stages
        ]

    def heads(self):
        return [
            *((self.box_align, head) for head in self.box_heads),
            *((self.mask_align, head) for head in self.mask_heads),
        ]

    def classify(self, maps, proposals, sizes):
        """Mean class logits of the stages, and the last one's boxes of each class."""
        regions, total = proposals, 0.0
        for stage, head in enumerate(self.box_heads):
            logits, deltas = head(self.box_align(maps, regions))
            total = total + ops.cast(logits, "float32")
            if stage < STAGES - 1:
                regions = refine(regions, best_class(logits), deltas, stage, sizes)
        boxes = box_ops.decode(
            regions[:, :, None], ops.cast(deltas, "float32"), deviations=DEVIATIONS[-1]
        )
        return total / STAGES, boxes

    def mask_probabilities(self, maps, regions, labels):
        """Masks `(N, D, 28, 28)` of regions of these classes: the mean of the stages'."""
        pooled = self.mask_align(maps, regions)
        masks = [ops.sigmoid(ops.cast(head(pooled, labels), "float32")) for head in self.mask_heads]
        return sum(masks) / STAGES

    def mask_heads_by_name(self):
        return {f"mask_heads[{k}]": head for k, head in enumerate(self.mask_heads)}

    def region_loss_names(self):
        names = ("class_loss", "box_loss", "mask_loss")
        return tuple(f"{name}_{k + 1}" for k in range(STAGES) for name in names)

    def region_losses(self, maps, proposals, valid, sizes, targets, sampler, training):
        """Losses of all stages' heads; see `DetectorTraining`."""
        regions, found = proposals, {}
        for stage, rule in enumerate(self.region_matching):
            samples = sample_regions(regions, valid, targets, rule, sampler)
            labels = region_labels(samples, targets, self.classes)
            logits, deltas = self.box_heads[stage](
                self.box_align(maps, samples.boxes), training=training, valid=samples.valid
            )
            own = ops.where(samples.positive, labels, best_class(logits))
            own = ops.minimum(own, self.classes - 1)
            of_stage = {
                "class_loss": losses.class_loss(logits, labels, samples.valid),
                "box_loss": giou_loss(
                    moved(samples.boxes, own, deltas, stage),
                    samples.wanted,
                    samples.positive,
                    number_of_regions(samples),
                ),
                "mask_loss": mask_head_loss(
                    self.mask_align,
                    self.mask_heads[stage],
                    maps,
                    samples,
                    labels,
                    targets,
                    sizes,
                    sampler.limit(rule.positives),
                    may_trim(self),
                ),
            }
            for name, value in of_stage.items():
                found[f"{name}_{stage + 1}"] = STAGE_WEIGHTS[stage] * value
            regions = refine(samples.boxes, own, deltas, stage, sizes)
            valid = remaining(samples, ops.shape(targets.labels)[1])
        return found


def best_class(logits):
    """The most probable class of each region, `(N, R)`, without the background."""
    return box_ops.argmax(logits[..., :-1])


def moved(regions, labels, deltas, stage):
    """Boxes `(N, R, 4)` of regions as a stage's deltas of their classes move them, not clipped."""
    own = ops.take_along_axis(deltas, labels[:, :, None, None], axis=2)[:, :, 0]
    return box_ops.decode(regions, ops.cast(own, "float32"), deviations=DEVIATIONS[stage])


def refine(regions, labels, deltas, stage, sizes):
    """The next stage's regions; no gradient flows through them.

    Args:
        regions: `(N, R, 4)`.
        labels: `(N, R)` ints, the class that moves each.
        deltas: `(N, R, classes, 4)`.
        stage: from 0.
        sizes: `(N, 2)`, heights and widths, to which they are clipped.
    """
    boxes = moved(regions, labels, ops.stop_gradient(deltas), stage)
    return box_ops.clip(boxes, sizes)
