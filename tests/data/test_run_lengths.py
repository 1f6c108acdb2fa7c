"""Run lengths of masks, next to pycocotools' own."""

import numpy as np
import pytest

from keras_internimage.data.run_lengths import encode

pytestmark = pytest.mark.any_backend
coco = pytest.importorskip("pycocotools.mask")


def cases():
    rng = np.random.default_rng(0)
    yield np.zeros((3, 4), bool)
    yield np.ones((3, 4), bool)
    yield np.eye(5)
    yield np.zeros((4, 0), bool)
    for share in (0.02, 0.5, 0.98):
        yield rng.random((37, 53)) < share
    blob = np.zeros((300, 400), bool)
    blob[20:250, 31:399] = True
    blob[100:110, 40:60] = False
    yield blob


@pytest.mark.parametrize("mask", list(cases()))
def test_the_text_is_that_of_pycocotools(mask):
    expected = coco.encode(np.asfortranarray(mask.astype("uint8")))
    assert encode(mask) == {"size": list(mask.shape), "counts": expected["counts"].decode()}


@pytest.mark.parametrize("place", [(0, 0), (3, 2), (5, 0), (0, 7)])
@pytest.mark.parametrize("size", [(12, 15), (7, 8)])
def test_a_part_of_an_image(place, size):
    """Also where runs reach from the bottom of a column into the next one."""
    part = np.random.default_rng(1).random((7, 8)) < 0.7
    part[:, 2:4] = True
    if place[0] + 7 > size[0] or place[1] + 8 > size[1]:
        with pytest.raises(ValueError, match="must be .h, w., and lie in the image"):
            encode(part, size, place)
        return
    whole = np.zeros(size, bool)
    whole[place[0] : place[0] + 7, place[1] : place[1] + 8] = part
    assert encode(part, size, place) == encode(whole)
    assert (coco.decode(encode(part, size, place)) == whole).all()


def test_what_is_no_mask():
    with pytest.raises(ValueError, match=r"Received: a mask of \(2, 2, 2\)"):
        encode(np.ones((2, 2, 2)))
