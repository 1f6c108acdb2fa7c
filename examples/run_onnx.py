"""Names what is on photographs with an exported ONNX file, by ONNX Runtime.

    python examples/run_onnx.py model.onnx photo.jpg ...

model.onnx comes from `internimage-export internimage_t_1k_224 model.onnx --preprocessing`.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(file, *photographs):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    size = [side if isinstance(side, int) else 224 for side in images.shape[1:3]]
    labels = session.get_modelmeta().custom_metadata_map.get("labels", "").splitlines()
    for path in photographs:
        image = Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
        (scores,) = session.run(None, {images.name: np.asarray(image)[None]})
        best = int(np.argmax(scores))
        print(f"{path}: {labels[best] if labels else f'class {best}'}, {scores[0, best]:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
