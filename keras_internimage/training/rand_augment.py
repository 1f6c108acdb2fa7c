"""RandAugment over Keras' own layers, with the strengths of the official recipes.

`keras.layers.RandAugment` is not used: it makes the same changes to all images of a batch, computes
all eleven of its changes to use two (92 ms an image on JAX, 272 ms on PyTorch, two cores), and its
one `factor` means up to a half turn for rotations. Its parts, the layers of single changes, are
what this is made of, for one image at a time.
"""

import keras

# The mean colour of ImageNet, for what a moved image leaves empty.
FILL = 116.0


class Operations:
    """The changes of `rand-m{magnitude}-mstd{deviation}-inc1`, for images in [0, 255].

    Strengths are uniform within two deviations of the magnitude, where the official program has a
    normal distribution. It has 15 changes; these are 14: Keras has no "solarize add". Brightness
    is added (Keras) rather than multiplied (PIL), by as much as the mean of a photograph changes.

    Args:
        recipe: a `RandAugment`.
        seeds: makes the arguments of each layer's random state.
    """

    def __init__(self, recipe, arguments):
        lowest, highest = (
            min(10.0, max(0.0, recipe.magnitude + sign * 2 * recipe.deviation)) / 10
            for sign in (-1, 1)
        )
        layers = keras.layers
        plain = {k: v for k, v in arguments.items() if k != "seed"}
        values = {"value_range": (0, 255)}
        empty = {"fill_mode": "constant", "fill_value": FILL}

        def between(scale, offset=0.0):
            return tuple(sorted((offset + lowest * scale, offset + highest * scale)))

        def move(vertical, sign):
            factors = {"height_factor": 0.0, "width_factor": 0.0}
            name = "height_factor" if vertical else "width_factor"
            factors[name] = between(sign * 0.45)
            return layers.RandomTranslation(**factors, **empty, **arguments)

        # Each change is one layer, or two of which one is drawn (weaker and stronger).
        self.solarization = layers.Solarization(**values, **arguments)
        self.solarization_threshold = 256 - int(256 * (lowest + highest) / 2)
        bits = max(1, 4 - int(4 * (lowest + highest) / 2))
        contrast = 0.9 * (lowest + highest) / 2
        self.choices = [
            (layers.AutoContrast(**values, **plain),),
            (layers.Equalization(**values, **plain),),
            (layers.RandomInvert((1.0, 1.0), **values, **arguments),),
            tuple(
                layers.RandomRotation(between(sign * 30 / 360), **empty, **arguments)
                for sign in (-1, 1)
            ),
            (layers.RandomPosterization((bits, bits), **values, **arguments),),
            (self.solarization,),
            (
                layers.RandomColorDegeneration(between(0.9), **values, **arguments),
                saturation(between(0.9, 1.0), arguments),
            ),
            (layers.RandomContrast((contrast, contrast), **values, **arguments),),
            tuple(
                layers.RandomBrightness(between(sign * 0.4), **values, **arguments)
                for sign in (-1, 1)
            ),
            tuple(
                layers.RandomSharpness(between(sign * 0.45, 0.5), **values, **arguments)
                for sign in (-1, 1)
            ),
            (layers.RandomShear(between(0.3), 0.0, **empty, **arguments),),
            (layers.RandomShear(0.0, between(0.3), **empty, **arguments),),
            tuple(move(False, sign) for sign in (-1, 1)),
            tuple(move(True, sign) for sign in (-1, 1)),
        ]
        self.recipe = recipe

    def __call__(self, images, random, run):
        """Changes `images` in place, each in its own way.

        Args:
            images: float32 array `(N, H, W, 3)`.
            random: `numpy.random.Generator`.
            run: `run(layer, images, transformation=None)` applies a layer with a fresh seed.
        """
        for index in range(len(images)):
            for _ in range(self.recipe.operations):
                choice = self.choices[random.integers(len(self.choices))]
                layer = choice[random.integers(len(choice))]
                if random.random() >= self.recipe.probability:
                    continue
                transformation = None
                if layer is self.solarization:
                    # Keras draws the threshold from the lowest pixel value up; this is one value.
                    transformation = {
                        "additions": 0.0,
                        "thresholds": float(self.solarization_threshold),
                    }
                images[index] = run(layer, images[index : index + 1], transformation)[0]


def saturation(factors, arguments):
    """Keras' layer that multiplies the saturation by a factor between two.

    The layer wants f for f / (1 - f). Its `value_range` is that of the saturation, which is in
    [0, 1] whatever the images' range: with (0, 255), colours leave the range of the images.
    """
    factor = tuple(factor / (1 + factor) for factor in factors)
    return keras.layers.RandomSaturation(factor, value_range=(0, 1), **arguments)
