"""A finished detector: boxes, classes and masks of the objects of an image, of any size."""

from keras_internimage.detector.detections import Detections
from keras_internimage.detector.evaluation import CocoEvaluation, evaluate_batches, evaluate_files
from keras_internimage.detector.inference import Detector
from keras_internimage.detector.loading import load_detector

__all__ = [
    "CocoEvaluation",
    "Detections",
    "Detector",
    "evaluate_batches",
    "evaluate_files",
    "load_detector",
]
