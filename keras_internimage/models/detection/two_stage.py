"""What detectors share that look at regions a second time, whatever their heads are."""

import os
from typing import ClassVar

import keras
from keras import ops

from keras_internimage.checkpoints import load_weights
from keras_internimage.checkpoints.names.table import RenameTable
from keras_internimage.layers.composite import serialized_dtype_policy
from keras_internimage.layers.detection import FeaturePyramid, RegionAlign, RegionProposalHead
from keras_internimage.layers.initial_values import skip_initialization
from keras_internimage.models.backbone import InternImageBackbone
from keras_internimage.models.dense import dense_config, pyramid
from keras_internimage.models.detection import arguments
from keras_internimage.models.detection.inputs import box_scale, pad, read_inputs
from keras_internimage.models.detection.selection import select_detections, select_proposals
from keras_internimage.models.detection.training import DetectorTraining
from keras_internimage.models.network import apply_policy, limit_remat_to_blocks
from keras_internimage.ops import boxes as box_ops
from keras_internimage.variants import FLASH, model_name

# Pixels of the image in one of each map: of the backbone's, and one coarser.
STRIDES = (4, 8, 16, 32, 64)
BOX_BINS, MASK_BINS = 7, 14
_ANCHORS = 3


class TwoStageDetector(DetectorTraining):
    """Backbone, pyramid, proposals, and the choice of detections; a subclass has the heads.

    A subclass sets `rename_table` and has

    - `make_heads(dtype)`, which sets layers as attributes, and `heads()`, which gives each with the
      `RegionAlign` before it,
    - `classify(maps, proposals, sizes)`: logits `(N, R, classes + 1)` and boxes
      `(N, R, classes, 4)` in pixels of the resized images, which are not yet clipped,
    - `mask_probabilities(maps, regions, labels)`: `(N, D, 28, 28)`, of each region's own class.

    Args:
        options: the arguments that only the subclass and this class' methods read; they become
            attributes and part of the config.
        others: as of `MaskRCNN`.
    """

    rename_table: ClassVar[RenameTable]
    strides = STRIDES

    def __init__(
        self,
        backbone: keras.Model | str,
        options: dict,
        weights: str | os.PathLike | None,
        dtype: str | keras.DTypePolicy | None,
        variant: str | None,
        name: str,
        trainable: bool,
    ):
        if isinstance(backbone, str):
            backbone = variant = arguments.check_variant(backbone)
        if options["pyramid_norm"] is None:
            options["pyramid_norm"] = variant is not None and variant.startswith(FLASH)
        arguments.check(**options)
        arguments.check_weights(weights)
        # Sizes of images must stay whole numbers, whatever the layers compute in.
        super().__init__(name=name, trainable=trainable, autocast=False)
        self.prepare_training()
        self._options = dict(options)
        apply_policy(self, dtype)
        for option, value in options.items():
            setattr(self, option, value)
        with skip_initialization(weights is not None):
            if isinstance(backbone, str):
                backbone = InternImageBackbone(
                    **dense_config(backbone), dtype=dtype, name=model_name(backbone)
                )
            maps = pyramid(backbone)
            # Behind a function, or Keras would count and save its layers twice: here and as
            # those of `features`.
            self._backbone = (lambda: backbone,)
            self.features = keras.Model(backbone.inputs[0], maps, name="backbone")
            self.pyramid = FeaturePyramid(self.channels, self.pyramid_norm, name="fpn", dtype=dtype)
            self.rpn = RegionProposalHead(_ANCHORS, name="rpn", dtype=dtype)
            self.box_align = RegionAlign(BOX_BINS, STRIDES[:-1], name="box_align", dtype=dtype)
            self.mask_align = RegionAlign(MASK_BINS, STRIDES[:-1], name="mask_align", dtype=dtype)
            self.make_heads(dtype)
            self._build_parts([tuple(x.shape) for x in maps])
        limit_remat_to_blocks(self)
        load_weights(self, weights, table=self.rename_table, variant=variant)

    def _build_parts(self, shapes):
        levels = [(None, None, None, self.channels)] * len(STRIDES)
        self.pyramid.build(shapes)
        self.rpn.build(levels)
        for align in (self.box_align, self.mask_align):
            align.build(levels)
        for align, head in self.heads():
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
        if training or self._evaluates:
            return {"maps": maps, "objectness": logits, "deltas": deltas}
        proposals, _, valid = self.propose(maps, logits, deltas, sizes)
        class_logits, boxes = self.classify(maps, proposals, sizes)
        scale = ops.cast(sizes, "float32") / ops.cast(original_sizes, "float32")
        boxes, scores, labels, found = self.detect(boxes, class_logits, valid, sizes, scale)
        regions = boxes * box_scale(scale)[:, None]
        masks = self.mask_probabilities(maps, regions, labels)
        return {
            "boxes": ops.where(found[..., None], self._formatted(boxes, original_sizes), -1),
            "labels": ops.where(found, labels, -1),
            "scores": ops.where(found, scores, -1),
            "masks": ops.where(found[..., None, None], masks, 0),
            "num_detections": ops.sum(ops.cast(found, "int32"), axis=1),
        }

    def compute_output_spec(self, inputs, training=None):
        """Of the detections: how many there are at most is known, as is the size of their masks."""
        images = inputs["images"] if isinstance(inputs, dict) else inputs
        shape, side = (images.shape[0], self.max_detections), 2 * MASK_BINS
        return {
            "boxes": keras.KerasTensor((*shape, 4), "float32"),
            "labels": keras.KerasTensor(shape, "int32"),
            "scores": keras.KerasTensor(shape, "float32"),
            "masks": keras.KerasTensor((*shape, side, side), "float32"),
            "num_detections": keras.KerasTensor(shape[:1], "int32"),
        }

    def anchors(self, maps):
        """The anchors of each of the pyramid's maps, a list of `(h w A, 4)`."""
        return [
            box_ops.anchors(ops.shape(x)[1:3], stride)
            for x, stride in zip(maps, STRIDES, strict=True)
        ]

    def propose(self, maps, logits, deltas, sizes, per_level=None, count=None):
        """Proposals in pixels of the resized images; see `select_proposals`.

        Args:
            per_level, count: the model's own numbers of proposals unless given.
        """
        return select_proposals(
            [ops.cast(x, "float32") for x in logits],
            [ops.cast(x, "float32") for x in deltas],
            self.anchors(maps),
            sizes,
            per_level or self.proposals_per_level,
            count or self.proposals,
            self.proposal_nms_threshold,
        )

    def detect(self, boxes, logits, valid, sizes, scale):
        """Detections in pixels of the original images; see `select_detections`.

        Args:
            boxes, logits: from `classify`.
            valid: from `propose`.
            sizes: `(N, 2)`, heights and widths of the resized images.
            scale: `(N, 2)`, these divided by the original ones.
        """
        probabilities = ops.softmax(ops.cast(logits, "float32"), axis=-1)[..., :-1]
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
            # A backbone's config knows nothing of single layers.
            "frozen": [layer.name for layer in self._parts() if not layer.trainable],
        }

    def _parts(self):
        return [*self.features.layers, *(x for x in self.layers if x is not self.features)]

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["backbone"] = keras.saving.deserialize_keras_object(
            config["backbone"], custom_objects=custom_objects
        )
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        frozen = config.pop("frozen", ())
        model = cls(**config)
        for layer in model._parts():
            if layer.name in frozen:
                layer.trainable = False
        return model
