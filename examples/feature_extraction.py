"""Classifies handwritten digits by an InternImage that never saw one: features, nearest neighbours.

python examples/feature_extraction.py --variant T --neighbors 5
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_internimage import InternImageBackbone, preprocess_input
from keras_internimage.checkpoints import DownloadError
from keras_internimage.models import VARIANTS


def extractor(variant, weights):
    """Images to the averages of the feature maps P3, P4 and P5, side by side."""
    backbone = InternImageBackbone.from_variant(variant, weights=weights)
    levels = [backbone.pyramid_outputs[level] for level in ("P3", "P4", "P5")]
    averages = [keras.layers.GlobalAveragePooling2D()(features) for features in levels]
    return keras.Model(backbone.inputs, keras.layers.Concatenate()(averages))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=list(VARIANTS), default="T")
    parser.add_argument("--weights", default="imagenet", help="path of a weights file, or 'none'")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--neighbors", type=int, default=5)
    options = parser.parse_args()

    try:
        model = extractor(options.variant, None if options.weights == "none" else options.weights)
    except DownloadError as error:
        raise SystemExit(f"{error}\nWithout the weights: --weights none, or a path.") from error
    digits = load_digits()
    pixels = np.repeat(digits.images[: options.samples, ..., None] * (255 / 16), 3, axis=-1)
    images = keras.ops.image.resize(
        pixels.astype("float32"), (options.size, options.size), data_format="channels_last"
    )
    images = preprocess_input(keras.ops.convert_to_numpy(images))
    features = model.predict(images, batch_size=32)
    labels = digits.target[: options.samples]
    known, new, known_labels, new_labels = train_test_split(
        features, labels, test_size=1 / 3, random_state=0, stratify=labels
    )
    neighbors = make_pipeline(StandardScaler(), KNeighborsClassifier(options.neighbors))
    accuracy = neighbors.fit(known, known_labels).score(new, new_labels)
    print(f"{features.shape[1]} features; {accuracy:.1%} of {len(new)} held-out digits are right.")


if __name__ == "__main__":
    main()
