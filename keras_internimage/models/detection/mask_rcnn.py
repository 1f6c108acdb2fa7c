"""Mask R-CNN over any backbone with a feature pyramid."""

import os

import keras
from keras import ops

from keras_internimage.checkpoints.names.mask_rcnn import TABLE
from keras_internimage.layers.composite import registered
from keras_internimage.layers.detection import BoxHead, MaskHead
from keras_internimage.models.detection import losses
from keras_internimage.models.detection.assignment import Matching, sample_regions
from keras_internimage.models.detection.region_losses import (
    mask_head_loss,
    may_trim,
    number_of_regions,
    own_deltas,
    region_labels,
)
from keras_internimage.models.detection.two_stage import TwoStageDetector
from keras_internimage.ops import boxes as box_ops

# What the box head's deltas are multiplied by.
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)


@registered
class MaskRCNN(TwoStageDetector):
    """Instantiates Mask R-CNN over a backbone: boxes, classes and masks of objects.

    ```
    P2..P6    = pyramid(backbone(images))
    proposals = best(nms(clip(decode(anchors, rpn(P2..P6)))))
    boxes     = best(nms_of_each_class(decode(proposals, box_head(roi_align(P2..P5, proposals)))))
    masks     = sigmoid(mask_head(roi_align(P2..P5, boxes)))
    ```

    Call arguments:
        inputs: images `(N, H, W, 3)`, normalised (`preprocess_input`), or a dict of

            - "images": `(N, H, W, 3)`, each in the upper left corner, zeros to the right and below;
            - "image_sizes": `(N, 2)`, heights and widths of the images in there, to which boxes
              are clipped; H and W if left out;
            - "original_sizes": `(N, 2)`, heights and widths before the images were resized, in
              whose pixels boxes are returned; the former if left out.

            Zeros are added until H and W are multiples of 32, as the official code does.

    Returns of a call and of `predict`: a dict of

        - "boxes" `(N, max_detections, 4)` in `bounding_box_format`,
        - "labels" `(N, max_detections)`, from 0; COCO's 80 classes are in the order of their ids,
        - "scores" `(N, max_detections)`, probabilities, the best first,
        - "masks" `(N, max_detections, 28, 28)`, probabilities on the box; `paste_masks` puts
          them into the image,
        - "num_detections" `(N,)`.

        After the last detection boxes, labels and scores are -1 and masks 0.

    Training needs no loss, the official ones are the model's own:

    ```python
    model.compile(optimizer)
    model.fit(x, {"boxes": boxes, "labels": labels, "masks": masks})     # or a dataset of (x, y)
    ```

    Targets of N images `(N, H, W, 3)` with at most M objects (0, too; batches may differ):

    - "boxes": `(N, M, 4)` in `bounding_box_format`, in pixels of the images in x, or relative to
      "image_sizes";
    - "labels": `(N, M)` ints from 0, and -1 where there is no object. An object whose box has no
      extent counts as none. A label that is no class is refused where its value is known, that is
      in arrays and in PyTorch; in a dataset in TensorFlow and JAX it makes the loss NaN;
    - "masks": `(N, M, H, W)`, bool or uint8, an object where they are not 0. They may
      only be missing if the mask head is frozen: `model.mask_head.trainable = False` before
      `compile`.

    `fit` and `evaluate` report "loss", the sum of

    - "rpn_class_loss" and "rpn_box_loss": binary cross-entropy, and L1 of the deltas, of 256
      anchors in each image, at most 128 of objects (overlap of at least 0.7, or an object's best
      from 0.3 on; less than 0.3 is background); sums, divided by the number of these anchors;
    - "class_loss" and "box_loss": cross-entropy, and L1 of the class' own deltas, of 512 regions in
      each image, at most 128 of objects (overlap of at least 0.5), the objects themselves among
      them; means over these regions;
    - "mask_loss": binary cross-entropy of the class' own 28 x 28 pixels, a mean over the pixels of
      objects' regions.

    For training twice `proposals_per_level` anchors of each map are looked at. Samples are drawn
    at random, decided by `keras.utils.set_random_seed` before the model is made; in `evaluate`
    they are always the same. Regularizers of the backbone are added to the loss. Batch
    normalisation and stochastic depth in the backbone train as everywhere in Keras: the official
    InternImage has none of the former, and for others freezing it (`layer.trainable = False`) is
    usual, since batches are small. Called with `training=True` the model returns the pyramid's
    maps and what the proposal network says of them, from which `compute_loss` goes on.

    The model is made of the backbone's own layers, whose weights it shares.

    Args:
        backbone: a Keras Functional model with `pyramid_outputs`, a dict whose last four entries
            by name, such as "P2" to "P5", are feature maps `(N, h, w, C)` with 1/4 to 1/32 of
            the image's sides; or the key of a variant, such as "T" or "FlashT".
        classes: number of classes, without the background.
        bounding_box_format: of the boxes: "xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw",
            "rel_xyxy", "rel_yxyx", "rel_xywh" or "rel_center_xywh", as Keras names them.
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
        channels: of the pyramid's maps, 256 in the published models.
        units: width of the box head, 1024 in the published models.
        pyramid_norm: whether layer norms follow the pyramid's convolutions, which then have no
            bias. None: as in the official models, True for a `variant` of FlashInternImage.
        dtype: data type or policy of all layers but the backbone's. Scores, boxes and masks are
            float32 in mixed and half precision, too.
        variant: tells which published weights "coco" stands for, where `backbone` does not.
        name: name of the model.

    Raises:
        ValueError: an argument is not as said above, or the weights do not fit the model.

    Reference:
        [Mask R-CNN](https://arxiv.org/abs/1703.06870) (ICCV 2017); numbers and names are those of
        the official InternImage models for COCO.
    """

    rename_table = TABLE
    region_matching = Matching(0.5, 0.5, 0.5, samples=512, positives=128)

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
        name: str = "mask_rcnn",
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
        self.box_head = BoxHead(self.classes, self.units, name="box_head", dtype=dtype)
        self.mask_head = MaskHead(self.classes, name="mask_head", dtype=dtype)

    def heads(self):
        return [(self.box_align, self.box_head), (self.mask_align, self.mask_head)]

    def classify(self, maps, proposals, sizes):
        """Class logits of proposals, and their boxes as each class would have them."""
        logits, deltas = self.box_head(self.box_align(maps, proposals))
        return logits, refined(proposals, deltas)

    def mask_probabilities(self, maps, regions, labels):
        """Masks `(N, D, 28, 28)` of regions of these classes."""
        logits = self.mask_head(self.mask_align(maps, regions), labels)
        return ops.sigmoid(ops.cast(logits, "float32"))

    def mask_heads_by_name(self):
        return {"mask_head": self.mask_head}

    def region_loss_names(self):
        return "class_loss", "box_loss", "mask_loss"

    def region_losses(self, maps, proposals, valid, sizes, targets, sampler, training):
        """Losses of both heads; see `DetectorTraining`."""
        rule = self.region_matching
        samples = sample_regions(proposals, valid, targets, rule, sampler)
        labels = region_labels(samples, targets, self.classes)
        logits, deltas = self.box_head(self.box_align(maps, samples.boxes))
        wanted = box_ops.encode(samples.boxes, samples.wanted, DEVIATIONS)
        number = number_of_regions(samples)
        return {
            "class_loss": losses.class_loss(logits, labels, samples.valid),
            "box_loss": losses.l1_loss(
                own_deltas(deltas, labels), wanted, samples.positive, number
            ),
            "mask_loss": mask_head_loss(
                self.mask_align,
                self.mask_head,
                maps,
                samples,
                labels,
                targets,
                sizes,
                sampler.limit(rule.positives),
                may_trim(self),
            ),
        }


def refined(regions, deltas):
    """Boxes `(N, R, classes, 4)` of regions `(N, R, 4)` as the deltas of each class move them."""
    return box_ops.decode(regions[:, :, None], ops.cast(deltas, "float32"), deviations=DEVIATIONS)
