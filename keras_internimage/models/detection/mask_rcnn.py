"""Mask R-CNN over any backbone with a feature pyramid."""

import os

import keras
from keras import ops

from keras_internimage.checkpoints import load_weights
from keras_internimage.checkpoints.names.mask_rcnn import TABLE
from keras_internimage.layers.composite import (
    registered,
    serialized_dtype_policy,
    skip_initialization,
)
from keras_internimage.layers.detection import (
    BoxHead,
    FeaturePyramid,
    MaskHead,
    RegionAlign,
    RegionProposalHead,
)
from keras_internimage.models.backbone import InternImageBackbone
from keras_internimage.models.dense import dense_config, pyramid
from keras_internimage.models.detection import arguments
from keras_internimage.models.detection.selection import select_detections, select_proposals
from keras_internimage.models.network import apply_policy, limit_remat_to_blocks
from keras_internimage.ops import boxes as box_ops

# Pixels of the image in one of each map: of the backbone's, and one coarser.
STRIDES = (4, 8, 16, 32, 64)
MULTIPLE = 32
BOX_BINS, MASK_BINS = 7, 14
# What the box head's deltas are multiplied by.
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
_ANCHORS = 3


@registered
class MaskRCNN(keras.Model):
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

    The model is made of the backbone's own layers, whose weights it shares.

    Args:
        backbone: a Keras Functional model with `pyramid_outputs`, a dict whose last four entries
            by name, such as "P2" to "P5", are feature maps `(N, h, w, C)` with 1/4 to 1/32 of
            the image's sides; or the key of a variant, "T", "S", "B", "L", "XL" or "H".
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
        dtype: str | keras.DTypePolicy | None = None,
        variant: str | None = None,
        name: str = "mask_rcnn",
        trainable: bool = True,
    ):
        self._options = {
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
        }
        arguments.check(**self._options)
        arguments.check_weights(weights)
        # Sizes of images must stay whole numbers, whatever the layers compute in.
        super().__init__(name=name, trainable=trainable, autocast=False)
        apply_policy(self, dtype)
        for option, value in self._options.items():
            setattr(self, option, value)
        with skip_initialization(weights is not None):
            if isinstance(backbone, str):
                variant = arguments.check_variant(backbone)
                backbone = InternImageBackbone(
                    **dense_config(variant), dtype=dtype, name=f"internimage_{variant.lower()}"
                )
            maps = pyramid(backbone)
            # Behind a function, or Keras would count and save its layers twice: here and as
            # those of `features`.
            self._backbone = (lambda: backbone,)
            self.features = keras.Model(backbone.inputs[0], maps, name="backbone")
            self.pyramid = FeaturePyramid(channels, name="fpn", dtype=dtype)
            self.rpn = RegionProposalHead(_ANCHORS, name="rpn", dtype=dtype)
            self.box_align = RegionAlign(BOX_BINS, STRIDES[:-1], name="box_align", dtype=dtype)
            self.box_head = BoxHead(classes, units, name="box_head", dtype=dtype)
            self.mask_align = RegionAlign(MASK_BINS, STRIDES[:-1], name="mask_align", dtype=dtype)
            self.mask_head = MaskHead(classes, name="mask_head", dtype=dtype)
            self._build_parts([tuple(x.shape) for x in maps])
        limit_remat_to_blocks(self)
        load_weights(self, weights, table=TABLE, variant=variant)

    def _build_parts(self, shapes):
        levels = [(None, None, None, self.channels)] * len(STRIDES)
        self.pyramid.build(shapes)
        self.rpn.build(levels)
        for align, head in ((self.box_align, self.box_head), (self.mask_align, self.mask_head)):
            align.build(levels)
            head.build((None, None, align.output_size, align.output_size, self.channels))
        self.built = True

    @property
    def backbone(self) -> keras.Model:
        """The backbone the model was made of."""
        return self._backbone[0]()

    def call(self, inputs, training=None):
        images, sizes, original_sizes = read_inputs(inputs)
        maps = self.pyramid(self.features(pad(images), training=training))
        logits, deltas = self.rpn(maps)
        proposals, _, valid = self.propose(maps, logits, deltas, sizes)
        class_logits, moves = self.box_head(self.box_align(maps, proposals))
        scale = ops.cast(sizes, "float32") / ops.cast(original_sizes, "float32")
        boxes, scores, labels, found = self.detect(
            proposals, valid, class_logits, moves, sizes, scale
        )
        regions = boxes * box_scale(scale)[:, None]
        masks = ops.sigmoid(self.own_masks(maps, regions, labels))
        return {
            "boxes": ops.where(found[..., None], self._formatted(boxes, original_sizes), -1),
            "labels": ops.where(found, labels, -1),
            "scores": ops.where(found, scores, -1),
            "masks": ops.where(found[..., None, None], masks, 0),
            "num_detections": ops.sum(ops.cast(found, "int32"), axis=1),
        }

    def propose(self, maps, logits, deltas, sizes):
        """Proposals in pixels of the resized images; see `select_proposals`."""
        anchors = [
            box_ops.anchors(ops.shape(x)[1:3], stride)
            for x, stride in zip(maps, STRIDES, strict=True)
        ]
        return select_proposals(
            [ops.cast(x, "float32") for x in logits],
            [ops.cast(x, "float32") for x in deltas],
            anchors,
            sizes,
            self.proposals_per_level,
            self.proposals,
            self.proposal_nms_threshold,
        )

    def detect(self, proposals, valid, logits, deltas, sizes, scale):
        """Detections in pixels of the original images; see `select_detections`.

        Args:
            proposals, valid: from `propose`.
            logits, deltas: from the box head.
            sizes: `(N, 2)`, heights and widths of the resized images.
            scale: `(N, 2)`, these divided by the original ones.
        """
        probabilities = ops.softmax(ops.cast(logits, "float32"), axis=-1)[..., :-1]
        boxes = box_ops.decode(
            proposals[:, :, None], ops.cast(deltas, "float32"), deviations=DEVIATIONS
        )
        boxes = box_ops.clip(boxes, sizes) / box_scale(scale)[:, None, None]
        boxes, scores, labels, found = select_detections(
            boxes,
            probabilities,
            valid,
            self.max_detections,
            self.score_threshold,
            self.nms_threshold,
        )
        return ops.where(found[..., None], boxes, 0), scores, labels, found

    def own_masks(self, maps, regions, labels):
        """Logits `(N, D, 28, 28)` of the masks of each region's own class."""
        logits = ops.cast(self.mask_head(self.mask_align(maps, regions)), "float32")
        return ops.take_along_axis(logits, labels[:, :, None, None, None], axis=-1)[..., 0]

    def _formatted(self, boxes, sizes):
        sizes = ops.cast(sizes, "float32")[:, None]
        return keras.utils.bounding_boxes.convert_format(
            boxes,
            source="xyxy",
            target=self.bounding_box_format,
            height=sizes[..., :1],
            width=sizes[..., 1:],
        )

    def get_config(self):
        return {
            **self._options,
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "name": self.name,
            "trainable": self.trainable,
            "dtype": serialized_dtype_policy(self),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["backbone"] = keras.saving.deserialize_keras_object(
            config["backbone"], custom_objects=custom_objects
        )
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        return cls(**config)


def read_inputs(inputs):
    """Images, their heights and widths, and those before they were resized, of a model's inputs.

    Raises:
        ValueError: there are no images, or something else in the dict.
    """
    if not isinstance(inputs, dict):
        inputs = {"images": inputs}
    known = ("images", "image_sizes", "original_sizes")
    if "images" not in inputs or not set(inputs) <= set(known):
        raise ValueError(
            f"Inputs must be images or a dict of {', '.join(known)}. Received: {sorted(inputs)}"
        )
    images = inputs["images"]
    sizes = inputs.get("image_sizes")
    if sizes is None:
        count, height, width = ops.shape(images)[:3]
        size = ops.stack([ops.cast(height, "int32"), ops.cast(width, "int32")])
        sizes = ops.tile(size[None], (count, 1))
    original_sizes = inputs.get("original_sizes")
    return images, sizes, sizes if original_sizes is None else original_sizes


def pad(images):
    """Zeros to the right and below, until the sides are multiples of 32."""
    height, width = ops.shape(images)[1:3]
    missing = [-height % MULTIPLE, -width % MULTIPLE]
    if all(isinstance(n, int) and n == 0 for n in missing):
        return images
    return ops.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))


def box_scale(scale):
    """Factors `(N, 4)` of a box's coordinates from those of heights and widths, `(N, 2)`."""
    return ops.take(scale, ops.convert_to_tensor([1, 0, 1, 0], "int32"), axis=1)
