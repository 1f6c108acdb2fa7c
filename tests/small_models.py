"""The small models of the tests: their sizes, and offsets that move the sampling points.

`KERAS_BACKEND` is read when a model is made, so that this file may be imported before Keras.
"""

import numpy as np
from deterministic import official_weight

# One block a stage; as positional arguments they are `TINY.values()`.
TINY = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}
SMALL = {**TINY, "channels": 16}
# A stage of two blocks: one of them has its neighbour's name but for a number.
FIVE_BLOCKS = {**SMALL, "depths": (1, 1, 2, 1)}
# A detector of few and small parts, which detects at most six objects.
DETECTOR = {
    "channels": 8,
    "units": 16,
    "max_detections": 6,
    "score_threshold": 0.01,
    "proposals": 30,
    "proposals_per_level": 40,
}


def classifier(sizes=SMALL, **arguments):
    """An InternImage for images of 32 pixels, unless the arguments say otherwise."""
    from keras_internimage import InternImage

    return InternImage(**{**sizes, "input_shape": (32, 32, 3), **arguments})


def backbone(sizes=SMALL, **arguments):
    """An InternImageBackbone for images of 32 pixels, unless the arguments say otherwise."""
    from keras_internimage import InternImageBackbone

    return InternImageBackbone(**{**sizes, "image_shape": (32, 32, 3), **arguments})


def upernet(sizes=TINY, image_shape=(64, 64, 3), **arguments):
    """A UperNet of 8 channels and 5 classes on an InternImageBackbone, unless told otherwise.

    `layer_scale` and other arguments of `InternImageBackbone` go into `sizes`.
    """
    from keras_internimage import UperNet

    options = {"classes": 5, "channels": 8, **arguments}
    return UperNet(backbone(sizes, image_shape=image_shape), **options)


def mask_rcnn(sizes=TINY, on=None, **arguments):
    """A MaskRCNN of 8 channels and 5 classes on an InternImageBackbone, or the one given by `on`.

    Its weights are larger than initial ones, so that it detects something; at most six objects.
    """
    from keras_internimage import MaskRCNN

    if on is None:
        sizes = {"layer_scale": 1.0, **sizes}
        on = with_offsets(backbone(sizes, image_shape=(None, None, 3)))
    options = {"classes": 5, **DETECTOR, **arguments}
    model = MaskRCNN(on, **options)
    return with_large_predictions(model) if options.get("weights") is None else model


def with_large_predictions(model):
    """The MaskRCNN with larger weights where it predicts."""
    generator = np.random.default_rng(0)
    for part in (model.rpn.objectness, model.box_head.scores, model.mask_head.predictions):
        part.kernel.assign(generator.normal(size=part.kernel.shape))
    return model


def convolutional_backbone(channels=8, normalized=True):
    """Maps P2 to P5 of plain convolutions, traced quickly; with batch normalisation or without."""
    import keras

    images = x = keras.Input((None, None, 3))
    maps = {}
    for level in range(1, 6):
        x = keras.layers.Conv2D(channels, 3, 2, "same", name=f"conv{level}")(x)
        if normalized:
            x = keras.layers.BatchNormalization(name=f"norm{level}")(x)
        x = maps[f"P{level}"] = keras.layers.ReLU(name=f"relu{level}")(x)
    model = keras.Model(images, x, name="plain")
    model.pyramid_outputs = maps
    return model


def cascade_mask_rcnn(sizes=TINY, on=None, kind=None, seed=4, **arguments):
    """A CascadeMaskRCNN of 8 channels and 5 classes on an InternImageBackbone, or the one given.

    Unless it is given `weights`, its numbers are the same on all backends and make a difference:
    scores are spread, boxes move, no two stages or classes do the same. `kind` is a class derived
    from it.
    """
    from keras_internimage import CascadeMaskRCNN

    on = on or backbone({"layer_scale": 1.0, **sizes}, image_shape=(None, None, 3))
    options = {"classes": 5, **DETECTOR, **arguments}
    model = (kind or CascadeMaskRCNN)(on, **options)
    if options.get("weights") is None:
        factors = {"rpn_reg": 0.3, "fc_cls": 8, "fc_reg": 1, "conv_logits": 20}
        for variable in model.weights:
            official = model.rename_table.entry(variable.path)
            if official is None:  # another backbone's
                if variable.path.endswith("kernel"):
                    variable.assign(2 * official_weight(variable.path, variable.shape, seed))
                continue
            shapes = official.layout.official_shapes(tuple(variable.shape))
            tensors = {}
            for tensor, shape in zip(official.official, shapes, strict=True):
                factor = factors.get(tensor.split(".")[-2], 1)
                tensors[tensor] = factor * official_weight(tensor, shape, seed)
            variable.assign(model.rename_table.to_keras(variable.path, tensors))
    return model


def detecting(seed=0, **arguments):
    """A `mask_rcnn` that has the same numbers on every backend, and detects something in noise."""
    model = mask_rcnn(**arguments)
    generator = np.random.default_rng(seed)
    heads = {model.rpn.objectness: 1, model.box_head.scores: 0.3, model.mask_head.predictions: 1}
    scales = {id(part.kernel): scale for part, scale in heads.items()}
    for variable in model.weights:
        if len(variable.shape) > 1:
            numbers = generator.normal(size=variable.shape)
            usual = np.sqrt(2 / np.prod(variable.shape[:-1]))
            variable.assign(scales.get(id(variable), usual) * numbers)
        elif variable.path.endswith("bias"):
            variable.assign(np.zeros(variable.shape))
    # No mask is empty.
    bias = model.mask_head.predictions.bias
    bias.assign(np.full(bias.shape, 2.0))
    return model


def with_offsets(model, scale=0.1):
    """The model with offsets and weights of points as after training: they start at zero.

    At zero the sampling points lie on pixels, and nothing before them has a gradient.
    """
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if "offset_mask" in variable.path:
            variable.assign(generator.normal(scale=scale, size=variable.shape))
    return model


def as_options(sizes):
    """The sizes as options of the commands."""
    options = []
    for name, value in sizes.items():
        options += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return options


def one_block(image_size=(64, 64), channels=16, classes=7):
    """A user's model with one InternImageBlock: a fifth of the time that `SMALL` takes to trace.

    For tests of what happens to a model as a whole, whatever it is made of.
    """
    import keras

    from keras_internimage.layers import InternImageBlock, InternImageStem

    images = keras.Input((*image_size, 3))
    x = InternImageBlock(groups=2)(InternImageStem(channels)(images))
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last")(x)
    scores = keras.layers.Dense(classes, activation="softmax", name="predictions")(x)
    return with_offsets(keras.Model(images, scores), scale=0.3)
