"""Names what is on photographs with an exported LiteRT file: no TensorFlow, no Keras.

    python examples/run_litert.py model.tflite photo.jpg ...

model.tflite comes from `internimage-export internimage_t_1k_224 model.tflite --preprocessing`.
"""

import sys
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image


def main(file, *photographs):
    run = Interpreter(model_path=file).get_signature_runner()
    ((name, details),) = run.get_input_details().items()
    size = [int(side) for side in details["shape_signature"][1:3]]
    labels = []
    if zipfile.is_zipfile(file):
        labels = zipfile.ZipFile(file).read("labels.txt").decode().splitlines()
    for path in photographs:
        image = Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
        (scores,) = run(**{name: np.asarray(image)[None]}).values()
        best = int(np.argmax(scores))
        print(
            f"{path}: {labels[best] if labels else f'class {best}'}, {float(scores[0, best]):.1%}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
