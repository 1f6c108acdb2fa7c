"""Names what is on photographs with an exported SavedModel: TensorFlow and Pillow are all it needs.

    python examples/run_saved_model.py FOLDER photo.jpg ...

FOLDER comes from `internimage-export internimage_t_1k_224 FOLDER --preprocessing`. One with
`--native` brings its operator's library in assets.extra, loaded first.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
from PIL import Image


def main(folder, *photographs):
    for library in pathlib.Path(folder).glob("assets.extra/dcnv3_*"):
        tf.load_op_library(str(library))
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    (spec,) = serve.structured_input_signature[1].values()
    size = [side or 224 for side in spec.shape[1:3]]
    names = pathlib.Path(folder, "assets.extra", "labels.txt")
    labels = names.read_text().splitlines() if names.exists() else []
    for path in photographs:
        image = Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
        (scores,) = serve(tf.constant(np.asarray(image)[None])).values()
        best = int(np.argmax(scores))
        print(
            f"{path}: {labels[best] if labels else f'class {best}'}, {float(scores[0, best]):.1%}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
