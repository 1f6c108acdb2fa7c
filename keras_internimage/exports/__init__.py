"""Models as files for other programs: SavedModel, LiteRT, ONNX, OpenVINO, `torch.export`.

The names are imported at their first use: the command lines read the table of the formats before
Keras is imported.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_internimage.exports.benchmarking import benchmark
    from keras_internimage.exports.exporting import export

_MODULE_OF = {"benchmark": "benchmarking", "export": "exporting"}

__all__ = ["benchmark", "export"]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
