"""Files made to do harm: nothing in them runs, and no tensor reaches outside its record."""

import io
import os
import pickle
import zipfile

import pytest
from checkpoints.conftest import save_pth
from checkpoints.test_read import WEIGHTS

from keras_internimage.checkpoints import CheckpointError, open_checkpoint

pytestmark = pytest.mark.any_backend


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "beside"])
def test_code_in_a_pickle_does_not_run(tmp_path, kind):
    torch = pytest.importorskip("torch")
    mark, path = tmp_path / "it-ran", tmp_path / "x.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": Attack(mark)}))
    elif kind == "beside":
        save_pth(path, WEIGHTS, config=Attack(mark))
    else:
        torch.save({"model": Attack(mark)}, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match="could run code; it was refused and nothing was run"):
        open_checkpoint(path)
    assert not mark.exists()
    # The file is a working attack: a plain unpickler falls for it.
    if kind == "zip":
        torch.load(path, weights_only=False)
        assert mark.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "torch.load", "torch._utils._rebuild_tensor_v2.__globals__"]
)
def test_only_listed_names_are_known(tmp_path, name):
    module, _, attribute = name.partition(".")
    body = f"c{module}\n{attribute}\n.".encode()
    pickled_into_archive(tmp_path / "x.pth", b"\x80\x02" + body)
    with pytest.raises(CheckpointError, match=f"refers to {name.replace('.', '[.]')}"):
        open_checkpoint(tmp_path / "x.pth")


def pickled_into_archive(path, body, record=bytes(16)):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", body)
        archive.writestr("x/data/0", record)


class _Forger(pickle._Pickler):
    """Writes names as they are given, without importing anything."""

    def __init__(self, stream, storage):
        super().__init__(stream, 2)
        self.storage = storage

    def persistent_id(self, obj):
        return self.storage if obj is self.storage else None


def forged(storage, offset, size, stride):
    stream = io.BytesIO()
    pickler = _Forger(stream, None)
    pickler.proto = 2
    stream.write(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(")
    kind, key, location, count = storage
    stream.write(b"(")
    pickler.save("storage")
    stream.write(f"ctorch\n{kind}\n".encode())
    for value in (key, location, count):
        pickler.save(value)
    stream.write(b"tQ")
    for value in (offset, size, stride, False, None):
        pickler.save(value)
    stream.write(b"tR.")
    return stream.getvalue()


GOOD = (("FloatStorage", "0", "cpu", 4), 0, (2, 2), (2, 1))


@pytest.mark.parametrize(
    "parts",
    [
        (("FloatStorage", "0", "cpu", 5), 0, (2, 2), (2, 1)),
        (("FloatStorage", "1", "cpu", 4), 0, (2, 2), (2, 1)),
        (("FloatStorage", "../data.pkl", "cpu", 1), 0, (1,), (1,)),
        (("FloatStorage", "0", "cpu", -4), 0, (2, 2), (2, 1)),
        (("FloatStorage", "0", "cpu", 4), 1, (2, 2), (2, 1)),
        (("FloatStorage", "0", "cpu", 4), -1, (2, 2), (2, 1)),
        (("FloatStorage", "0", "cpu", 4), 0, (2, 2), (3, 1)),
        (("FloatStorage", "0", "cpu", 4), 0, (1 << 40, 1 << 40), (0, 0)),
        (("FloatStorage", "0", "cpu", 4), 0, (-2, -2), (2, 1)),
        (("FloatStorage", "0", "cpu", 4), 0, (2, 2), (1,)),
        (("OrderedDict", "0", "cpu", 4), 0, (2, 2), (2, 1)),
    ],
)
def test_tensors_cannot_reach_outside_their_record(tmp_path, parts):
    path = tmp_path / "x.pth"
    pickled_into_archive(path, b"\x80\x02}X\x01\x00\x00\x00a" + forged(*GOOD)[2:-1] + b"s.")
    assert open_checkpoint(path).tensors["a"].float32().shape == (2, 2)
    pickled_into_archive(path, b"\x80\x02}X\x01\x00\x00\x00a" + forged(*parts)[2:-1] + b"s.")
    with pytest.raises(CheckpointError):
        open_checkpoint(path).tensors["a"].float32()


def test_a_pickle_cannot_change_what_it_made(tmp_path):
    """BUILD with a state sets attributes; on a tensor it must not."""
    path = tmp_path / "x.pth"
    state = b"}X\x05\x00\x00\x00shapeK\x05sb"
    pickled_into_archive(path, forged(*GOOD)[:-1] + state + b".")
    with pytest.raises(CheckpointError, match="must not be changed"):
        open_checkpoint(path)


def test_torchscript_programs_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, 2))
        archive.writestr("x/code/__torch__.py", "")
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_checkpoint(tmp_path / "x.pth")
