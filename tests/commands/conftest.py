import photographs
import pytest


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of two classes of images: pieces of two photographs."""
    return photographs.folder(tmp_path_factory.mktemp("photographs") / "data", images=20)
