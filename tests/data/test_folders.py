"""What a folder of images may hold, and what is refused before training starts."""

import os
import pathlib

import numpy as np
import photographs
import pytest
from PIL import Image

from keras_internimage.data import FolderError, check, scan

pytestmark = pytest.mark.any_backend


def names(images, part="train"):
    return [path.relative_to(images.folder).as_posix() for path, _ in getattr(images, part)]


@pytest.fixture
def data(tmp_path):
    return photographs.folder(tmp_path / "data", images=5)


def refusal(folder, **options):
    with pytest.raises(FolderError) as caught:
        scan(folder, **options)
    return str(caught.value)


class TestSplit:
    def test_by_class(self, data):
        images = scan(data, validation_split=0.4)
        assert images.class_names == ("china", "flower")
        assert len(images.train) == 6 and len(images.validation) == 4
        assert [label for _, label in images.validation] == [0, 0, 1, 1]
        for path, label in images.train + images.validation:
            assert path.parent.name == images.class_names[label]
        assert not set(images.train) & set(images.validation)

    def test_is_a_function_of_the_seed(self, data):
        assert scan(data, seed=3) == scan(data, seed=3)
        assert len({scan(data, seed=seed).validation for seed in range(5)}) > 1

    def test_a_class_keeps_one_image_for_each_part(self, data):
        for share in (0.01, 0.99):
            images = scan(data, validation_split=share)
            for part in (images.train, images.validation):
                assert {label for _, label in part} == {0, 1}

    def test_a_class_of_one_image_is_trained_and_noted(self, data):
        photographs.folder(data, images=1, classes=("flower",))
        for path in sorted((data / "flower").iterdir())[1:]:
            path.unlink()
        images = scan(data)
        assert [label for _, label in images.train].count(1) == 1
        assert any("Without an image for validation: flower." == note for note in images.notes)

    def test_folders_train_and_val(self, tmp_path):
        for part, count in (("train", 3), ("Val", 2), ("test", 1)):
            photographs.folder(tmp_path / part, images=count)
        images = scan(tmp_path)
        assert len(images.train) == 6 and len(images.validation) == 4
        assert all(name.startswith("Val/") for name in names(images, "validation"))
        assert images.notes[0] == "test/ is not looked at."

    def test_a_class_may_be_called_train(self, tmp_path):
        photographs.folder(tmp_path, images=3)
        (tmp_path / "china").rename(tmp_path / "train")
        assert scan(tmp_path).class_names == ("flower", "train")

    @pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
    def test_share_out_of_range(self, data, share):
        with pytest.raises(ValueError, match="validation_split must be .* Received: "):
            scan(data, validation_split=share)

    def test_one_image_of_each_class(self, tmp_path):
        assert "must have two images" in refusal(photographs.folder(tmp_path, images=1))


class TestWhatIsHandled:
    def test_every_kind_of_image(self, data):
        image = photographs.piece("china", 9)
        folder = data / "china"
        image.convert("CMYK").save(folder / "cmyk.jpg")
        image.convert("RGBA").save(folder / "rgba.png")
        image.convert("P").save(folder / "palette.png", transparency=0)
        image.convert("L").save(folder / "grey.PNG")
        image.convert("1").save(folder / "bits.tif")
        Image.fromarray(np.full((20, 20), 40000, "uint16")).save(folder / "sixteen.png")
        frames = [photographs.piece("flower", index) for index in range(3)]
        image.save(folder / "animated.gif", save_all=True, append_images=frames)
        image.save(folder / "animated.webp", save_all=True, append_images=frames)
        image.save(folder / "ünïcödé 照片.jpg")
        image.resize((3, 200)).save(folder / "narrow.bmp")
        images = scan(data, validation_split=0.01)
        assert len(images.train) + len(images.validation) == 20
        assert images.bad == () and images.notes == ()

    def test_what_is_no_image_by_its_name(self, data):
        for name in (".DS_Store", "._000.jpg", "Thumbs.db", "notes.txt", "README"):
            (data / "china" / name).write_bytes(b"x")
        for name in (".git", "__MACOSX"):
            (data / name).mkdir()
            (data / name / "a.jpg").write_bytes(b"x")
        photographs.piece("china", 0).save(data / "loose.jpg")
        images = scan(data)
        assert len(images.train) + len(images.validation) == 10
        assert images.notes == (
            "1 image left out: outside the folders of classes.",
            "2 files left out: no images by suffix (.txt, without a suffix).",
        )

    def test_folders_in_a_class(self, data):
        inner = data / "china" / "2023" / "may"
        inner.mkdir(parents=True)
        photographs.piece("china", 7).save(inner / "a.jpg")
        images = scan(data)
        assert "china/2023/may/a.jpg" in names(images) + names(images, "validation")

    def test_links(self, data, tmp_path):
        photographs.folder(tmp_path / "elsewhere", images=2, classes=("china",))
        (data / "linked").symlink_to(tmp_path / "elsewhere" / "china")
        (data / "flower" / "link.jpg").symlink_to(data / "flower" / "000.jpg")
        (data / "flower" / "loop").symlink_to(data / "flower")
        images = scan(data)
        assert images.class_names == ("china", "flower", "linked")
        assert len(images.train) + len(images.validation) == 5 + 6 + 2


