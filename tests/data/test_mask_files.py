"""Mask files as class numbers, and `classes.txt`, which names and colours them."""

import masks
import numpy as np
import pytest
from PIL import Image

from keras_internimage.data import FolderError, MaskEncoding, read_mask
from keras_internimage.data.mask_layout import mask_layout
from keras_internimage.data.palette import classes_text, read_classes

pytestmark = pytest.mark.any_backend


class TestEncodings:
    PALETTE = ((0, 0, 0), (200, 10, 10), (10, 200, 10))
    NUMBERS = np.array([[0, 1, 2], [2, 255, 1]], "uint8")

    def save(self, path, image):
        image.save(path)
        return path

    def coloured(self):
        table = np.zeros((256, 3), "uint8")
        table[:3], table[255] = self.PALETTE, (224, 224, 192)
        return table

    @pytest.mark.parametrize("mode", ["L", "I;16", "I", "P"])
    def test_numbers(self, tmp_path, mode):
        kind = {"I;16": "uint16", "I": "int32"}.get(mode, "uint8")
        image = Image.fromarray(self.NUMBERS.astype(kind))
        if mode == "P":
            image.putpalette(self.coloured().tobytes())
        assert image.mode == mode
        path = self.save(tmp_path / ("a.tif" if mode == "I" else "a.png"), image)
        mask = read_mask(path, MaskEncoding(3))
        assert mask.dtype == np.int32
        np.testing.assert_array_equal(mask, self.NUMBERS)
        with pytest.raises(ValueError, match="has the value 2, where classes are 0 to 1"):
            read_mask(path, MaskEncoding(2))

    def test_two_classes_of_one_bit(self, tmp_path):
        path = self.save(tmp_path / "a.png", Image.fromarray(np.eye(4, dtype=bool)))
        np.testing.assert_array_equal(read_mask(path), np.eye(4))

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
    def test_colours(self, tmp_path, mode):
        """In P mode the numbers of the file are others than those of the classes."""
        encoding = MaskEncoding(3, palette=self.PALETTE, ignored=((224, 224, 192),))
        image = Image.fromarray(self.coloured()[self.NUMBERS])
        image = image.quantize(8) if mode == "P" else image.convert(mode)
        path = self.save(tmp_path / "a.png", image)
        np.testing.assert_array_equal(read_mask(path, encoding), self.NUMBERS)
        if mode == "P":
            assert not np.array_equal(np.asarray(image), self.NUMBERS)
        shifted = MaskEncoding(3, True, self.PALETTE, ((224, 224, 192),))
        np.testing.assert_array_equal(read_mask(path, shifted), self.NUMBERS)
        with pytest.raises(ValueError, match=r"colour \(224, 224, 192\), which no line"):
            read_mask(path, MaskEncoding(3, palette=self.PALETTE))

    def test_numbers_beside_a_palette(self, tmp_path):
        """Grey files, and the palettes that nobody has chosen, hold numbers also where
        classes.txt has colours."""
        encoding = MaskEncoding(3, palette=self.PALETTE)
        image = Image.fromarray(self.NUMBERS)
        for kind in (image, image.convert("P")):
            path = self.save(tmp_path / "a.png", kind)
            np.testing.assert_array_equal(read_mask(path, encoding), self.NUMBERS)

    def test_transparent(self, tmp_path):
        image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
        with pytest.raises(ValueError, match="is transparent in places"):
            read_mask(self.save(tmp_path / "a.png", image), MaskEncoding(1, palette=self.PALETTE))

    def test_zero_is_ignored(self, tmp_path):
        path = self.save(tmp_path / "a.png", Image.fromarray(self.NUMBERS))
        expected = [[255, 0, 1], [1, 255, 0]]
        np.testing.assert_array_equal(read_mask(path, MaskEncoding(2, True)), expected)


class TestClassesFile:
    @pytest.mark.parametrize(
        ("names", "palette", "kept"),
        [
            (("road", "traffic light"), ((1, 2, 3), (4, 5, 6)), True),
            (("road", "skyscraper"), ((1, 2, 3), (1, 2, 3)), False),  # as in ADE20K
            (("road", "Ignore"), ((1, 2, 3), (4, 5, 6)), False),
        ],
    )
    def test_what_is_written_is_read(self, tmp_path, names, palette, kept):
        path = tmp_path / "classes.txt"
        path.write_text(classes_text(names, palette))
        assert read_classes(path) == (names, palette if kept else (), ())

    def test_names_and_colours(self, tmp_path):
        path = tmp_path / "classes.txt"
        path.write_text("road 1 2 3\ntraffic light 250 170 30\nIgnore 9 9 9\n\n")
        assert read_classes(path) == (
            ("road", "traffic light"),
            ((1, 2, 3), (250, 170, 30)),
            ((9, 9, 9),),
        )
        path.write_text("\ufeffroad\nground 7\n")
        assert read_classes(path) == (("road", "ground 7"), (), ())

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("a\n\nb", "line 2: an empty line"),
            ("# of streets\na\nb", "line 1: # of streets: there are no comments"),
            ("a,0,0,0\nb,1,1,1", "line 1: a,0,0,0: a colour is three numbers at the end"),
            ("0 0 0 a", "line 1: 0 0 0 a: a colour is three numbers at the end"),
            ("a 0 0 0 # black", "line 1: a 0 0 0 # black: a colour is three numbers at the end"),
            ("a 1 2 3\nb", "line 2: b: either all lines have a colour, or none has"),
            ("a\nb 1 2 3", "line 2: b 1 2 3: either all lines"),
            ("a\na", "line 2: a, a second time"),
            ("a 1 2 3\nb 1 2 3", "the colour of another class"),
            ("a 1 2 256", "colours are numbers of 0 to 255"),
            ("", "an empty file"),
            ("\n".join(map(str, range(256))), "at most 255 classes.* Received: 256"),
        ],
    )
    def test_refusals(self, tmp_path, text, problem):
        masks.folder(tmp_path, 1)
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(FolderError, match=f"classes.txt must .*{problem}"):
            mask_layout(tmp_path)
