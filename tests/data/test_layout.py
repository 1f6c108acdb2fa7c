"""Folders that are no classes, and images that are there twice."""

import photographs
import pytest

from keras_internimage.data import FolderError, scan

pytestmark = pytest.mark.any_backend


@pytest.fixture
def data(tmp_path):
    return photographs.folder(tmp_path / "data", images=5)


def refusal(folder):
    with pytest.raises(FolderError) as caught:
        scan(folder)
    return str(caught.value)


class TestParts:
    """Folders beside those of the training, whatever they are called, never become classes."""

    def parts(self, folder, *names, images=3):
        for number, name in enumerate(names):
            photographs.folder(folder / name, images=images + number)
        return folder

    @pytest.mark.parametrize(
        ("train", "validation"),
        [
            ("train", "dev"),
            ("training_set", "valid"),
            ("seg_train", "seg_val"),
            ("Training", "Validation Set"),
            ("train2017", "val2017"),
            ("TrainImages", "ValImages"),
        ],
    )
    def test_names_of_parts(self, tmp_path, train, validation):
        images = scan(self.parts(tmp_path, train, validation))
        assert images.class_names == ("china", "flower")
        assert len(images.train) == 6 and len(images.validation) == 8

    @pytest.mark.parametrize("other", ["test of others", "images to test", "test_set", "seg_test"])
    def test_a_test_set_is_not_used(self, tmp_path, other):
        images = scan(self.parts(tmp_path, "train", "val", other))
        assert images.class_names == ("china", "flower")
        assert len(images.train) == 6 and len(images.validation) == 8
        assert f"{other}/ is not looked at." in images.notes

    def test_a_training_set_and_a_test_set(self, tmp_path):
        images = scan(self.parts(tmp_path, "training_set", "test_set", images=5))
        assert images.class_names == ("china", "flower")
        assert len(images.train) + len(images.validation) == 10
        assert "test_set/ is not looked at." in images.notes

    def test_parts_without_classes(self, tmp_path):
        for name in ("training_set", "test_set"):
            (tmp_path / name).mkdir()
            photographs.piece("china", 0).save(tmp_path / name / "a.jpg")
        assert "one folder for each class in" in refusal(tmp_path)

    def test_a_folder_without_images_beside(self, tmp_path):
        self.parts(tmp_path, "train", "val")
        (tmp_path / "runs" / "exp1").mkdir(parents=True)
        (tmp_path / "runs" / "exp1" / "log.txt").write_text("text")
        images = scan(tmp_path)
        assert images.class_names == ("china", "flower")
        assert "runs/ is not looked at." in images.notes

    def test_other_images_beside_are_refused(self, tmp_path):
        text = refusal(self.parts(tmp_path, "train", "val", "extra"))
        assert "no others with images" in text and "with extra/" in text

    @pytest.mark.parametrize("more", [(), ("sky",)])
    def test_parts_of_unknown_names(self, tmp_path, more):
        photographs.folder(self.parts(tmp_path, "one", "two") / "two", images=2)
        for name in more:  # a class that one of the parts has alone
            (tmp_path / "two" / name).mkdir()
            photographs.piece("china", 9).save(tmp_path / "two" / name / "a.jpg")
        text = refusal(tmp_path)
        assert "one/, two/, which all hold china/, flower/" in text

    def test_classes_with_folders_of_their_own(self, data):
        (data / "china" / "day").mkdir()
        photographs.piece("china", 7).save(data / "china" / "day" / "a.jpg")
        assert scan(data).class_names == ("china", "flower")

    @pytest.mark.parametrize("inside", [".", "train"])
    def test_the_output_of_a_training_is_no_class(self, tmp_path, inside):
        self.parts(tmp_path, "train", "val")
        folder = tmp_path / inside / "my-output"
        folder.mkdir()
        (folder / "run.json").write_text("{}")
        (folder / "history.csv").write_text("epoch")
        photographs.piece("china", 0).save(folder / "curves.png")
        images = scan(tmp_path)
        assert images.class_names == ("china", "flower")
        assert "Left out, being the output of a training: my-output." in images.notes
        assert "the output of a training" in refusal(folder)


class TestTheSameImageTwice:
    def parts(self, folder):
        for number, part in enumerate(("train", "val")):
            for name in ("china", "flower"):
                (folder / part / name).mkdir(parents=True)
                for index in range(3):
                    piece = photographs.piece(name, 3 * number + index)
                    piece.save(folder / part / name / f"{index}.png")
        return folder

    def test_no_note_without(self, tmp_path):
        assert scan(self.parts(tmp_path)).notes == ()

    def test_the_same_file_on_both_sides(self, tmp_path):
        photographs.folder(tmp_path / "train", images=3)
        (tmp_path / "val").symlink_to(tmp_path / "train")
        text = refusal(tmp_path)
        assert "val/china/000.jpg: for validation, is the same file as train/china/000.jpg" in text
        assert "(6 in all)" not in text and text.count("is the same file as") == 6

    def test_a_hard_link(self, tmp_path):
        self.parts(tmp_path)
        (tmp_path / "val" / "china" / "9.png").hardlink_to(tmp_path / "train" / "china" / "1.png")
        assert "val/china/9.png: for validation, is the same file" in refusal(tmp_path)

    def test_copies_on_both_sides(self, tmp_path):
        self.parts(tmp_path)
        copied = (tmp_path / "train" / "china" / "1.png").read_bytes()
        (tmp_path / "val" / "china" / "copy.png").write_bytes(copied)
        (note,) = scan(tmp_path).notes
        assert "1 of 7 images for validation are copies of images to train on" in note
        assert "val/china/copy.png has the content of train/china/1.png" in note

    def test_one_content_in_two_classes(self, tmp_path):
        self.parts(tmp_path)
        copied = (tmp_path / "train" / "china" / "1.png").read_bytes()
        (tmp_path / "train" / "flower" / "copy.png").write_bytes(copied)
        (note,) = scan(tmp_path).notes
        assert note.startswith("1 image in more than one class. ")
