"""What a training leaves to look at: curves, confusion matrix, worst mistakes, and one HTML page.

Needs Jinja2 and matplotlib: `pip install 'keras-internimage[report]'`.
"""

from keras_internimage.report.detection import DetectionResults
from keras_internimage.report.provenance import Provenance
from keras_internimage.report.results import Results
from keras_internimage.report.segmentation import SegmentationResults
from keras_internimage.report.write import write

__all__ = ["DetectionResults", "Provenance", "Results", "SegmentationResults", "write"]
