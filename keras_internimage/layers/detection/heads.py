"""The heads of Mask R-CNN: class and box, or mask, of what was pooled from a region."""

import keras
from keras import ops

from keras_internimage.layers import sublayers
from keras_internimage.layers.composite import registered
from keras_internimage.layers.detection.convolutions import (
    ConvolutionalLayer,
    kaiming,
    normal,
)
from keras_internimage.layers.initial_values import InitialValues


@registered
class BoxHead(ConvolutionalLayer):
    """Class and box of each region.

    ```
    y = relu(W2 relu(W1 flatten(x))),   logits = W3 y,   deltas = W4 y
    ```

    Args:
        classes: number of classes, without the background, which is the last of the logits.
        units: width of the two hidden layers.

    Input shape: `(N, R, bins, bins, C)`.
    Output shape: `(N, R, classes + 1)` and `(N, R, classes, 4)`; float32 in mixed precision, too.
    """

    def __init__(self, classes: int, units: int = 1024, **kwargs):
        super().__init__(**kwargs)
        self.classes = classes
        self.units = units

    def build(self, input_shape):
        features = input_shape[2] * input_shape[3] * input_shape[4]
        self.fc1 = self._linear(self.units, "fc1", "glorot_uniform")
        self.fc2 = self._linear(self.units, "fc2", "glorot_uniform")
        self.scores = self._linear(self.classes + 1, "classes", normal(0.01), last=True)
        self.deltas = self._linear(4 * self.classes, "deltas", normal(0.001), last=True)
        self.fc1.build((None, features))
        for layer in (self.fc2, self.scores, self.deltas):
            layer.build((None, self.units))
        self.built = True

    def call(self, inputs):
        rois = ops.shape(inputs)[1]
        shape = inputs.shape[2:]
        x = ops.reshape(inputs, (-1, shape[0] * shape[1] * shape[2]))
        x = sublayers.relu(self._run(self.fc1, x))
        x = sublayers.relu(self._run(self.fc2, x))
        logits = ops.reshape(self._run(self.scores, x), (-1, rois, self.classes + 1))
        deltas = ops.reshape(self._run(self.deltas, x), (-1, rois, self.classes, 4))
        return logits, deltas

    def compute_output_shape(self, input_shape):
        count = tuple(input_shape[:2])
        return (*count, self.classes + 1), (*count, self.classes, 4)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes, "units": self.units}


@registered
class MaskHead(ConvolutionalLayer):
    """A mask of each class for each region, at twice the size of what was pooled.

    Four convolutions of 3x3 with ReLU, a transposed one of 2x2 with ReLU, one of 1x1.

    Args:
        classes: number of classes.

    Call arguments:
        inputs: `(N, R, bins, bins, C)`.
        labels: ints `(N, R)`, the class of each region, if the masks of others are not needed.

    Returns:
        Logits `(N, R, 2 bins, 2 bins, classes)`, with labels `(N, R, 2 bins, 2 bins)`; float32 in
        mixed precision, too.

    Reference:
        [Mask R-CNN](https://arxiv.org/abs/1703.06870)
    """

    DEPTH = 4

    def __init__(self, classes: int, **kwargs):
        super().__init__(**kwargs)
        self.classes = classes

    def build(self, input_shape):
        channels, bins = input_shape[-1], input_shape[2]
        shape = (None, bins, bins, channels)
        self.convolutions = [
            self._convolution(channels, 3, f"conv{k}", kaiming()) for k in range(1, self.DEPTH + 1)
        ]
        self.upsample = keras.layers.Conv2DTranspose(
            channels,
            2,
            strides=2,
            data_format="channels_last",
            kernel_initializer=InitialValues(kaiming()),
            bias_initializer=InitialValues("zeros"),
            name="upsample",
            dtype=self.dtype_policy,
        )
        self.predictions = self._convolution(self.classes, 1, "predictions", kaiming(), last=True)
        for layer in (*self.convolutions, self.upsample):
            layer.build(shape)
        self.predictions.build((None, 2 * bins, 2 * bins, channels))
        self.built = True

    def call(self, inputs, labels=None):
        rois, bins = ops.shape(inputs)[1], inputs.shape[2]
        x = ops.reshape(inputs, (-1, *inputs.shape[2:]))
        for convolution in self.convolutions:
            x = sublayers.convolution_and_relu(self, convolution, x)
        # In mixed precision the last layer casts by itself.
        if labels is not None and self.predictions.compute_dtype == self.compute_dtype:
            own = self._own_masks(x, ops.reshape(labels, (-1,)))
            return ops.reshape(own, (-1, rois, 2 * bins, 2 * bins))
        x = sublayers.relu(self._run(self.upsample, x))
        x = self._run(self.predictions, x)
        x = ops.reshape(x, (-1, rois, 2 * bins, 2 * bins, self.classes))
        if labels is None:
            return x
        return ops.take_along_axis(x, labels[:, :, None, None, None], axis=-1)[..., 0]

    def _own_masks(self, x, labels):
        """Logits of one class for each region: the last convolution has one filter then.

        The transposed convolution's windows do not overlap, so that it is a matmul, whose pixels
        stay in its order until there is one number of each.
        """
        bins, channels = x.shape[1], x.shape[3]
        kernel = ops.transpose(self.upsample.kernel, (3, 0, 1, 2))
        kernel = ops.reshape(kernel, (channels, 4 * channels))
        x = sublayers.matmul(ops.reshape(x, (-1, channels)), kernel)
        x = sublayers.relu(sublayers.add(x, ops.tile(self.upsample.bias, 4)))
        filters = ops.transpose(self.predictions.kernel[0, 0])
        x = ops.reshape(x, (-1, bins * bins * 4, channels))
        x = ops.matmul(x, ops.take(filters, labels, axis=0)[..., None])
        x = ops.reshape(x, (-1, bins, bins, 2, 2))
        x = ops.transpose(x, (0, 1, 3, 2, 4))
        return x + ops.take(self.predictions.bias, labels, axis=0)[:, None, None, None, None]

    def compute_output_shape(self, input_shape, labels_shape=None):
        side = 2 * input_shape[2]
        classes = () if labels_shape is not None else (self.classes,)
        return (*input_shape[:2], side, side, *classes)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}
