"""The head that says of every anchor whether an object is there, and where its box lies."""

from keras import ops

from keras_internimage.layers import sublayers
from keras_internimage.layers.composite import check_image_features, registered
from keras_internimage.layers.detection.convolutions import ConvolutionalLayer, normal


@registered
class RegionProposalHead(ConvolutionalLayer):
    """Objectness and deltas of the anchors around each pixel, the same weights for all maps.

    ```
    y = relu(conv3(x)),   logits = conv1(y),   deltas = conv1(y)
    ```

    Args:
        anchors: number of anchors of each pixel, A.

    Input shape: a list of maps `(N, h, w, C)`.
    Output shape: two lists with one entry for each map, logits `(N, h w A)` and deltas
    `(N, h w A, 4)`, ordered by row, column, anchor; float32 in mixed precision, too.

    Reference:
        [Faster R-CNN](https://arxiv.org/abs/1506.01497), section 3.1
    """

    def __init__(self, anchors: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.anchors = anchors

    def build(self, input_shape):
        shape = input_shape[0]
        check_image_features(self, shape)
        self.conv = self._convolution(shape[-1], 3, "conv", normal(0.01))
        self.objectness = self._convolution(self.anchors, 1, "objectness", normal(0.01), last=True)
        self.deltas = self._convolution(4 * self.anchors, 1, "deltas", normal(0.01), last=True)
        for layer in (self.conv, self.objectness, self.deltas):
            layer.build(shape)
        self.built = True

    def call(self, inputs):
        logits, deltas = [], []
        for x in inputs:
            count = ops.shape(x)[1] * ops.shape(x)[2] * self.anchors
            y = sublayers.convolution_and_relu(self, self.conv, x)
            logits.append(ops.reshape(self._run(self.objectness, y), (-1, count)))
            deltas.append(ops.reshape(self._run(self.deltas, y), (-1, count, 4)))
        return logits, deltas

    def compute_output_shape(self, input_shape):
        counts = [
            None if None in shape[1:3] else shape[1] * shape[2] * self.anchors
            for shape in input_shape
        ]
        batch = input_shape[0][0]
        return [(batch, n) for n in counts], [(batch, n, 4) for n in counts]

    def get_config(self):
        return {**super().get_config(), "anchors": self.anchors}
