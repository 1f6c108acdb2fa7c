"""Lines of text in pictures that Pillow draws."""

import itertools
import math

from keras_internimage.report.lettering import Lettering
from keras_internimage.report.text import clean


def font(size):
    """Pillow's own font, which has ASCII alone."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


class Line:
    """One line of text, each character in a font that has it.

    Args:
        text: what is drawn; control characters are drawn as spaces.
        size: in pixels.
        instead: what is drawn where no font has most of the characters.
    """

    def __init__(self, text, size, instead=None):
        self.runs = self._runs(clean(text), size, instead)  # pairs (font, text)
        self.width = math.ceil(sum(used.getlength(text) for used, text in self.runs))

    @staticmethod
    def _runs(text, size, instead):
        from PIL import ImageFont

        if text.isascii():
            return [(font(size), text)]
        letters = Lettering([text])
        text = letters.drawable(text, instead)
        if text.isascii():
            return [(font(size), text)]
        # The first font has the replacement character, for what no font has.
        groups = itertools.groupby(text, lambda x: letters.font_file(x) or letters.font_file("a"))
        return [
            (ImageFont.truetype(path, size, index), "".join(characters))
            for (path, index), characters in groups
        ]

    def draw(self, canvas, middle, baseline, colour, **options):
        """Draws it with its middle and its baseline at these pixels of an `ImageDraw`.

        `options` are those of `ImageDraw.text`, such as an outline.
        """
        left = middle - self.width / 2
        for used, text in self.runs:
            canvas.text((left, baseline), text, colour, used, anchor="ls", **options)
            left += used.getlength(text)
