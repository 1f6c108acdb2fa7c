"""Folders of images and masks: layouts, encodings, and what is refused before training starts."""

import os
import shutil

import masks
import numpy as np
import pytest
from PIL import Image

from keras_internimage.data import FolderError, read_mask, scan_segmentation
from keras_internimage.data.mask_layout import VOC_CLASSES, holds_masks, mask_layout
from keras_internimage.data.palette import default_palette

pytestmark = pytest.mark.any_backend


def refusal(folder, **options):
    with pytest.raises(FolderError) as caught:
        scan_segmentation(folder, **options)
    return str(caught.value)


def names(pairs):
    return [image.stem for image, _ in pairs]


class TestLayouts:
    def test_two_folders(self, tmp_path):
        found = scan_segmentation(masks.folder(tmp_path), validation_split=0.34, seed=1)
        assert found.class_names == ("dark", "bright thing") and found.notes == ()
        assert len(found.train) == 4 and len(found.validation) == 2
        assert not set(found.train) & set(found.validation)
        for image, mask in found.train + found.validation:
            assert image.stem == mask.stem and mask.parent == tmp_path / "masks"
        assert found == scan_segmentation(tmp_path, validation_split=0.34, seed=1)
        splits = {scan_segmentation(tmp_path, 0.34, seed).validation for seed in range(5)}
        assert len(splits) > 1
        counts = np.zeros(256, int)
        for _, mask in found.train:
            counts += np.bincount(np.asarray(Image.open(mask)).ravel(), minlength=256)
        assert found.train_pixels == tuple(counts[:2]) and counts[255]

    def test_parts_inside_and_outside(self, tmp_path):
        inside = scan_segmentation(masks.folder(tmp_path / "a", 3, 2))
        outside = tmp_path / "b"
        for part in ("train", "val"):
            for name in ("images", "masks"):
                shutil.copytree(tmp_path / "a" / name / part, outside / part / name)
        (outside / "test").mkdir()
        found = scan_segmentation(outside)
        for one in (inside, found):
            assert names(one.train) == ["000", "001", "002"]
            assert names(one.validation) == ["100", "101"]
        assert found.class_names == ("0", "1")
        assert found.notes[:2] == (
            "test/ is not looked at.",
            "No classes.txt: the classes are numbered 0 to 1.",
        )

    def test_ade20k(self, tmp_path):
        folder = masks.ade20k(tmp_path / "ADEChallengeData2016")
        found = scan_segmentation(tmp_path)  # the folder that the archive is in
        assert found.reduce_zero_label and len(found.class_names) == 150
        assert found.class_names[:2] == ("wall", "building")
        assert found.palette[1] == (180, 120, 120) and found.encoding.palette == ()
        assert len(found.train) == len(found.validation) == 2
        image, mask = found.validation[0]
        assert image.name == "ADE_valid_00000050.jpg"
        np.testing.assert_array_equal(read_mask(mask, found.encoding), masks.pair(50)[1])
        # 151 is no class, but 150 is.
        stored = np.asarray(Image.open(mask)).copy()
        stored[5, 5] = 150
        Image.fromarray(stored).save(mask)
        assert read_mask(mask, found.encoding)[5, 5] == 149
        stored[5, 5] = 151
        Image.fromarray(stored).save(mask)
        message = refusal(folder)
        assert "ADE_valid_00000050.png: has the value 151, where classes are 1 to 150" in message

    def test_voc(self, tmp_path):
        masks.voc(tmp_path / "VOCdevkit" / "VOC2012")
        found = scan_segmentation(tmp_path)
        assert found.class_names == VOC_CLASSES and len(VOC_CLASSES) == 21
        assert names(found.train) == ["2007_000000", "2007_000001"]
        assert names(found.validation) == ["2007_000002", "2007_000003"]
        numbers = read_mask(found.train[0][1], found.encoding)
        assert set(np.unique(numbers)) == {0, 20, 255}
        # The published colours: person (15) is (192, 128, 128), the border (224, 224, 192).
        assert found.palette[15] == (192, 128, 128) and found.palette[1] == (128, 0, 0)
        assert default_palette(256)[255] == (224, 224, 192)
        listed = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
        text = listed.read_text()
        listed.write_text("\ufeff" + text, "utf-8")
        assert scan_segmentation(tmp_path).train == found.train
        listed.write_bytes(b"\xff")
        assert "train.txt must be UTF-8 text" in refusal(tmp_path)
        listed.write_text(text)
        shutil.copytree(tmp_path / "VOCdevkit/VOC2012", tmp_path / "VOCdevkit/VOC2007")
        assert "must be one of VOC2007 and VOC2012" in refusal(tmp_path)

    @pytest.mark.parametrize("train_ids", [False, True])
    def test_cityscapes(self, tmp_path, train_ids):
        masks.cityscapes(tmp_path, 2, 3, train_ids)
        (tmp_path / "leftImg8bit/test/berlin").mkdir(parents=True)
        (tmp_path / "leftImg8bit/train_extra").mkdir()
        assert holds_masks(tmp_path)
        found = scan_segmentation(tmp_path)
        assert found.class_names[::18] == ("road", "bicycle") and len(found.class_names) == 19
        assert found.palette[0] == (128, 64, 128)
        assert [name.split("_")[0] for name in names(found.train)] == ["bochum", "ulm"]
        assert [name.split("_")[0] for name in names(found.validation)] == ["bochum"] * 2 + ["ulm"]
        for (image, mask), index in zip(found.train, (0, 1), strict=True):
            assert image.parent.name == mask.parent.name == ("bochum", "ulm")[index]
            expected = masks.pair(index)[1].astype(int)
            expected[expected == 1] = 18
            np.testing.assert_array_equal(read_mask(mask, found.encoding), expected)
        assert found.notes[:2] == tuple(
            f"leftImg8bit/{name}/ is not looked at." for name in ("test", "train_extra")
        )
        with pytest.raises(FolderError, match="reduce_zero_label must be left out"):
            scan_segmentation(tmp_path, reduce_zero_label=True)

    def test_ids_of_cityscapes(self, tmp_path):
        """As its toolkit has them: id and train id of each label, 255 for those left out."""
        encoding = mask_layout(masks.cityscapes(tmp_path, 1, 0)).encoding
        known = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10}
        known |= {24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
        ids = np.arange(35, dtype="uint8")
        ids[34] = 255
        Image.fromarray(ids[None]).save(tmp_path / "ids.png")
        found = read_mask(tmp_path / "ids.png", encoding)[0]
        assert found.tolist() == [known.get(number, 255) for number in range(34)] + [255]
        ids[34] = 34
        Image.fromarray(ids[None]).save(tmp_path / "ids.png")
        with pytest.raises(ValueError, match="the value 34, where classes are 0 to 33"):
            read_mask(tmp_path / "ids.png", encoding)

    def test_cityscapes_in_part(self, tmp_path):
        folder = masks.cityscapes(tmp_path, 2, 2)
        (folder / "gtFine/train/bochum/bochum_000000_000019_gtFine_labelIds.png").unlink()
        (folder / "gtFine/val/ulm/ulm_000051_000019_gtFine_labelIds.png").unlink()
        shutil.copy(
            folder / "gtFine/val/bochum/bochum_000050_000019_gtFine_labelIds.png",
            folder / "gtFine/val/bochum/bochum_000052_000019_gtFine_labelIds.png",
        )
        message = refusal(folder)
        for expected in [
            "bochum_000000_000019_leftImg8bit.png: has no mask gtFine/train/bochum/bochum_000000",
            "ulm_000051_000019_leftImg8bit.png: has no mask gtFine/val/ulm/ulm_000051",
            "bochum_000052_000019_gtFine_labelIds.png: is a mask without an image",
        ]:
            assert expected in message
        # What is amiss in the other part is nobody's business when evaluating.
        held_out = scan_segmentation(folder, part="validation", skip_bad=True)
        assert len(held_out.validation) == 1
        assert sorted(path.name[:13] for path, _ in held_out.bad) == [
            "bochum_000052",
            "ulm_000051_00",
        ]
        shutil.rmtree(folder / "gtFine/train")
        shutil.rmtree(folder / "leftImg8bit/train")
        alone = scan_segmentation(folder, part="validation", skip_bad=True)
        assert alone.validation == held_out.validation

    @pytest.mark.parametrize(
        ("folders", "message"),
        [
            (["leftImg8bit/test", "gtFine/test"], "/train or .*/val. Received: neither"),
            ([], "must be images/ and masks/, or train/ .* with no folder"),
            (["images"], "must be images/ and masks/.* with images/"),
            (["train/images", "val/images"], "must be images/ and masks/"),
            (["images/train", "masks/all"], "images/ has parts and masks/ none"),
            (["images/train", "images/val", "masks/train"], "part for validation must have"),
            (["images", "masks", "labels"], "one folder of each kind.* labels/ and masks/"),
            (["images", "masks"], "there is no image with a mask"),
        ],
    )
    def test_other_layouts_are_refused(self, tmp_path, folders, message):
        for name in folders:
            (tmp_path / name).mkdir(parents=True)
        with pytest.raises(FolderError, match=f"(?s){message}"):
            scan_segmentation(tmp_path)

    def test_a_part_for_evaluation(self, tmp_path):
        folder = masks.folder(tmp_path / "a", 2, 3)
        (folder / "images/train/000.png").write_text("text")  # not looked at
        (folder / "images/train/more.png").write_text("text")
        found = scan_segmentation(folder, part="validation")
        assert found.train == () and len(found.validation) == 3
        assert sum(found.validation_pixels) == 3 * 64 * 47
        whole = scan_segmentation(masks.folder(tmp_path / "b", 3), part="validation")
        assert whole.train == () and len(whole.validation) == 3


class TestProblems:
    def test_all_at_once_and_skipped_on_demand(self, tmp_path):
        folder = masks.folder(tmp_path, 12)
        images, those = folder / "images", folder / "masks"
        (those / "000.png").unlink()
        (images / "001.png").unlink()
        Image.new("L", (64, 40)).save(those / "002.png")
        Image.fromarray(np.full((48, 64), 2, "uint8")).save(those / "003.png")
        (those / "004.png").write_text("text")
        (images / "005.png").write_bytes(b"")
        Image.fromarray(masks.pair(6)[1]).save(those / "006.jpg")
        (those / "006.png").unlink()
        Image.new("RGB", (64, 48)).save(those / "007.png")
        shutil.copy(images / "008.png", images / "008.bmp")
        expected = {
            "images/000.png: has no mask masks/000.png",
            "masks/001.png: is a mask without an image",
            "masks/002.png: is 64 x 40 pixels, its image 64 x 48",
            "masks/003.png: has the value 2, where classes are 0 to 1, 255 is ignored",
            "masks/004.png: is text, not an image",
            "images/005.png: is empty",
            "masks/006.jpg: is a JPEG file, which does not keep class numbers exactly",
            "masks/007.png: is in colours, which needs a classes.txt with lines `name R G B` "
            "beside the folders",
            "images/008.png: has the name of images/008.bmp, but for the suffix",
        }
        first, *lines, last = refusal(folder).splitlines()
        assert first == f"The folder must be fit to be trained on. Received: {folder} with"
        assert {line.strip() for line in lines} == expected
        assert last == "--skip-bad leaves out these 9."
        found = scan_segmentation(folder, skip_bad=True)
        assert sorted(names(found.train + found.validation)) == ["008", "009", "010", "011"]
        assert {f"{path.relative_to(folder)}: {reason}" for path, reason in found.bad} == expected
        assert found.notes[0] == "9 images or masks left out."

    def test_on_both_sides_of_the_split(self, tmp_path):
        folder = masks.folder(tmp_path, 4, 2)
        for kind in ("images", "masks"):
            shutil.copy(folder / kind / "val/100.png", folder / kind / "train/100.png")
            os.symlink(folder / kind / "val/101.png", folder / kind / "train/101.png")
        message = refusal(folder)
        assert "images/train/100.png: is for validation, too, as images/val/100.png" in message
        assert "images/train/101.png: is for validation, too, as images/val/101.png" in message
        found = scan_segmentation(folder, skip_bad=True)
        assert len(found.train) == 4 and len(found.validation) == 2

    def test_copies_stay_on_one_side_of_our_split(self, tmp_path):
        folder = masks.folder(tmp_path, 4)
        for kind in ("images", "masks"):
            for index in range(4):
                shutil.copy(folder / kind / f"00{index}.png", folder / kind / f"copy{index}.png")
        for seed in range(4):
            found = scan_segmentation(folder, 0.25, seed)
            assert len(found.validation) == 2
            assert {name[-1] for name in names(found.train)}.isdisjoint(
                {name[-1] for name in names(found.validation)}
            )

    @pytest.mark.parametrize(
        ("orientation", "turn_mask", "reason"),
        [
            (6, True, None),
            (6, False, "is 64 x 48 pixels, its image 48 x 64: the image is turned upright by its "),
            (3, False, "is turned by EXIF (orientation 3), and nothing tells whether its mask is"),
        ],
    )
    def test_orientation(self, tmp_path, orientation, turn_mask, reason):
        folder = masks.folder(tmp_path)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image, mask = masks.pair(0)
        image.save(folder / "images/000.png", exif=exif)
        if turn_mask:
            Image.fromarray(np.rot90(mask, -1)).save(folder / "masks/000.png")
        if reason is None:
            scan_segmentation(folder)
        else:
            assert reason in refusal(folder)

    def test_a_mask_with_an_orientation(self, tmp_path):
        folder = masks.folder(tmp_path)
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.fromarray(masks.pair(0)[1]).save(folder / "masks/000.png", exif=exif)
        assert "masks/000.png: has an EXIF orientation; a mask must be stored" in refusal(folder)

    def test_a_foreground_of_255(self, tmp_path):
        folder = masks.folder(tmp_path, 2)
        for path in (folder / "masks").iterdir():
            mask = np.asarray(Image.open(path))
            Image.fromarray(np.where(mask == 1, 255, 0).astype("uint8")).save(path)
        (folder / "classes.txt").unlink()
        message = refusal(folder)
        assert "all masks hold one class alone, 0" in message
        assert "255 stands for ignored pixels" in message
        (folder / "classes.txt").write_text("background 0 0 0\nbright 255 255 255\n")
        found = scan_segmentation(folder)  # as the message says
        assert found.class_names == ("background", "bright") and min(found.train_pixels) > 0

    def test_masks_that_are_all_ignored(self, tmp_path):
        """The split is drawn again until both sides have pixels that count, always the same."""
        folder = masks.folder(tmp_path / "a", 6)
        for path in sorted((folder / "masks").iterdir())[2:]:
            Image.fromarray(np.full((48, 64), 255, "uint8")).save(path)
        splits = set()
        for seed in range(8):
            found = scan_segmentation(folder, 0.2, seed)
            assert sum(found.train_pixels) and sum(found.validation_pixels)
            assert found == scan_segmentation(folder, 0.2, seed)
            splits.add(found.validation)
        assert sorted(map(names, splits)) == [["000"], ["001"]]
        Image.fromarray(np.full((48, 64), 255, "uint8")).save(folder / "masks/001.png")
        message = refusal(folder)
        assert "must have a pixel that counts" in message and "however they were drawn" in message
        parts = masks.folder(tmp_path / "b", 2, 1)
        Image.fromarray(np.full((48, 64), 255, "uint8")).save(parts / "masks/val/100.png")
        message = refusal(parts)
        assert "The masks for validation must" in message and "drawn" not in message

    def test_arguments(self, tmp_path):
        with pytest.raises(ValueError, match="validation_split must be .* Received: "):
            scan_segmentation(tmp_path, validation_split=1)
        for classes in (0, 256, "5", True):
            with pytest.raises(ValueError, match="classes must be an int of 1 to 255.* Received: "):
                scan_segmentation(tmp_path, classes=classes)
        with pytest.raises(ValueError, match="part must be .* Received: part='train'"):
            scan_segmentation(tmp_path, part="train")
