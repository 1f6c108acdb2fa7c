"""Models as files for other programs: SavedModel, LiteRT, ONNX, OpenVINO, `torch.export`.

The names are imported at their first use: the command lines read the table of the formats before
Keras is imported.
"""

from typing import TYPE_CHECKING

from keras_internimage import lazy_names

if TYPE_CHECKING:
    from keras_internimage.exports.benchmarking import benchmark
    from keras_internimage.exports.exporting import export

_MODULE_OF = {"benchmark": "benchmarking", "export": "exporting"}

__all__ = ["benchmark", "export"]

__getattr__, __dir__ = lazy_names.of(__name__, _MODULE_OF)
