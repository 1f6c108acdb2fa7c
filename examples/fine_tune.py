"""Fine-tunes InternImage-T on a folder of photographs, one subfolder for each class, in Keras.

python examples/fine_tune.py flowers --epochs 10

`internimage-train flowers` does the same as a command, with a report, checkpoints and more.
"""

import argparse

import keras_internimage
from keras_internimage import training
from keras_internimage.data import ImageFiles, scan


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--weights", default="imagenet", help="path of a weights file, or 'none'")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", default="fine_tuned.keras")
    options = parser.parse_args()

    images = scan(options.folder)
    # Weights that are random need higher rates than pretrained ones.
    name = "scratch" if options.weights == "none" else "finetune"
    recipe = training.recipe(name, "T", epochs=options.epochs)
    of_batches = len(images.class_names), options.size, options.batch_size
    data = ImageFiles.for_training(images.train, *of_batches, recipe)
    held_out = ImageFiles(images.validation, *of_batches, training=False)
    model = keras_internimage.InternImageT(
        weights=None if options.weights == "none" else options.weights,
        input_shape=(options.size, options.size, 3),
        classes=len(images.class_names),
        drop_path_rate=recipe.drop_path_rate,
    )
    steps = options.epochs * len(data)
    optimizer = training.optimizer(model, recipe, steps, batch_size=options.batch_size)
    model.compile(optimizer, training.loss(recipe), metrics=["accuracy"])
    model.fit(data, validation_data=held_out, epochs=options.epochs, shuffle=False)
    model.save(options.out)
    print(f"Classes: {', '.join(images.class_names)}. Wrote {options.out}")


if __name__ == "__main__":
    main()
