"""Models as files for other programs: SavedModel, LiteRT, ONNX, OpenVINO, `torch.export`."""

from keras_internimage.exports.benchmarking import benchmark
from keras_internimage.exports.exporting import export

__all__ = ["benchmark", "export"]
