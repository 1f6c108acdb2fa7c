"""COCO's annotation files: what is read, how masks are drawn, and what is refused."""

import json
import pathlib

import numpy as np
import pytest

from keras_internimage.data.coco import CocoError, read_coco
from keras_internimage.data.coco_masks import RunLengths, draw_mask

pytestmark = pytest.mark.any_backend

REFERENCE = json.loads((pathlib.Path(__file__).parent / "coco_outlines.json").read_text())


def content(**changes):
    """A file of two images and three objects, and categories with a gap."""
    whole = {
        "images": [
            {"id": 7, "file_name": "b.jpg", "width": 6, "height": 4},
            {"id": 3, "file_name": "sub/a.jpg", "width": 5, "height": 3},
            {"id": 4, "file_name": "empty.jpg", "width": 5, "height": 3},
        ],
        "categories": [
            {"id": 90, "name": "tooth brush", "supercategory": "indoor"},
            {"id": 2, "name": "dog", "supercategory": "animal"},
        ],
        "annotations": [
            {
                **{"id": 11, "image_id": 7, "category_id": 90, "bbox": [1, 0, 2.5, 3]},
                **{"segmentation": [[1, 0, 3.5, 0, 3.5, 3, 1, 3]], "iscrowd": 0, "area": 7.5},
            },
            {
                **{"id": 12, "image_id": 7, "category_id": 2, "bbox": [0, 0, 6, 4], "iscrowd": 1},
                "segmentation": {"size": [4, 6], "counts": [5, 2, 17]},
            },
            {"id": 13, "image_id": 3, "category_id": 2, "bbox": [0, 0, 5, 3], "segmentation": []},
        ],
    }
    return whole | changes


def write(folder, what):
    path = folder / "annotations.json"
    path.write_text(what if isinstance(what, str) else json.dumps(what))
    return path


def refusal(folder, what, **options):
    with pytest.raises(CocoError) as caught:
        read_coco(write(folder, what), **options)
    return str(caught.value)


class TestReading:
    def test_labels_follow_the_ids(self, tmp_path):
        found = read_coco(write(tmp_path, content()))
        assert found.category_ids == (2, 90) and found.class_names == ("dog", "tooth brush")
        assert [(x.id, x.file_name, x.width, x.height) for x in found.images] == [
            (7, "b.jpg", 6, 4), (3, "sub/a.jpg", 5, 3), (4, "empty.jpg", 5, 3)
        ]  # fmt: skip
        first, second, third = found.annotations
        assert (first.id, first.image_id, first.label, first.crowd) == (11, 7, 1, False)
        assert first.box == (1, 0, 3.5, 3) and first.area == 7.5
        np.testing.assert_array_equal(first.segmentation[0], [[1, 0], [3.5, 0], [3.5, 3], [1, 3]])
        assert second.crowd and second.segmentation == RunLengths(4, 6, (5, 2, 17))
        assert third.segmentation is None and third.label == 0 and third.area is None
        by_image = found.by_image()
        assert {k: [x.id for x in v] for k, v in by_image.items()} == {7: [11, 12], 3: [13], 4: []}

    def test_what_files_leave_out(self, tmp_path):
        """Crowd, ids of annotations and supercategories; and a BOM, and an outline without list."""
        what = content()
        what["categories"] = [{"id": 90, "name": "x"}, {"id": 2, "name": "y"}]
        for annotation in what["annotations"]:
            del annotation["id"]
            annotation.pop("iscrowd", None)
        what["annotations"][0]["segmentation"] = [1, 0, 3.5, 0, 3.5, 3]
        path = write(tmp_path, what)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        found = read_coco(path)
        assert [x.id for x in found.annotations] == [0, 1, 2]
        assert not any(x.crowd for x in found.annotations)
        assert found.annotations[0].segmentation[0].shape == (3, 2)

    def test_what_means_nothing_is_passed_over(self, tmp_path):
        """A supercategory that is no name, and an area beyond all numbers."""
        what = content()
        what["categories"][0]["supercategory"] = ["indoor"]
        what["categories"][1]["supercategory"] = {}
        what["annotations"][0]["area"] = 10**400
        found = read_coco(write(tmp_path, what))
        assert found.class_names == ("dog", "tooth brush") and found.annotations[0].area is None

    def test_outlines_that_cover_nothing(self, tmp_path):
        what = content()
        what["annotations"][0]["segmentation"] = [[1, 0, 3, 0], [1, 0, 3, 0, 3, 3]]
        what["annotations"][2]["segmentation"] = [[1, 0, 3, 0]]
        first, _, third = read_coco(write(tmp_path, what)).annotations
        assert len(first.segmentation) == 1 and third.segmentation is None

    def test_a_group_of_classes_is_no_class(self, tmp_path):
        """Roboflow's category 0, also where a class has the same name."""
        what = content()
        what["categories"] = [
            {"id": 0, "name": "dog", "supercategory": "none"},
            {"id": 2, "name": "dog", "supercategory": "dog"},
            {"id": 90, "name": "cat", "supercategory": "dog"},
        ]
        found = read_coco(write(tmp_path, what))
        assert found.category_ids == (2, 90) and found.class_names == ("dog", "cat")
        assert [x.label for x in found.annotations] == [1, 0, 0]
        (note,) = found.notes
        assert "Category 0, 'dog', is no class" in note
        # With objects it is one.
        what["categories"][1]["name"] = "wolf"
        what["annotations"][0]["category_id"] = 0
        found = read_coco(write(tmp_path, what))
        assert found.class_names == ("dog", "wolf", "cat") and found.notes == ()
        # COCO's person is its own supercategory.
        what["categories"][0]["supercategory"] = "dog"
        what["annotations"] = []
        assert read_coco(write(tmp_path, what)).class_names == ("dog", "wolf", "cat")


