"""The box head of Cascade Mask R-CNN's stages."""

from keras import ops

from keras_internimage.layers.composite import registered
from keras_internimage.layers.convolutions import NormalizedConvolution
from keras_internimage.layers.detection.convolutions import ConvolutionalLayer, normal


@registered
class CascadeBoxHead(ConvolutionalLayer):
    """Class and box of each region, by convolutions with batch normalisation.

    ```
    y = x,   four times  y = relu(batch_norm(conv3(y)))
    z = relu(W1 flatten(y)),   logits = W2 z,   deltas = W3 z
    ```

    While training, the statistics are those of all pixels of all regions that `valid` tells, of
    all images in the batch that one device has; the moving averages get a tenth of them in each
    step (PyTorch's momentum 0.1), and epsilon is 1e-5. The official runs take the statistics over
    all GPUs (SyncBN), and their moving variance is that of a sample, `n / (n - 1)` times as large
    for `n` pixels: of 512 regions, by 4e-5. A layer with `trainable = False` uses the moving
    averages and leaves them as they are, as Keras has it.

    Args:
        classes: number of classes, without the background, which is the last of the logits.
        units: width of the hidden layer.

    Call arguments:
        inputs: `(N, R, bins, bins, C)`.
        training: whether the batch's statistics are used.
        valid: `(N, R)`, which regions there are; None for all.

    Returns:
        Logits `(N, R, classes + 1)` and deltas `(N, R, classes, 4)`; float32 in mixed precision,
        too.

    Reference:
        [Cascade R-CNN](https://arxiv.org/abs/1906.09756); the head is that of the official
        InternImage models for COCO.
    """

    DEPTH = 4

    def __init__(self, classes: int, units: int = 1024, **kwargs):
        super().__init__(**kwargs)
        self.classes = classes
        self.units = units

    def build(self, input_shape):
        bins, channels = input_shape[2], input_shape[-1]
        self.convolutions = [
            NormalizedConvolution(channels, 3, name=f"conv{k}", dtype=self.dtype_policy)
            for k in range(1, self.DEPTH + 1)
        ]
        self.fc = self._linear(self.units, "fc", "glorot_uniform")
        self.scores = self._linear(self.classes + 1, "classes", normal(0.01), last=True)
        self.deltas = self._linear(4 * self.classes, "deltas", normal(0.001), last=True)
        for convolution in self.convolutions:
            convolution.build((None, bins, bins, channels))
        self.fc.build((None, bins * bins * channels))
        for layer in (self.scores, self.deltas):
            layer.build((None, self.units))
        self.built = True

    def call(self, inputs, training=None, valid=None):
        rois = ops.shape(inputs)[1]
        bins, _, channels = inputs.shape[2:]
        x = ops.reshape(inputs, (-1, bins, bins, channels))
        counted = None
        if training and valid is not None:
            counted = ops.reshape(valid, (-1, 1, 1))
        for convolution in self.convolutions:
            x = self._run(convolution, x, training=training, counted=counted)
        x = ops.reshape(x, (-1, bins * bins * channels))
        x = ops.relu(self._run(self.fc, x))
        logits = ops.reshape(self._run(self.scores, x), (-1, rois, self.classes + 1))
        deltas = ops.reshape(self._run(self.deltas, x), (-1, rois, self.classes, 4))
        return logits, deltas

    def compute_output_shape(self, input_shape, valid_shape=None):
        count = tuple(input_shape[:2])
        return (*count, self.classes + 1), (*count, self.classes, 4)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes, "units": self.units}
