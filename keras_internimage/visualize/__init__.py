"""What a model sees: sampling points of DCNv3, effective receptive fields, Grad-CAM."""

from keras_internimage.visualize.grad_cam import draw_grad_cam, grad_cam
from keras_internimage.visualize.receptive_field import (
    area_share,
    draw_receptive_field,
    receptive_field,
)
from keras_internimage.visualize.sampling import SamplingPoints, sampling_points
from keras_internimage.visualize.sampling_figure import draw_sampling_points

__all__ = [
    "SamplingPoints",
    "area_share",
    "draw_grad_cam",
    "draw_receptive_field",
    "draw_sampling_points",
    "grad_cam",
    "receptive_field",
    "sampling_points",
]
