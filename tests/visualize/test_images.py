"""Images in, drawings out, files written whole."""

import numpy as np
import pytest
from PIL import Image

from keras_internimage import visualize
from keras_internimage.preprocessing import load_image
from keras_internimage.visualize import figures, images
from keras_internimage.visualize.sampling_figure import QUERY

pytestmark = pytest.mark.any_backend
DRAWINGS = ("sampling_points", "receptive_field", "grad_cam")


def test_one_photograph_in_every_form(classifier, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    expected = load_image(photo, 64)[None]
    for form in (photo, photo[None], Image.fromarray(photo), tmp_path / "photo.png"):
        x, shown = images.prepare(classifier, form)
        np.testing.assert_array_equal(x, expected)
        np.testing.assert_array_equal(shown, photo)
    for form in (expected, expected[0].astype("float64")):
        x, shown = images.prepare(classifier, form)
        np.testing.assert_allclose(x, expected, atol=1e-6)
        np.testing.assert_array_equal(shown, photo)
    x, shown = images.prepare(classifier, photo, normalize=False)
    np.testing.assert_array_equal(x[0], photo)
    np.testing.assert_array_equal(images.prepare(classifier, x, normalize=False)[1], photo)


def test_sizes(tiny, photo):
    anything = tiny(image_shape=(None, None, 3))
    assert images.prepare(anything, photo)[0].shape == (1, 224, 224, 3)
    assert images.prepare(anything, photo, 96)[0].shape == (1, 96, 96, 3)
    points = visualize.sampling_points(anything, np.zeros((64, 96, 3), "float32"), 4)
    assert points.queries.tolist() == [[32, 32]]
    oblong = tiny(image_shape=(64, 96, 3))
    with pytest.raises(ValueError, match="cut to squares"):
        images.prepare(oblong, photo)


@pytest.mark.parametrize(
    "image, options, message",
    [
        (np.zeros((64, 64), "float32"), {}, "An image must be"),
        (np.zeros((2, 64, 64, 3), "float32"), {}, "An image must be"),
        (np.zeros((64, 64, 3), "int64"), {}, "An image must be"),
        (np.full((64, 64, 3), 255.0), {}, "must be normalised"),
        (np.full((64, 64, 3), np.nan), {}, "must be finite"),
        (np.zeros((32, 64, 3), "float32"), {}, "height must be the model's, 64"),
        (np.zeros((64, 64, 3), "uint8"), {"size": 96}, "`size` must be the model's"),
        (np.zeros((3, 64, 64, 3), "uint8"), {}, "An array must be uint8"),
    ],
)
def test_bad_images(classifier, image, options, message):
    with pytest.raises(ValueError, match=message):
        images.prepare(classifier, image, **options)
    with pytest.raises(FileNotFoundError):
        images.prepare(classifier, "nowhere.jpg")


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_returned_and_saved(classifier, photo, tmp_path, name):
    draw = getattr(visualize, f"draw_{name}")
    path = tmp_path / f"{name}.png"
    path.write_bytes(b"an older file")
    more = {"draws": 1} if name == "receptive_field" else {}
    picture = draw(classifier, photo, side=120, path=path, **more)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    edge = np.concatenate([picture[:8], picture[-8:]]), picture[:, :8], picture[:, -8:]
    assert all((part == 255).all() for part in edge), "nothing touches the edge"
    with pytest.raises(ValueError, match="`path` must end in .png"):
        draw(classifier, photo, path=tmp_path / "picture.jpg", **more)
    with pytest.raises(FileNotFoundError, match="folder of `path`"):
        draw(classifier, photo, path=tmp_path / "nowhere" / "a.png", **more)
    with pytest.raises(ValueError, match="`side` must be"):
        draw(classifier, photo, side=10, **more)


def test_the_cross_marks_the_pixel(classifier, photo):
    """A cross around the output pixel, at its place in the picture."""
    found = []
    for at in ((16, 48), (48, 16)):
        picture = visualize.draw_sampling_points(classifier, photo, 1, at, side=256)
        rows, columns = np.nonzero(np.abs(picture - np.float32(QUERY)).max(axis=-1) < 60)
        found.append(np.array([columns.min() + columns.max(), rows.min() + rows.max()]) / 2)
    # 256 picture pixels for 64 of the image and at most a frame of a quarter on each side.
    moved = found[1] - found[0]
    assert abs(moved[0] + moved[1]) <= 1 and 32 * 256 / 96 - 1 <= moved[0] <= 32 * 4 + 1


def test_through_a_whole_stage(classifier, photo):
    one = visualize.draw_sampling_points(classifier, photo, 3, side=120)
    whole = visualize.draw_sampling_points(classifier, photo, 3, blocks="stage", side=120)
    both = visualize.draw_sampling_points(classifier, photo, 3, blocks=2, side=120)
    np.testing.assert_array_equal(whole, both)
    assert one.shape != whole.shape or (one != whole).any()


def test_labels_and_classes(classifier, photo):
    names = ["a", "b", "c", "d", "e with a name wider than its picture is"]
    narrow = visualize.draw_grad_cam(classifier, photo, [0, 1], labels=names, side=120)
    wide = visualize.draw_grad_cam(classifier, photo, [0, 4], labels=names, side=120)
    assert wide.shape[1] > narrow.shape[1], "titles are not cut off"
    more = visualize.draw_grad_cam(classifier, photo, [0, 1], (3, 4), names, side=120)
    assert more.shape[1] > narrow.shape[1]


def test_colours_get_brighter():
    values = figures.colours(np.linspace(0, 1, 64)).astype(int) @ [299, 587, 114]
    assert (np.diff(values) > 0).all()
    heat = np.zeros((4, 4))
    heat[1, 2] = 1
    over = figures.overlay(np.full((4, 4, 3), 100, "uint8"), heat)
    assert over[1, 2].sum() > 2 * over[0, 0].sum()
