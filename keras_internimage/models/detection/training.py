"""How detectors are trained: `compile`, `fit` and `evaluate` with the official losses."""

from typing import Any, ClassVar

import keras
from keras import ops

from keras_internimage.models.detection import losses
from keras_internimage.models.detection.assignment import (
    SAMPLINGS,
    Matching,
    Sampler,
    sample_anchors,
)
from keras_internimage.models.detection.inputs import check_inputs, read_inputs
from keras_internimage.models.detection.targets import check_targets, read_targets
from keras_internimage.models.functional import build_optimizer
from keras_internimage.ops import boxes as box_ops

# Any number: the samples with which `evaluate` computes losses are always the same.
_EVALUATION_SEED = 20


class DetectorTraining(keras.Model):
    """The part of a detector that computes its losses, for Keras' own training step.

    In training a call returns the pyramid's maps and what the region proposal network says of
    them; the heads run in `compute_loss`, where the objects are known. A subclass has `strides`,
    `anchors(maps)`, `propose(...)` and

    - `mask_heads_by_name()`: a dict of its mask heads by the attributes' names,
    - `region_losses(maps, proposals, valid, sizes, targets, sampler, training)`: a dict of scalars
      by the names that `region_loss_names()` gives.
    """

    anchor_matching: ClassVar = Matching(0.7, 0.3, 0.3, samples=256, positives=128)
    # How far anchors may reach beyond the image; None for any.
    anchor_border: ClassVar[float | None] = None
    # Below this difference the loss of anchors' deltas is quadratic.
    anchor_beta: ClassVar[float] = 0.0
    # Anchors of each map and proposals in training, as multiples of the model's own numbers.
    training_factors: ClassVar[tuple[int, int]] = (2, 1)

    def prepare_training(self):
        """Make what only training needs; to be called when the model is made."""
        self.seed_generator = keras.random.SeedGenerator()
        self._sampling = "random"
        self._evaluates = False
        # Behind a function, or Keras would write them into files of weights.
        names = ("rpn_class_loss", "rpn_box_loss", *self.region_loss_names())
        trackers = {name: keras.metrics.Mean(name=name) for name in names}
        self._loss_trackers = (lambda: trackers,)

    @property
    def sampling(self) -> str:
        """Which anchors and regions the losses are computed of, if there are more than wanted.

        "random", as for every training: the state of the model's `seed_generator` decides, in
        `evaluate` always the same. For tests "first_n", the first ones of each kind, and
        "keep_all", all of them.
        """
        return self._sampling

    @sampling.setter
    def sampling(self, value: str) -> None:
        if value not in SAMPLINGS:
            raise ValueError(
                f"`sampling` must be one of {', '.join(SAMPLINGS)}. Received: sampling={value!r}"
            )
        self._sampling = value
        self.train_function = self.test_function = None

    # Keras' training step.

    @property
    def metrics(self):
        return [*super().metrics, *self._loss_trackers[0]().values()]

    def compile(
        self,
        optimizer: Any = "adamw",
        loss: None = None,
        loss_weights: None = None,
        metrics: None = None,
        weighted_metrics: None = None,
        **kwargs: Any,
    ) -> None:
        """Configures the model for training; the losses are its own.

        Args:
            optimizer: as for every Keras model.
            loss, loss_weights, metrics, weighted_metrics: must be None.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: there is a loss or a metric.
        """
        others = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
        }
        for name, value in others.items():
            if value is not None:
                raise ValueError(
                    f"`{name}` must be None: a detector has its own losses, and its detections "
                    f"are measured after training, or by a callback. Received: {name}={value!r}"
                )
        super().compile(optimizer=optimizer, **kwargs)

    def compile_from_config(self, config):
        """As Keras' own, which leaves models alone that have a `compile` of their own."""
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, y=None, *args: Any, **kwargs: Any):
        """As `keras.Model.fit`; targets that are arrays are checked before anything starts."""
        self._check(x, y)
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple):
            self._check(*validation[:2])
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args: Any, **kwargs: Any):
        """As `keras.Model.evaluate`: the losses, without training and of the same samples."""
        self._check(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args: Any, **kwargs: Any):
        """As `keras.Model.predict`; inputs that are arrays are checked before anything starts."""
        check_inputs(x)
        return super().predict(x, *args, **kwargs)

    def make_train_function(self, force=False):
        """As Keras' own."""
        build_optimizer(self)
        return super().make_train_function(force)

    def _check(self, x, y):
        check_inputs(x)
        if y is not None:
            check_targets(x, y, self.classes, self._learning_masks())

    def _learning_masks(self):
        return [name for name, head in self.mask_heads_by_name().items() if head.trainable]

    def test_step(self, *args):
        # Detections are not needed, so that the call need not choose them.
        self._evaluates = True
        try:
            return super().test_step(*args)
        finally:
            self._evaluates = False

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The sum of the losses of a batch, and of the regularizers.

        Args:
            x: as of a call.
            y: the targets, see `MaskRCNN`.
            y_pred: what a call returned in training.
            sample_weight: must be None.
            training: whether samples are drawn anew; else they are always the same.

        Raises:
            ValueError: the targets are not as said.
        """
        if sample_weight is not None:
            raise ValueError(
                "`sample_weight` must be None: the losses of detectors are means over regions of "
                f"all images. Received: sample_weight={sample_weight}"
            )
        if y is None:
            raise ValueError("`y` must be a dict of 'boxes', 'labels', 'masks'. Received: y=None")
        found = self.losses_by_name(x, y, y_pred, training)
        weight = ops.shape(y_pred["objectness"][0])[0]
        trackers = self._loss_trackers[0]()
        for name, value in found.items():
            trackers[name].update_state(value, sample_weight=weight)
        # Keras' way to add up losses divides by the number of replicas, where there are some.
        total = self._aggregate_additional_loss(sum(found.values()))
        for loss in self.losses:
            total = total + self._aggregate_additional_loss(loss)
        return total

    def losses_by_name(self, x, y, y_pred, training):
        """A dict of the losses of a batch, float32 scalars."""
        check_targets(x, y, self.classes, self._learning_masks())
        _, sizes, _ = read_inputs(x)
        targets = read_targets(y, sizes, self.bounding_box_format)
        sampler = Sampler(self.sampling, self.seed_generator if training else _EVALUATION_SEED)
        maps, logits, deltas = (y_pred[key] for key in ("maps", "objectness", "deltas"))
        found = self._anchor_losses(maps, logits, deltas, sizes, targets, sampler)
        factors = self.training_factors
        proposals, _, valid = self.propose(
            maps,
            logits,
            deltas,
            sizes,
            factors[0] * self.proposals_per_level,
            factors[1] * self.proposals,
        )
        of_regions = self.region_losses(maps, proposals, valid, sizes, targets, sampler, training)
        return {**found, **of_regions}

    def _anchor_losses(self, maps, logits, deltas, sizes, targets, sampler):
        cells = [(*ops.shape(x)[1:3], stride) for x, stride in zip(maps, self.strides, strict=True)]
        samples = sample_anchors(
            self.anchors(maps),
            cells,
            targets,
            sizes,
            self.anchor_matching,
            sampler,
            self.anchor_border,
        )
        logits, deltas = ops.concatenate(logits, axis=1), ops.concatenate(deltas, axis=1)
        logits = ops.take_along_axis(logits, samples.index, axis=1)
        deltas = ops.take_along_axis(deltas, samples.index[..., None], axis=1)
        number = losses.number_of_samples(samples.positive, samples.valid)
        wanted = box_ops.encode(samples.boxes, samples.wanted)
        return {
            "rpn_class_loss": losses.objectness_loss(
                logits, samples.positive, samples.valid, number
            ),
            "rpn_box_loss": losses.smooth_l1_loss(
                deltas, wanted, samples.positive, number, self.anchor_beta
            ),
        }
