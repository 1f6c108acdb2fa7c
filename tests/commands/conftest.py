import photographs
import pytest

from keras_internimage import report


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of two classes of images: pieces of two photographs."""
    return photographs.folder(tmp_path_factory.mktemp("photographs") / "data", images=20)


@pytest.fixture
def no_report(monkeypatch):
    """Trainings without their report, which takes longer than a tiny training."""
    monkeypatch.setattr(report, "write", lambda folder, results: folder / "report.html")
