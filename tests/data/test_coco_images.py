"""Folders with COCO's annotations: layouts as downloaded, and what is refused before training."""

import json
import os
import shutil

import annotated_shapes
import pytest
from PIL import Image

from keras_internimage.data import FolderError, scan_detection
from keras_internimage.data.coco_layout import coco_layout, holds_coco

pytestmark = pytest.mark.any_backend


def refusal(folder, **options):
    with pytest.raises(FolderError) as caught:
        scan_detection(folder, **options)
    return str(caught.value)


def names(images):
    return [image.path.name for image in images]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


class TestLayouts:
    @pytest.mark.parametrize("layout", ["coco", "roboflow"])
    @pytest.mark.parametrize("inner", [False, True])
    def test_as_downloaded(self, tmp_path, layout, inner):
        folder = getattr(annotated_shapes, layout)(tmp_path / "data", 4, 2)
        if inner:  # images in a folder of their own
            for place in [p for p in folder.iterdir() if p.name != "annotations"]:
                target = folder / "images" / place.name
                if layout == "roboflow":
                    target = place / "images"
                target.mkdir(parents=True)
                for image in place.glob("*.png"):
                    image.rename(target / image.name)
        assert holds_coco(folder)
        found = scan_detection(folder)
        assert (
            found.class_names == annotated_shapes.CLASSES
            and found.category_ids == annotated_shapes.IDS
        )
        assert names(found.train) == [f"00{i}.png" for i in range(4)]
        assert names(found.validation) == ["100.png", "101.png"]
        for image in found.train:
            _, shapes = annotated_shapes.draw(int(image.path.stem))
            assert image.path.is_file() and (image.height, image.width) == (48, 64)
            assert [x.label for x in image.objects] == [label for label, _ in shapes]
            for one, (_, outline) in zip(image.objects, shapes, strict=True):
                assert one.box == (*outline.min(0), *outline.max(0))
        assert found.masks == "annotated" and found.bad == ()
        assert [path.parent.name for path in found.annotations] == {
            "coco": ["annotations"] * 2,
            "roboflow": ["train", "valid"],
        }[layout]
        expected = ("test/ is not looked at.",) if layout == "roboflow" else ()
        assert found.notes == expected
        # For evaluation, the part for validation alone.
        (found.train[0].path).write_text("text")
        alone = scan_detection(folder, part="validation")
        assert alone.validation == found.validation and alone.train == ()

    def test_captions_and_key_points_are_left_out(self, tmp_path):
        folder = annotated_shapes.coco(tmp_path)
        shutil.copy(
            folder / "annotations/instances_train2017.json",
            folder / "annotations/person_keypoints_train2017.json",
        )
        (folder / "annotations/captions_train2017.json").write_text('{"images": [], "annotations"}')
        found = scan_detection(folder)
        assert found.notes == ("annotations/person_keypoints_train2017.json is not looked at.",)
        shutil.copy(
            folder / "annotations/instances_train2017.json",
            folder / "annotations/instances_train2014.json",
        )
        message = refusal(folder)
        assert "one annotation file for training" in message and "instances_train2014" in message

    @pytest.mark.parametrize(
        ("annotations", "images"),
        [
            ("annotations.json", "images"),
            ("labels.json", "data"),
            ("result.json", "."),
            ("annotations/instances_default.json", "images"),
            ("annotations/instances_default.json", "images/default"),
            ("_annotations.coco.json", "."),
        ],
    )
    def test_one_file_is_split_here(self, tmp_path, annotations, images):
        annotated_shapes.write(tmp_path / annotations, tmp_path / images, range(6))
        found = scan_detection(tmp_path, validation_split=0.34, seed=1)
        assert len(found.train) == 4 and len(found.validation) == 2
        assert not set(names(found.train)) & set(names(found.validation))
        assert found.annotations == (tmp_path / annotations,) * 2
        assert scan_detection(tmp_path, 0.34, 1) == found
        splits = {tuple(names(scan_detection(tmp_path, 0.34, s).validation)) for s in range(5)}
        assert len(splits) > 1
        whole = scan_detection(tmp_path, part="validation")
        assert len(whole.validation) == 6 and whole.train == ()

    def test_names_with_folders(self, tmp_path):
        """Relative to the folder, also with Windows' separators; never outside of it."""
        path = annotated_shapes.write(tmp_path / "annotations.json", tmp_path / "images", range(3))
        edit(path, lambda x: [i.update(file_name="images\\" + i["file_name"]) for i in x["images"]])
        assert len(scan_detection(tmp_path).train) == 2
        for name in ("../000.png", "/etc/000.png", "a/../../b.png", "C:\\000.png"):
            edit(path, lambda x, name=name: x["images"][0].update(file_name=name))
            assert "must be paths within their folder. Received: " in refusal(tmp_path)

    def test_copies_stay_on_one_side(self, tmp_path):
        """Of one content, and what Roboflow made of one image."""

        def copies(content):
            for index, image in enumerate(content["images"]):
                stem = "abcdef"[index // 2]
                image["file_name"] = f"{stem}_png.rf.{index}.png"

        annotated_shapes.write(tmp_path / "annotations.json", tmp_path / "images", range(8))
        for index in range(8):
            old = tmp_path / f"images/{index:03}.png"
            old.rename(tmp_path / f"images/{'abcdef'[index // 2]}_png.rf.{index}.png")
        edit(tmp_path / "annotations.json", copies)
        for seed in range(4):
            found = scan_detection(tmp_path, 0.25, seed)
            assert len(found.validation) == 2
            sides = [{name[0] for name in names(side)} for side in (found.train, found.validation)]
            assert not sides[0] & sides[1]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: shutil.rmtree(f / "annotations"), "Received: .* with none"),
            (
                lambda f: (f / "annotations/instances_train2017.json").unlink(),
                "with annotations/instances_val2017.json",
            ),
            (lambda f: shutil.rmtree(f / "train2017"), "must be in the folder.* without 000.png"),
            (
                lambda f: (f / "annotations/instances_train2017.json").write_text(
                    '"images" "annotations" "categories" "bbox"'
                ),
                "instances_train2017.json must be JSON",
            ),
            (
                lambda f: edit(
                    f / "annotations/instances_val2017.json",
                    lambda x: x["categories"][0].update(name="circle"),
                ),
                "must have the same categories. Received: category 17, '(circle|triangle)', in",
            ),
        ],
    )
    def test_refused(self, tmp_path, change, message):
        folder = annotated_shapes.coco(tmp_path)
        change(folder)
        with pytest.raises(FolderError, match=f"(?s){message}"):
            scan_detection(folder)

    def test_other_folders(self, tmp_path):
        for name in ("images", "annotations"):
            (tmp_path / name).mkdir()
        (tmp_path / "annotations" / "more.json").write_text('{"images": []}')
        assert not holds_coco(tmp_path) and not holds_coco(tmp_path / "none")
        with pytest.raises(FolderError, match="must be a folder of images"):
            coco_layout(tmp_path / "none")