class TestMasks:
    @pytest.mark.parametrize("case", REFERENCE["cases"])
    def test_as_pycocotools_draws(self, case):
        height, width = case["height"], case["width"]
        outlines = tuple(np.array(x).reshape(-1, 2) for x in case["outlines"])
        drawn = draw_mask(outlines, height, width)
        assert drawn.shape == (height, width) and drawn.dtype == np.uint8
        unpacked = draw_mask(RunLengths(height, width, case["counts"]), height, width)
        np.testing.assert_array_equal(drawn, unpacked)
        assert int(drawn.sum()) == case["area"]

    def test_reference_is_worth_it(self):
        assert sum(case["area"] > 20 for case in REFERENCE["cases"]) > 10

    def test_run_lengths_go_down_the_columns(self):
        found = draw_mask(RunLengths(2, 3, (1, 2, 3)), 2, 3)
        np.testing.assert_array_equal(found, [[0, 1, 0], [1, 0, 0]])
        found = draw_mask((np.array([[1, 0], [3, 0], [3, 2], [1, 2]]),), 3, 4)
        np.testing.assert_array_equal(found, [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])

    @pytest.mark.parametrize(
        ("counts", "size", "message"),
        [
            ((1, 2), (2, 3), "3 pixels in all, its image has 6"),
            ((-1, 7), (2, 3), "6 pixels in all"),
            ((6,), (3, 2), "of 3 x 2 pixels .* its image has 2 x 3"),
            ("6\x7f", (2, 3), "with the character"),
            ("6P", (2, 3), "end within a number"),
            ("o" * 40 + "0", (2, 3), "no sizes of runs"),
            ((10**30,), (2, 3), "pixels in all"),
            ((2**62, 2**62, 2**62, 2**62, 6), (2, 3), "pixels in all"),
        ],
    )
    def test_damaged_run_lengths(self, counts, size, message):
        with pytest.raises(ValueError, match=message):
            draw_mask(RunLengths(*size, counts), 2, 3)


