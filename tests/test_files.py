"""Outputs: whole or absent, and nothing replaced that was not written here."""

import os

import pytest

from keras_internimage import files

pytestmark = pytest.mark.any_backend


def test_atomic_write(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), files.atomic_write(path) as unfinished:
        with open(unfinished, "w") as file:
            file.write("half")
        raise KeyError
    assert path.read_text() == "old"
    with files.atomic_write(path, durable=True) as unfinished, open(unfinished, "w") as file:
        file.write("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="devices")
def test_folders_and_devices_are_not_replaced_by_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "device")
    (tmp_path / "link").symlink_to(tmp_path / "device")
    for name in ("folder", "device", "link"):
        with pytest.raises(ValueError, match=f"must be a file. Received: .*{name}"):
            with files.atomic_write(tmp_path / name):
                raise AssertionError("begun")
    assert sorted(os.listdir(tmp_path)) == ["device", "folder", "link"]


def test_files_of_another_kind(tmp_path):
    (tmp_path / "a.JSON").write_text("")
    (tmp_path / "photo.jpg").write_text("")
    files.check_file(tmp_path / "a.JSON", (".json",))
    files.check_file(tmp_path / "new.jpg", (".json",))
    with pytest.raises(ValueError, match=r"ends in .json. Received: .*photo.jpg"):
        files.check_file(tmp_path / "photo.jpg", (".json",))


def test_only_folders_that_were_written_here_are_replaced(tmp_path):
    folder = tmp_path / "folder"
    files.check_folder(folder)
    folder.mkdir()
    files.check_folder(folder)
    (folder / "a").mkdir()
    with pytest.raises(ValueError, match="which holds a$"):  # an empty folder is somebody's, too
        files.check_folder(folder)
    (folder / "a" / "b.txt").write_text("")
    with pytest.raises(ValueError, match="which holds a/b.txt$"):
        files.check_folder(folder)
    files.write_manifest(folder)
    files.check_folder(folder)
    (folder / "a" / "b.txt").unlink()
    (folder / "a" / "b.txt").write_text("changed")
    files.check_folder(folder)
    (folder / "mine.txt").write_text("")
    (folder / "other.txt").write_text("")
    with pytest.raises(ValueError, match="which holds mine.txt and 1 more$"):
        files.check_folder(folder)
    (folder / files.MANIFEST).write_text("damaged")
    with pytest.raises(ValueError, match="which holds a/b.txt and 2 more"):
        files.check_folder(folder)


def test_files_and_links_are_no_folders(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name, kind in (("file", "file"), ("link", "link")):
        with pytest.raises(ValueError, match=f"{name}, which is a {kind}"):
            files.check_folder(tmp_path / name)