class TestProblems:
    def test_all_at_once_and_skipped_on_demand(self, tmp_path):
        folder = annotated_shapes.coco(tmp_path, 9, 2, count=2)
        train = folder / "train2017"
        (train / "000.png").unlink()
        (train / "001.png").write_text("text")
        Image.new("RGB", (64, 40)).save(train / "002.png")
        shutil.copy(folder / "val2017/100.png", train / "003.png")

        def change(content):
            of = {x["image_id"]: x for x in content["annotations"]}
            of[40]["bbox"] = [70, 2, 5, 5]
            of[50]["bbox"] = [7, 2, -5, 5]
            of[60]["segmentation"] = []
            of[70]["category_id"] = 4

        path = folder / "annotations/instances_train2017.json"
        edit(path, change)
        message = refusal(folder)
        assert "is of category 4, which is not in the file" in message
        edit(path, lambda x: [a for a in x["annotations"] if a["category_id"] == 4][0].update(
            category_id=3))  # fmt: skip
        message = refusal(folder)
        expected = {
            "train2017/000.png: is in the annotations, and not there",
            "train2017/001.png: is text, not an image",
            "train2017/002.png: is 64 x 40 pixels, 64 x 48 by the annotations",
            "train2017/003.png: is for validation, too, as val2017/100.png",
            "annotation 10: has a box outside of its image of 64 x 48, 70 2 to 75 7",
            "annotation 12: has a box of negative sides, -5 x 5",
            "train2017/006.png: has 1 object without a segmentation, such as annotation 14, where",
        }
        for line in expected:
            assert f"{line}" in message, line
        assert message.endswith("--skip-bad leaves out these 7.")
        found = scan_detection(folder, skip_bad=True)
        assert names(found.train) == ["004.png", "005.png", "007.png", "008.png"]
        assert [len(x.objects) for x in found.train] == [1, 1, 2, 2]
        assert len(found.bad) == 7 and found.notes[0] == "7 images or objects left out."

    def test_what_is_only_counted(self, tmp_path):
        folder = annotated_shapes.coco(tmp_path, 4, 2, count=2)

        def change(content):
            first, second, third, fourth = content["annotations"][:4]
            first["bbox"] = [-3, 0, 70, 60.5]
            second["bbox"] = [5, 5, 0.5, 10]
            third["iscrowd"] = 1
            third["segmentation"] = {"size": [48, 64], "counts": [10, 48 * 64 - 10]}
            fourth["bbox"] = [0, 0, 64.5, 48]  # rounding
            content["annotations"] = content["annotations"][:4]

        edit(folder / "annotations/instances_train2017.json", change)
        Image.new("RGB", (4, 4)).save(folder / "train2017/other.png")
        found = scan_detection(folder)
        first, second, *others = found.train
        assert [x.box for x in first.objects] == [(0, 0, 64, 48)]
        assert [x.box for x in second.objects] == [(0, 0, 64, 48)]
        assert len(second.crowds) == 1 and not any(x.objects for x in others)
        assert len(others) == 2
        for note in (
            "2 images without an object, which are kept.",
            "1 box beyond the image by more than a pixel: clipped.",
            "1 object less than a pixel wide or high: left out.",
            "1 crowd (iscrowd): not learnt, and neither right nor wrong in validation.",
            "1 image in train2017/ left out: not in the annotations.",
        ):
            assert note in found.notes

    def test_classes_without_an_object(self, tmp_path):
        folder = annotated_shapes.coco(tmp_path)
        for part in ("train", "val"):
            edit(
                folder / f"annotations/instances_{part}2017.json",
                lambda x: x["categories"].append({"id": 5, "name": "circle"}),
            )
        found = scan_detection(folder)
        assert found.class_names == ("square", "circle", "triangle")
        assert "Without an object to train on: circle." in found.notes

    def test_a_side_without_objects(self, tmp_path):
        folder = annotated_shapes.coco(tmp_path)
        edit(folder / "annotations/instances_val2017.json", lambda x: x["annotations"].clear())
        assert "There must be an object for validation" in refusal(folder)
        for part in ("train", "val"):
            edit(
                folder / f"annotations/instances_{part}2017.json",
                lambda x: [a.update(bbox=[0.1, 0.1, 0.5, 0.2]) for a in x["annotations"]],
            )
        message = refusal(folder)
        assert "there is no object, but" in message and "boxes are in pixels" in message

    def test_masks(self, tmp_path):
        folder = annotated_shapes.coco(tmp_path)
        paths = [folder / f"annotations/instances_{part}2017.json" for part in ("train", "val")]
        assert scan_detection(folder, masks="none").masks == "none"
        edit(paths[0], lambda x: x["annotations"][0].pop("segmentation"))
        assert "--masks rectangles" in refusal(folder)
        for masks in ("rectangles", "none"):
            found = scan_detection(folder, masks=masks)
            assert found.masks == masks and len(found.train) == 4
        for path in paths:
            edit(path, lambda x: [a.update(segmentation=[]) for a in x["annotations"]])
        found = scan_detection(folder)
        assert found.masks == "none"
        assert any("boxes are learnt alone" in note for note in found.notes)
        assert "without a segmentation" in refusal(folder, masks="annotated")

    @pytest.mark.parametrize(
        ("orientation", "as_stored", "reason"),
        [
            (6, False, None),
            (6, True, "is 48 x 64 pixels, 64 x 48 by the annotations: it is turned upright by its"),
            (3, True, "is turned by EXIF (orientation 3), and nothing tells whether its annotat"),
        ],
    )
    def test_orientation(self, tmp_path, orientation, as_stored, reason):
        folder = annotated_shapes.coco(tmp_path)
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = Image.fromarray(annotated_shapes.draw(0)[0])
        if not as_stored:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        picture.save(folder / "train2017/000.png", exif=exif)
        if reason is None:
            assert len(scan_detection(folder).train) == 4
        else:
            assert reason in refusal(folder)

    def test_the_same_file_on_both_sides(self, tmp_path):
        folder = annotated_shapes.coco(tmp_path)
        (folder / "train2017/001.png").unlink()
        os.symlink(folder / "val2017/101.png", folder / "train2017/001.png")
        assert "train2017/001.png: is for validation, too, as val2017/101.png" in refusal(folder)

    def test_arguments(self, tmp_path):
        for arguments in ({"validation_split": 1}, {"part": "train"}, {"masks": "boxes"}):
            with pytest.raises(ValueError, match="must be .* Received: "):
                scan_detection(tmp_path, **arguments)
