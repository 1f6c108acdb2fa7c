"""A finished detector: boxes, classes and masks of the objects of an image, of any size."""

from keras_internimage.detector.detections import Detections
from keras_internimage.detector.inference import Detector
from keras_internimage.detector.loading import load_detector

__all__ = ["Detections", "Detector", "load_detector"]
