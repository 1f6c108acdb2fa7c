"""DCNv3Geometry: arguments, sizes and points."""

import dataclasses

import numpy as np
import oracle
import pytest

from keras_internimage.ops import DCNv3Geometry

pytestmark = pytest.mark.any_backend


def test_integers_and_pairs_are_the_same():
    assert DCNv3Geometry(kernel_size=5, padding=2, groups=2) == DCNv3Geometry(
        kernel_size=[5, 5], strides=(1, 1), padding=(2, 2), dilation_rate=(1, 1), groups=2
    )


def test_frozen_and_hashable():
    geometry = DCNv3Geometry()
    with pytest.raises(dataclasses.FrozenInstanceError):
        geometry.groups = 2
    assert {geometry: 1}[DCNv3Geometry()] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel_size", 0),
        ("kernel_size", (3, 3, 3)),
        ("kernel_size", "3"),
        ("strides", 0),
        ("strides", 1.5),
        ("padding", -1),
        ("padding", None),
        ("dilation_rate", (1, 0)),
        ("dilation_rate", (1, True)),
        ("groups", 0),
        ("groups", 2.0),
        ("offset_scale", 0),
        ("offset_scale", float("nan")),
        ("offset_scale", "1"),
        ("remove_center", 1),
    ],
)
def test_refused_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must .*Received: {name}="):
        DCNv3Geometry(**{name: value})


@pytest.mark.parametrize("kernel_size", [1, 2, (3, 2)])
def test_remove_center_needs_a_center(kernel_size):
    with pytest.raises(ValueError, match="odd sizes and more than one point.*kernel_size="):
        DCNv3Geometry(kernel_size=kernel_size, remove_center=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"strides": 2},
        {"kernel_size": (1, 3), "strides": (1, 2), "padding": (0, 1)},
        {"kernel_size": 2, "padding": 1},
        {"kernel_size": (3, 5), "dilation_rate": (2, 1), "padding": 2},
    ],
)
def test_output_size(arguments):
    geometry = DCNv3Geometry(**arguments)
    expected = oracle.output_size(9, 12, **arguments)
    assert geometry.output_size(9, 12) == expected
    assert geometry.output_size(None, 12) == (None, expected[1])
    assert geometry.output_size(9, None) == (expected[0], None)


def test_kernel_larger_than_the_image():
    with pytest.raises(ValueError, match="at least the dilated kernel's, 5. Received: width=2"):
        DCNv3Geometry(dilation_rate=2, padding=1).output_size(3, 2)


def test_points_run_over_columns_first():
    grid = DCNv3Geometry(kernel_size=(3, 2), dilation_rate=(2, 1), offset_scale=0.5).grid()
    # Centre: row 2, column 0.
    expected = [(x, y) for x in (0, 0.5) for y in (-1, 0, 1)]
    np.testing.assert_array_equal(grid, expected)


def test_remove_center_leaves_the_middle_out():
    geometry = DCNv3Geometry(kernel_size=(3, 5), padding=(1, 2), remove_center=True)
    grid = geometry.grid()
    assert geometry.points == len(grid) == 14
    assert (0.0, 0.0) not in [tuple(point) for point in grid]
