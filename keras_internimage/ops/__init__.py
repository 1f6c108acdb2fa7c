"""The DCNv3 operator, its geometry, and the choice of what computes it."""

from keras_internimage.ops import dispatch
from keras_internimage.ops.dcnv3 import dcnv3
from keras_internimage.ops.geometry import DCNv3Geometry

__all__ = ["DCNv3Geometry", "dcnv3", "dispatch"]
