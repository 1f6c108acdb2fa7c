"""What a training leaves to look at: curves, confusion matrix, worst mistakes, and one HTML page.

Needs matplotlib (`pip install keras-internimage[report]`) and Pillow.
"""

from keras_internimage.report.results import Results
from keras_internimage.report.write import write

__all__ = ["Results", "write"]
