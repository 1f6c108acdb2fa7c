"""How a camera was held, in all formats; EXIF that means nothing; pictures of odd shapes."""

import io
import resource
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from keras_internimage import preprocessing, visualize
from keras_internimage.data import check
from keras_internimage.data.loader import random_crop

pytestmark = pytest.mark.any_backend

ORIENTATION = 0x0112
# From the upright picture to the pixels as they are stored: the inverse of what EXIF asks for.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x.transpose(1, 0, 2), 2),
    8: lambda x: np.rot90(x, -1),
}
FORMATS = {
    "jpg": {"quality": 100, "subsampling": 0},
    "png": {},
    "tif": {},
    "webp": {"lossless": True},
}


@pytest.fixture(scope="module")
def upright():
    """A picture without symmetries, 96 wide and 64 high."""
    y, x = np.mgrid[:64, :96]
    return np.stack([2 * x, 3 * y, x + y], -1).astype("uint8")


def saved(path, pixels, orientation, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_the_upright_picture(tmp_path, upright, ending, orientation):
    path = tmp_path / f"turned.{ending}"
    saved(path, STORED[orientation](upright), orientation, **FORMATS[ending])
    tolerance = 6 if ending == "jpg" else 0
    image = preprocessing.read_image(path)
    for again in (image, preprocessing.read_image(image)):  # not turned a second time
        read = np.asarray(again, "int")
        assert read.shape == upright.shape
        assert np.abs(read - upright).max() <= tolerance
    evaluated = preprocessing.load_image(path, 32)
    expected = preprocessing.load_image(upright, 32)
    np.testing.assert_allclose(evaluated, expected, atol=tolerance / 50 + 1e-6)
    crops = [
        random_crop(picture, 24, np.random.default_rng(3), scale=(0.2, 0.5))
        for picture in (path, io.BytesIO(_png(upright)))
    ]
    assert np.abs(crops[0].astype("int") - crops[1]).max() <= max(tolerance, 1)
    assert check.why_bad(path) is None


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_as_the_official_transform_reads_it(tmp_path, upright):
    path = saved(tmp_path / "turned.png", STORED[6](upright), 6)
    found = preprocessing.load_image(path, 32, exif_orientation=False)
    np.testing.assert_array_equal(found, preprocessing.load_image(STORED[6](upright).copy(), 32))


def test_pictures_of_what_a_model_sees_are_upright(tmp_path, upright):
    import keras

    path = saved(tmp_path / "turned.jpg", STORED[6](upright), 6, **FORMATS["jpg"])
    images = keras.Input((32, 32, 3))
    model = keras.Model(images, keras.layers.Flatten()(images))
    _, photo = visualize.images.prepare(model, path)
    _, expected = visualize.images.prepare(model, upright)
    assert np.abs(photo.astype("int") - expected).max() <= 6


class TestOddEXIF:
    """What EXIF says wrongly is no fault of the pixels."""

    def readable(self, path, expected):
        assert check.why_bad(path) is None
        read = np.asarray(preprocessing.read_image(path), "int")
        assert read.shape == expected.shape and np.abs(read - expected).max() <= 6
        assert random_crop(path, 16, np.random.default_rng(0)).shape == (16, 16, 3)

    @pytest.mark.parametrize("ending", FORMATS)
    @pytest.mark.parametrize("value", [0, 9, 700])
    def test_numbers_that_are_no_orientation(self, tmp_path, upright, ending, value):
        path = saved(tmp_path / f"odd.{ending}", upright, value, **FORMATS[ending])
        self.readable(path, upright)

    @pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
    @pytest.mark.parametrize(
        ("kind", "count", "value"), [(1, 1, b"\x06"), (2, 4, b"six\0"), (7, 2, b"\x06\x06")]
    )
    def test_orientations_of_other_types(self, tmp_path, upright, ending, kind, count, value):
        entry = struct.pack("<HHI4s", ORIENTATION, kind, count, value)
        block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
        path = tmp_path / f"odd.{ending}"
        Image.fromarray(upright).save(path, exif=block, **FORMATS[ending])
        assert Image.open(path).getexif().get(ORIENTATION) is not None
        assert check.why_bad(path) is None
        read = preprocessing.read_image(path)
        # One byte that is a valid number may be taken for it; text and the rest are not.
        assert read.size == (96, 64) or (kind == 1 and read.size == (64, 96))

    @pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
    def test_blocks_that_are_no_exif(self, tmp_path, upright, ending):
        path = tmp_path / f"noise.{ending}"
        noise = b"Exif\0\0" + bytes(range(1, 200))
        Image.fromarray(upright).save(path, exif=noise, **FORMATS[ending])
        self.readable(path, upright)

    def test_tags_that_cannot_be_written_back(self, tmp_path, upright):
        """A TIFF file of a scanner: turned, and with a tag of a type that Pillow does not write."""
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[ORIENTATION] = 6
        tags.tagtype[65000] = 129
        path = tmp_path / "scan.tif"
        Image.fromarray(np.ascontiguousarray(STORED[6](upright))).save(path, tiffinfo=tags)
        self.readable(path, upright)


class TestThinPictures:
    @pytest.mark.parametrize("shape", [(65500, 1), (1, 65500), (10000, 1), (3, 9000)])
    def test_memory_is_bounded(self, tmp_path, shape):
        path = tmp_path / "thin.png"
        Image.fromarray(np.full((*shape, 3), 90, "uint8")).save(path)
        assert check.why_bad(path) is None
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        image = preprocessing.load_image(path, 224)
        assert image.shape == (224, 224, 3) and np.ptp(image[..., 0]) < 1e-5
        crop = random_crop(path, 224, np.random.default_rng(0))
        assert crop.shape == (224, 224, 3) and (crop == 90).all()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 200_000  # kB; the resized whole of the first is 10 GB

    def test_the_centre_is_that_of_the_whole(self, tmp_path):
        """The way for thin pictures and the official one meet."""
        y, x = np.mgrid[:40, :1200]
        picture = np.stack([x % 256, 6 * y, (x + y) % 256], -1).astype("uint8")
        thin = preprocessing.load_image(picture, 32)
        whole = Image.fromarray(picture).resize((960, 32), Image.Resampling.BICUBIC)
        expected = np.asarray(whole.crop((464, 0, 496, 32)), "float32")
        mean, deviation = (np.array(v, "float32") for v in (preprocessing.MEAN, preprocessing.STD))
        assert np.abs((thin * deviation + mean) * 255 - expected).max() <= 1.01
