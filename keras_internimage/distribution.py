"""InternImage on several devices by `keras.distribution`, which is for JAX.

`keras.distribution.DataParallel` needs nothing of this: each device computes its own images. A
model whose weights do not fit into one device is split by a layout map:

```python
mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"])
layout = keras_internimage.distribution.layout_map(mesh)
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
)
model = InternImageH(weights=None)
```
"""

import keras

__all__ = ["layout_map"]

# Matmuls whose outputs are split, and those that sum over what the former split, so that nothing
# is exchanged between the two but sums. DCNv3 itself has all channels of its images.
_OUTPUTS = r"(mlp_fc1|attention_pool/query|attention_pool/key|attention_pool/value)"
_INPUTS = r"(input_proj|output_proj|offset_mask|mlp_fc2|attention_pool/proj|predictions)"
_CONVOLUTIONS = r"(downsample/conv|head_x4|head_x3|head_conv)"


def layout_map(
    mesh: keras.distribution.DeviceMesh, axis: str | None = None
) -> keras.distribution.LayoutMap:
    """Which axis of each large weight of InternImage is split over one axis of a mesh.

    The weights of the matmuls and of the convolutions between stages are split, which are all but
    some thousandths of a model; norms and depthwise convolutions are whole on each device.

    Args:
        mesh: `keras.distribution.DeviceMesh`.
        axis: name of one of its axes; None for the last. The number of devices along it must
            divide the numbers of channels, which are multiples of 16 in all published models.

    Returns:
        `keras.distribution.LayoutMap`, for `keras.distribution.ModelParallel`. It knows weights by
        their paths, also within a model that has an InternImage as its backbone.

    Raises:
        ValueError: the mesh has no such axis.
    """
    names = list(mesh.axis_names)
    axis = names[-1] if axis is None else axis
    if axis not in names:
        raise ValueError(
            f"`axis` must be None or one of the mesh's, {names}. Received: axis={axis!r}"
        )
    layout = keras.distribution.LayoutMap(mesh)
    layout[rf"(^|.*/){_OUTPUTS}/kernel$"] = (None, axis)
    layout[rf"(^|.*/){_OUTPUTS}/bias$"] = (axis,)
    layout[rf"(^|.*/){_INPUTS}/kernel$"] = (axis, None)
    layout[rf"(^|.*[/_]){_CONVOLUTIONS}/kernel$"] = (None, None, None, axis)
    return layout
