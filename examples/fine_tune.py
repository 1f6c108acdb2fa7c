"""Fine-tunes an InternImage on a folder of photographs, one subfolder for each class.

python examples/fine_tune.py flowers/train --held-out flowers/test --variant T --epochs 10
"""

import argparse
import math
import pathlib

import keras
import numpy as np

import keras_internimage
from keras_internimage.models import VARIANTS
from keras_internimage.preprocessing import load_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Photographs(keras.utils.PyDataset):
    """Batches of (images, labels), shuffled anew each epoch if `shuffle`."""

    def __init__(self, folder, names, size, batch_size, shuffle):
        super().__init__(workers=2)
        self.files = [
            (path, label)
            for label, name in enumerate(names)
            for path in sorted(pathlib.Path(folder, name).iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
        if not self.files:
            raise SystemExit(f"There must be images in the subfolders. Received: folder={folder}")
        self.size, self.batch_size, self.shuffle = size, batch_size, shuffle
        self.on_epoch_end()

    def __len__(self):
        return math.ceil(len(self.files) / self.batch_size)

    def __getitem__(self, index):
        batch = self.files[index * self.batch_size : (index + 1) * self.batch_size]
        images = np.stack([load_image(path, self.size) for path, _ in batch])
        if self.shuffle and np.random.rand() < 0.5:  # training: mirror every second batch
            images = images[:, :, ::-1].copy()
        return images, np.array([label for _, label in batch])

    def on_epoch_end(self):
        if self.shuffle:
            np.random.shuffle(self.files)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--held-out", help="a folder like the first, to measure on")
    parser.add_argument("--variant", choices=list(VARIANTS), default="T")
    parser.add_argument("--weights", default="imagenet", help="path of a weights file, or 'none'")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", default="fine_tuned.keras")
    options = parser.parse_args()

    names = sorted(path.name for path in pathlib.Path(options.folder).iterdir() if path.is_dir())
    common = names, options.size, options.batch_size
    data = Photographs(options.folder, *common, shuffle=True)
    held_out = Photographs(options.held_out, *common, shuffle=False) if options.held_out else None
    model = getattr(keras_internimage, f"InternImage{options.variant}")(
        weights=None if options.weights == "none" else options.weights,
        input_shape=(options.size, options.size, 3),
        classes=len(names),
        drop_path_rate=0.1,
    )
    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, options.epochs * len(data))
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.05, global_clipnorm=5.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data, validation_data=held_out, epochs=options.epochs)
    model.save(options.out)
    print(f"Classes: {', '.join(names)}. Wrote {options.out}")


if __name__ == "__main__":
    main()
