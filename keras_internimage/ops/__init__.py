"""The DCNv3 and DCNv4 operators, their geometry, and the choice of what computes them."""

from keras_internimage.ops import dispatch
from keras_internimage.ops.dcnv3 import dcnv3
from keras_internimage.ops.dcnv4 import dcnv4
from keras_internimage.ops.geometry import DCNv3Geometry

__all__ = ["DCNv3Geometry", "dcnv3", "dcnv4", "dispatch"]