class TestRefusals:
    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("not JSON", "must be JSON"),
            ("[" * 100_000, "must be JSON"),
            ("[]", "a list, as of detections"),
            ("3", "Received: int"),
            ({"images": [], "info": {}}, "no list 'annotations' and 'categories', but images, inf"),
            ({"images": [], "annotations": [], "categories": []}, "there is no category"),
        ],
    )
    def test_other_files(self, tmp_path, what, message):
        assert message in refusal(tmp_path, what)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read_coco(tmp_path / "none.json")

    def test_images_and_categories(self, tmp_path):
        images = [
            *content()["images"],
            {"id": 7, "file_name": "c.jpg", "width": 6, "height": 4},
            {"id": 8, "file_name": "b.jpg", "width": 6, "height": 4},
            {"id": 9, "file_name": "d.jpg", "width": 0, "height": 4},
            {"id": "x", "file_name": "e.jpg", "width": 1, "height": 4},
            {"id": 11, "file_name": "f.jpg", "width": 10**30, "height": 4},
            {"id": 10, "width": 1, "height": 4},
        ]
        categories = [*content()["categories"], {"id": 2, "name": "cat"}, {"id": 5}, 8]
        message = refusal(tmp_path, content(images=images, categories=categories), skip_bad=True)
        for line in [
            "image 7: is there twice",
            "image 8: is of the same file as image 7, b.jpg",
            "image 9: has the size 0 x 4",
            "image 'x': has an id that is no integer",
            f"image 11: has the size {10**30} x 4",
            "images[8]: has no file_name",
            "category 2: is there twice",
            "categories[3]: has no name",
            "categories[4]: must be an object, not int",
        ]:
            assert f"\n  {line}" in message
        assert "skip-bad" not in message
        twins = [{"id": 2, "name": "cat"}, {"id": 90, "name": "cat"}]
        message = refusal(tmp_path, content(categories=twins))
        assert "categories 2 and 90 have the same name, 'cat'" in message

    def test_objects(self, tmp_path):
        what = content()
        good = what["annotations"][0]
        runs = {"size": [4, 6], "counts": "04"}
        bad = {
            20: ({"image_id": 5}, "is of image 5, which is not in the file"),
            21: ({"category_id": 3}, "is of category 3, which is not in the file"),
            11: ({}, "is there twice"),
            22: ({"bbox": [1, 2, 3]}, "has a bbox that is not four numbers, [1, 2, 3]"),
            23: ({"bbox": [1, 2, 3, float("nan")]}, "has a bbox that is not four numbers"),
            24: ({"segmentation": [[1, 2, 3]]}, "has an outline that is no list of pairs"),
            25: ({"segmentation": "x"}, "has a segmentation that is none, str"),
            26: ({"segmentation": runs}, "has run lengths of 4 pixels in all, its image has 24"),
            27: ({"iscrowd": 2}, "has the iscrowd 2"),
        }
        what["annotations"] += [good | {"id": i} | change for i, (change, _) in bad.items()]
        del what["annotations"][2]["bbox"]
        message = refusal(tmp_path, what)
        for number, (_, reason) in bad.items():
            assert f"\n  annotation {number}: {reason}" in message
        assert "\n  annotations[2]: has no bbox" in message
        assert message.endswith("--skip-bad leaves out 10 objects.")
        found = read_coco(tmp_path / "annotations.json", skip_bad=True)
        assert [x.id for x in found.annotations] == [11, 12] and len(found.left_out) == 10

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"bbox": [10**400, 1, 2, 3]}, "has a bbox that is not four numbers"),
            ({"segmentation": [[0, 0, 9, 0, 9, 1e300]]}, "has an outline that reaches to 1e+300"),
            ({"segmentation": [[0, 0, 9, 0, 9, -2e5]]}, "has an outline that reaches to 200000"),
        ],
    )
    def test_numbers_too_large(self, tmp_path, change, reason):
        what = content()
        what["annotations"][0] |= change
        assert f"\n  annotation 11: {reason}" in refusal(tmp_path, what)
