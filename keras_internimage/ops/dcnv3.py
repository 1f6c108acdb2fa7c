"""The public DCNv3 operator."""

from typing import Any

import keras

from keras_internimage.ops import dispatch
from keras_internimage.ops.geometry import DCNv3Geometry

DTYPES = ("float16", "bfloat16", "float32", "float64")
MASK_ACTIVATIONS = (None, "softmax")


def _check_tensor(name, tensor, rank=4):
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype not in DTYPES:
        raise ValueError(
            f"`{name}` must have one of the dtypes {DTYPES}. Received: {name}.dtype={dtype}"
        )
    if len(tensor.shape) != rank:
        raise ValueError(
            f"`{name}` must have rank {rank}, (batch, height, width, channels). "
            f"Received: {name}.shape={tuple(tensor.shape)}"
        )


def _static(shape):
    """`shape` with None for every size that is not a plain integer."""
    return tuple(size if isinstance(size, int) else None for size in shape)


def _output_shape(inputs, offset, mask, geometry):
    """Checks the shapes of the tensors and returns the output's."""
    tensors = {"inputs": inputs, "offset": offset}
    if mask is not None:
        tensors["mask"] = mask
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    batch, height, width, channels = _static(inputs.shape)
    if channels is None or channels % geometry.groups or channels == 0:
        raise ValueError(
            "The last size of `inputs` must be a known multiple of `groups`. "
            f"Received: inputs.shape={tuple(inputs.shape)}, groups={geometry.groups}"
        )
    out_height, out_width = geometry.output_size(height, width)
    samples = geometry.groups * geometry.points
    if mask is None:
        points = [("offset", offset, 3 * samples, "groups * points * 3")]
    else:
        points = [
            ("offset", offset, 2 * samples, "groups * points * 2"),
            ("mask", mask, samples, "groups * points"),
        ]
    for name, tensor, last, words in points:
        expected = (batch, out_height, out_width, last)
        actual = _static(tensor.shape)
        for want, got in zip(expected, actual, strict=True):
            if want is not None and got is not None and want != got:
                raise ValueError(
                    f"`{name}` must have the shape (batch, output height, output width, {words}) "
                    f"= {expected}. Received: {name}.shape={actual}, "
                    f"inputs.shape={tuple(inputs.shape)}, {geometry}"
                )
        if actual[-1] is None:
            raise ValueError(
                f"The last size of `{name}` must be known, {last}. Received: {name}.shape={actual}"
            )
    known = [(batch, out_height, out_width), *(_static(tensor.shape) for _, tensor, *_ in points)]
    leading = [
        next((shape[axis] for shape in known if shape[axis] is not None), None) for axis in range(3)
    ]
    return (*leading, channels)


def _check_choices(mask_activation, implementation):
    if mask_activation not in MASK_ACTIVATIONS:
        raise ValueError(
            f"`mask_activation` must be one of {MASK_ACTIVATIONS}. "
            f"Received: mask_activation={mask_activation!r}"
        )
    dispatch.check_name(implementation)


def run(inputs, offset, mask, geometry, mask_activation=None, implementation=None):
    """`dcnv3` for tensors of the backend that are known to be as they should."""
    request = dispatch.Request(
        backend=keras.backend.backend(),
        geometry=geometry,
        dtype=keras.backend.standardize_dtype(inputs.dtype),
        input_shape=_static(inputs.shape),
        mask_activation=mask_activation,
        device=dispatch.device_of(inputs),
        device_index=dispatch.device_index_of(inputs),
    )
    chosen = dispatch.select(request, implementation)
    return chosen.run(inputs, offset, mask, geometry, mask_activation)


