"""Models as files for other programs: SavedModel, LiteRT, ONNX, OpenVINO, `torch.export`."""

from keras_internimage.exports.door import export
from keras_internimage.exports.measure import benchmark

export.benchmark = benchmark

__all__ = ["benchmark", "export"]
