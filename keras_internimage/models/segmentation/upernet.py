"""UperNet over any backbone with a feature pyramid, as a Keras Functional model."""

import os

import keras

from keras_internimage.checkpoints import load_weights
from keras_internimage.checkpoints.names.upernet import TABLE
from keras_internimage.layers.initial_values import skip_initialization
from keras_internimage.models.dense import pyramid
from keras_internimage.models.functional import FunctionalModel
from keras_internimage.models.network import apply_policy, limit_remat_to_blocks
from keras_internimage.models.segmentation import arguments
from keras_internimage.models.segmentation.head import Heads, logits

CHANNELS = 512


def UperNet(
    backbone: keras.Model,
    classes: int = 150,
    auxiliary: bool = False,
    output_size: str = "input",
    weights: str | os.PathLike | None = None,
    channels: int = CHANNELS,
    drop_rate: float = 0.1,
    dtype: str | keras.DTypePolicy | None = None,
    variant: str | None = None,
    name: str = "upernet",
) -> keras.Model:
    """Instantiates UperNet over a backbone: a class for each pixel.

    ```
    p     = conv3(concat(P5, up(conv1(pool_s(P5))) for s = 1, 2, 3, 6))      pyramid pooling
    l_k   = conv1(P_k) + up(l_{k+1}),   l_5 = p                               k = 4, 3, 2
    fused = conv3(concat(conv3(l_2), up(conv3(l_3)), up(conv3(l_4)), up(p)))
    logits = conv1(dropout(fused))
    ```

    Batch normalisation and ReLU follow each convolution but the last. `up` is bilinear, to the
    exact size of the map it is joined with.

    The model is made of the backbone's own layers, whose weights it shares: a pretrained backbone
    is the usual start of training.

    Args:
        backbone: a Keras Functional model with `pyramid_outputs`, a dict whose last four entries
            by name, such as "P2" to "P5", are feature maps `(N, h, w, C)`, finest first;
            `InternImageBackbone` or one of KerasHub.
        classes: number of classes.
        auxiliary: whether the model also gives the scores of the auxiliary head, a small one on
            the second coarsest map, whose loss helps training (weight 0.4 in the official recipes).
        output_size: "input" for logits at the size of the images, "quarter" for each head's own:
            1/4 of it, for the auxiliary head 1/16.
        weights: None (random initialization), "ade20k" or "cityscapes" (for a `variant`), the name
            of a published checkpoint, or a path: `.weights.h5`, `.keras`, an official `.pth` or
            `.safetensors`. If the checkpoint has another number of classes than `classes`,
            everything but the last convolutions is loaded and a line says so. The backbone must
            be an InternImage.
        channels: of the decoder's maps, 512 in the published models.
        drop_rate: dropout of whole channels before the last convolution. With 0, and without
            stochastic depth in the backbone, the model has no random state.
        dtype: data type or policy of the head's layers, Keras' global one if None. Logits are
            float32 in mixed and half precision, too.
        variant: key of `VARIANTS`, tells which published weights the keywords stand for.
        name: name of the model.

    Returns:
        A Keras Functional model from normalised images `(N, H, W, 3)` (`preprocess_input`) to
        logits `(N, H, W, classes)`; with `auxiliary` to a dict of "logits" and "auxiliary".

    Raises:
        ValueError: an argument is not as said above, or the weights do not fit the model.

    Reference:
        [Unified Perceptual Parsing for Scene Understanding](https://arxiv.org/abs/1807.10221)
        (ECCV 2018); the heads are those of the official InternImage segmentation models.
    """
    maps = pyramid(backbone)
    arguments.check(classes, output_size, channels, drop_rate)
    arguments.check_weights(weights)
    images = backbone.inputs[0] if output_size == "input" else None
    heads = Heads(classes, drop_rate, dtype)
    with skip_initialization(weights is not None):
        outputs = logits(heads.decode(maps, channels), images, "logits")
        if auxiliary:
            outputs = {
                "logits": outputs,
                "auxiliary": logits(heads.auxiliary(maps[-2]), images, "auxiliary_logits"),
            }
    model = FunctionalModel(backbone.inputs[0], outputs, name=name)
    apply_policy(model, dtype)
    limit_remat_to_blocks(model)
    load_weights(model, weights, table=TABLE, variant=variant)
    return model