@keras.saving.register_keras_serializable(package="keras_internimage")
class DCNv3Operation(keras.Operation):
    """DCNv3 as a node of a Keras graph; see `dcnv3` for what it computes."""

    def __init__(
        self,
        groups,
        kernel_size=3,
        strides=1,
        padding=1,
        dilation_rate=1,
        offset_scale=1.0,
        remove_center=False,
        mask_activation=None,
        implementation=None,
        name=None,
    ):
        super().__init__(name=name)
        self.geometry = DCNv3Geometry(
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            dilation_rate=dilation_rate,
            groups=groups,
            offset_scale=offset_scale,
            remove_center=remove_center,
        )
        _check_choices(mask_activation, implementation)
        self.mask_activation = mask_activation
        self.implementation = implementation

    def call(self, inputs, offset, mask=None):
        _output_shape(inputs, offset, mask, self.geometry)
        return run(inputs, offset, mask, self.geometry, self.mask_activation, self.implementation)

    def compute_output_spec(self, inputs, offset, mask=None):
        shape = _output_shape(inputs, offset, mask, self.geometry)
        return keras.KerasTensor(shape, dtype=inputs.dtype)

    def get_config(self):
        geometry = self.geometry
        return {
            "groups": geometry.groups,
            "kernel_size": geometry.kernel_size,
            "strides": geometry.strides,
            "padding": geometry.padding,
            "dilation_rate": geometry.dilation_rate,
            "offset_scale": geometry.offset_scale,
            "remove_center": geometry.remove_center,
            "mask_activation": self.mask_activation,
            "implementation": self.implementation,
            "name": self.name,
        }


def dcnv3(
    inputs: Any,
    offset: Any,
    mask: Any = None,
    *,
    groups: int,
    kernel_size: int | tuple[int, int] = 3,
    strides: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation_rate: int | tuple[int, int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    mask_activation: str | None = None,
    implementation: str | None = None,
) -> Any:
    """Deformable convolution v3: a masked sum of bilinear samples, per group of channels.

    ```
    output[n, h, w, g] = sum_p mask[n, h, w, g, p] * bilinear(inputs[n, :, :, g], x_p, y_p)
    ```

    with the positions `(x_p, y_p)` given by `DCNv3Geometry` and the learned offsets. The input
    is zero outside its borders. There are no weights: those are the layer's projections
    (`keras_internimage.layers.DCNv3`). An offset that is not finite samples nothing.

    Args:
        inputs: `(N, H, W, C)`; group `g` owns the channels `g * D` to `(g + 1) * D - 1`, where
            `D = C / groups`.
        offset: `(N, Ho, Wo, groups * P * 2)`, pixels. Channel `(g * P + p) * 2` is the
            horizontal offset `dx` of point `p`, the next one the vertical offset `dy`.
        mask: `(N, Ho, Wo, groups * P)`; channel `g * P + p`. Logits if `mask_activation` is
            `"softmax"`. None if `offset` holds both, `(N, Ho, Wo, groups * P * 3)`, the masks
            behind the offsets, as one projection yields them: that saves copies.
        groups: Number of groups.
        kernel_size: Integer or pair (height, width).
        strides: Integer or pair.
        padding: Integer or pair; zeros on each side.
        dilation_rate: Integer or pair.
        offset_scale: Factor of the kernel's own grid and of the offsets.
        remove_center: Whether the kernel's middle point is left out.
        mask_activation: None, or `"softmax"` to normalise the mask over the `P` points of each
            group.
        implementation: None for the fastest implementation that can run, or the name of one
            (`keras_internimage.ops.dispatch.names()`), which then runs or raises.

    Returns:
        `(N, Ho, Wo, C)` in the dtype of `inputs`. Positions and sums are computed in float32,
        or in float64 if an argument is float64.

    Raises:
        ValueError: If a shape, a dtype or an argument of the geometry is not as described.
        RuntimeError: If the named implementation cannot run.

    Gradients can be differentiated again, as gradient penalties and meta-learning ask for, whatever
    implementation runs; the second derivatives are computed by the portable one.

    The gradient with respect to an offset is that of the cell between four pixels in which the
    sample lies; a sample exactly on a pixel counts to the cell on its lower right.

    Source: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with
    Deformable Convolutions", 2023, equation 2.
    """
    tensors = [inputs, offset] if mask is None else [inputs, offset, mask]
    arguments: dict[str, Any] = {
        "groups": groups,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "dilation_rate": dilation_rate,
        "offset_scale": offset_scale,
        "remove_center": remove_center,
    }
    if any(isinstance(tensor, keras.KerasTensor) for tensor in tensors):
        choices = {"mask_activation": mask_activation, "implementation": implementation}
        return DCNv3Operation(**arguments, **choices).symbolic_call(*tensors)
    # Without an operation, which Keras takes longer to make than the kernels to compute.
    geometry = DCNv3Geometry(**arguments)
    _check_choices(mask_activation, implementation)
    inputs, offset, *mask = (keras.ops.convert_to_tensor(tensor) for tensor in tensors)
    mask = mask[0] if mask else None
    _output_shape(inputs, offset, mask, geometry)
    return run(inputs, offset, mask, geometry, mask_activation, implementation)
