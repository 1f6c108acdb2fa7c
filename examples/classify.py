"""Names what is on photographs, with official InternImage weights.

python examples/classify.py photo.jpg another.png --variant B
"""

import argparse

import numpy as np

import keras_internimage
from keras_internimage.preprocessing import load_image
from keras_internimage.variants import VARIANTS, function_name


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--variant", choices=list(VARIANTS), default="T")
    parser.add_argument("--weights", default="imagenet", help="or the path of a weights file")
    parser.add_argument("--top", type=int, default=5, help="how many names for each image")
    options = parser.parse_args()

    build = getattr(keras_internimage, function_name(options.variant))
    model = build(weights=options.weights)
    size = VARIANTS[options.variant].resolution
    batch = np.stack([load_image(path, size) for path in options.images])
    named = keras_internimage.decode_predictions(model.predict(batch, verbose=0), options.top)
    for path, best in zip(options.images, named, strict=True):
        print(path)
        for _, name, score in best:
            print(f"  {score:6.1%}  {name}")


if __name__ == "__main__":
    main()
