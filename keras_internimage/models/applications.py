"""The published variants as functions in the manner of keras.applications."""

from keras_internimage.models.classifier import InternImage
from keras_internimage.variants import VARIANTS

_DOCSTRING = """Instantiates InternImage-{variant}: {parameters} parameters, {side} x {side} pixels.

    Images must be preprocessed by `keras_internimage.preprocess_input`, or read by
    `keras_internimage.preprocessing.load_image`.

    Args:
        include_top: whether to include the classification head.
        weights: {keywords}, None (random initialization), the name of
            a published checkpoint, or a path to `.weights.h5`, `.keras` or an official
            `.pth` or `.safetensors`.
        input_tensor: Keras tensor to use as the image input.
        input_shape: (height, width, channels), channels last; default ({side}, {side}, 3) with
            the head, (None, None, 3) without. Height and width may be None{sides}.
        pooling: for `include_top=False`: None, "avg" or "max".
        classes: number of classes. If the weights have another number, all layers but the
            last are loaded and a line says so.
        classifier_activation: activation of the last layer, None for logits.
        name: name of the model.
        **kwargs: further arguments of `keras_internimage.InternImage`: `drop_path_rate`,
            `drop_rate`, `implementation`, `dtype`, or any that changes the architecture.

    Returns:
        A Keras Functional model.

    Raises:
        ValueError: an argument is not as said above, or the weights do not fit the model.

    Reference:
        [InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
        Convolutions](https://arxiv.org/abs/2211.05778) (CVPR 2023)
    """


def _model_function(variant, parameters):
    row = VARIANTS[variant]
    function_name = f"InternImage{variant}"
    default_name = f"internimage_{variant.lower()}"

    def function(
        include_top=True,
        weights="imagenet",
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation="softmax",
        name=default_name,
        **kwargs,
    ):
        return InternImage(
            **{**row.config(), **kwargs},
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            default_size=row.resolution,
            variant=variant,
            name=name,
        )

    function.__name__ = function.__qualname__ = function_name
    function.__doc__ = _DOCSTRING.format(
        variant=variant,
        parameters=parameters,
        side=row.resolution,
        keywords='"imagenet", "imagenet22k"' if row.resolution > 224 else '"imagenet"',
        sides=", multiples of 32 otherwise" if row.use_clip_projector else "",
    )
    return function


InternImageT = _model_function("T", "30 M")
InternImageS = _model_function("S", "50 M")
InternImageB = _model_function("B", "97 M")
InternImageL = _model_function("L", "223 M")
InternImageXL = _model_function("XL", "335 M")
InternImageH = _model_function("H", "1.09 B")
InternImageG = _model_function("G", "3.08 B")
