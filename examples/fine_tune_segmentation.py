"""Fine-tunes UperNet on InternImage-T on a folder of images and masks, in Keras.

python examples/fine_tune_segmentation.py street --epochs 50

`internimage-train street` does the same as a command, with a report, checkpoints and more.
"""

import argparse

import keras_internimage
from keras_internimage import training
from keras_internimage.data import SegmentationFiles, scan_segmentation

HEADS = ("logits", "auxiliary")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="images/ and masks/, and classes.txt, which names classes")
    parser.add_argument("--weights", default="imagenet", help="of the backbone: a path, or 'none'")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, default=512, help="side of the crops in pixels")
    parser.add_argument("--out", default="fine_tuned_segmentation.keras")
    options = parser.parse_args()

    images = scan_segmentation(options.folder)
    classes = len(images.class_names)
    name = "scratch-upernet" if options.weights == "none" else "finetune-upernet"
    recipe = training.recipe(name, "T", epochs=options.epochs, resolution=options.size)
    data = SegmentationFiles.for_training(
        images.train, images.encoding, options.batch_size, recipe, outputs=HEADS
    )
    held_out = SegmentationFiles(
        images.validation, images.encoding, 1, training=False, outputs=HEADS, size_multiple=32
    )
    model = keras_internimage.UperNetT(
        classes=classes,
        auxiliary=True,
        backbone_weights=None if options.weights == "none" else options.weights,
        drop_path_rate=recipe.drop_path_rate,
    )
    steps = options.epochs * len(data)
    model.compile(
        training.optimizer(model, recipe, steps, batch_size=options.batch_size),
        loss={head: training.SegmentationLoss() for head in HEADS},
        loss_weights={"logits": 1.0, "auxiliary": training.AUXILIARY_WEIGHT},
        metrics={"logits": [training.MeanIoU(classes)]},
    )
    model.fit(data, validation_data=held_out, epochs=options.epochs, shuffle=False)
    model.save(options.out)
    print(f"Classes: {', '.join(images.class_names)}. Wrote {options.out}")


if __name__ == "__main__":
    main()