class TestWhatIsRefused:
    def test_all_in_one_message_and_skipped_on_demand(self, data, monkeypatch):
        china = data / "china"
        (china / "text.jpg").write_text("I am a text, not an image.")
        (china / "nothing.png").write_bytes(b"")
        (china / "noise.jpg").write_bytes(bytes(range(256)) * 3)
        whole = (china / "000.jpg").read_bytes()
        (china / "half.jpg").write_bytes(whole[: len(whole) // 2])
        Image.fromarray(np.zeros((8, 8), "float32")).save(china / "deep.tiff")
        (china / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
        (china / "gone.jpg").symlink_to(china / "not there.jpg")
        photographs.piece("china", 0, side=200).save(data / "flower" / "huge.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150 * 150)
        text = refusal(data)
        expected = {
            "china/text.jpg": "is text, not an image",
            "china/nothing.png": "is empty",
            "china/noise.jpg": "is no image that Pillow reads",
            "china/half.jpg": "is damaged (image file is truncated",
            "china/deep.tiff": "An image must have 8 or 16 bits per channel",
            "china/phone.heic": "is no image that Pillow reads",
            "china/gone.jpg": "is a link to nothing",
            "flower/huge.png": "is too large (200 x 200 pixels; at most 22500 in all)",
        }
        for file, reason in expected.items():
            assert f"  {file}: {reason}" in text
        assert text.count("\n") == len(expected) + 1
        assert "--skip-bad leaves out the 8 files that cannot be read." in text

        images = scan(data, skip_bad=True)
        assert {path.relative_to(data).as_posix() for path, _ in images.bad} == set(expected)
        assert len(images.train) + len(images.validation) == 10
        assert images.notes == ("8 files left out: unreadable.",)

    def test_a_bomb(self, data, monkeypatch):
        photographs.piece("china", 0, side=200).save(data / "flower" / "huge.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 70)  # Pillow raises at twice of it
        assert "flower/huge.png: is too large (Image size (40000 pixels) exceeds" in refusal(data)

    def test_ten_are_shown(self, data):
        for index in range(14):
            (data / "china" / f"bad{index:02}.jpg").write_text("text")
        text = refusal(data)
        assert "bad09.jpg" in text and "bad10.jpg" not in text
        assert "and 4 more (14 in all)" in text

    def test_an_empty_class(self, data):
        (data / "empty").mkdir()
        text = refusal(data)
        assert "empty/: has no image" in text and "--skip-bad leaves out the empty class." in text
        images = scan(data, skip_bad=True)
        assert images.class_names == ("china", "flower")
        assert images.notes == ("Left out, having no image: empty.",)

    def test_a_class_of_bad_files_alone(self, data):
        (data / "words").mkdir()
        (data / "words" / "a.jpg").write_text("text")
        text = refusal(data)
        assert "words/a.jpg: is text" in text and "words/: has no image" in text
        assert "leaves out the file that cannot be read and the empty class." in text
        images = scan(data, skip_bad=True)
        assert images.class_names == ("china", "flower")
        assert images.notes[:2] == (
            "1 file left out: unreadable.",
            "Left out, having no image: words.",
        )

    def test_a_class_without_suffixes(self, data):
        """It is said which files were looked at, and why they are none."""
        (data / "plain").mkdir()
        for index in range(3):
            (data / "plain" / f"a0{index}").write_bytes(b"\xff\xd8\xff")
        (data / "plain" / "b.txt").write_text("text")
        text = refusal(data)
        assert "plain/: has no image; images are told by a suffix such as .jpg or .png" in text
        assert "(1 .txt, 3 without a suffix; for example a00)" in text

    def test_one_class(self, tmp_path):
        photographs.folder(tmp_path / "archive", images=2)
        text = refusal(tmp_path)
        assert "archive/: is the only class" in text
        assert f"then pass {tmp_path / 'archive'})" in text

    @pytest.mark.parametrize(
        "other", ["China", "CHINA", pytest.param("re\u0301sume\u0301", id="composed")]
    )
    def test_names_that_differ_in_case(self, data, other):
        first = "china" if other.isascii() else "r\u00e9sum\u00e9"
        (data / "china").rename(data / first)
        (data / other).mkdir()
        if len([path for path in data.iterdir()]) != 3:
            pytest.skip("the file system does not tell these names apart")
        photographs.piece("china", 0).save(data / other / "a.jpg")
        text = refusal(data)
        assert "the names of classes differ in case only" in text
        assert f"{first}/" in text and f"{other}/" in text

    def test_classes_of_the_two_parts(self, tmp_path):
        photographs.folder(tmp_path / "train", images=2)
        photographs.folder(tmp_path / "val", images=2, classes=("china",))
        photographs.folder(tmp_path / "val" / "x", images=1, classes=("flower",))
        assert "x/: a class for validation that is not trained" in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (["a.jpg"], "1 images without one"),
            ([], "no folder and no image"),
            (["train/a.jpg", "val/a.jpg"], "images without one"),
            (["val/x/a.jpg"], "There must be a folder `train`"),
            (
                ["train/x/a.jpg", "training/x/a.jpg"],
                "for training. Received: train and training",
            ),
        ],
    )
    def test_other_layouts(self, tmp_path, made, message):
        for name in made:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            photographs.piece("china", 0).save(tmp_path / name)
        assert message in refusal(tmp_path)

    def test_no_folder(self, tmp_path):
        assert "(nothing of that name)" in refusal(tmp_path / "absent")
        (tmp_path / "file").write_text("x")
        assert "(a file)" in refusal(tmp_path / "file")

    def test_unreadable_files_and_folders(self, data, monkeypatch):
        # Nothing is unreadable to the superuser, so what the system would say is raised here.
        closed, locked = data / "china" / "000.jpg", data / "china" / "locked"
        locked.mkdir()
        opened, listed = Image.open, pathlib.Path.iterdir

        def open_image(path, *arguments):
            if path == closed:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *arguments)

        def iterdir(path):
            if path == locked:
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(Image, "open", open_image)
        monkeypatch.setattr(pathlib.Path, "iterdir", iterdir)
        text = refusal(data)
        assert "china/000.jpg: may not be read (permission denied)" in text
        assert "china/locked: cannot be opened (Permission denied)" in text

    @pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
    def test_names_that_are_no_text(self, data):
        name = os.fsdecode(b"caf\xe9.jpg")
        try:
            photographs.piece("china", 0).save(data / "china" / name)
        except OSError:
            pytest.skip("the file system takes text only")
        assert "china/caf\\xe9.jpg: the name is no UTF-8" in refusal(data)


def test_every_file_is_read_to_its_end(tmp_path):
    """A header alone says little: the scan of a JPEG is cut in its last tenth."""
    path = tmp_path / "a.jpg"
    photographs.piece("china", 0, side=300).save(path)
    assert check.why_bad(path) is None
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])
    assert "truncated" in check.why_bad(path)


def test_sizes_of_classes(tmp_path):
    photographs.folder(tmp_path, images=2, classes=("china",))
    photographs.folder(tmp_path, images=15, classes=("flower",))
    images = scan(tmp_path)
    assert images.counts() == {"china": (1, 1), "flower": (12, 3)}
    (note,) = images.notes
    assert "12 images of flower to train on, 1 of china. --class-weights balanced" in note


@pytest.mark.skipif(os.name != "posix", reason="names are Unicode elsewhere")
class TestNamesThatAreNoUTF8:
    def test_a_folder_within_a_class(self, data):
        inner = os.fsencode(data / "china") + b"/\xff"
        os.mkdir(inner)
        photographs.piece("china", 9).save(os.fsdecode(inner + b"/a.jpg"))
        text = refusal(data)
        assert "china/\\xff/a.jpg: the name of its folder is no UTF-8" in text
        assert len(scan(data, skip_bad=True).bad) == 1

    def test_the_folder_itself(self, tmp_path):
        folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xfe")
        photographs.folder(pathlib.Path(folder), images=2)
        assert "must be UTF-8" in refusal(folder) and "\\xfe" in refusal(folder)
