"""The emulated CUDA kernels, built once for all test files."""

import pytest
from emulated_cuda import build


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="session")
def small_grids(tmp_path_factory):
    """What large batches and images need, and what only newer GPUs have."""
    constants = {"kMaxGridX": "2", "kMaxGridY": "3", "kManyTiles": "1", "kMaxCoordinate": "3"}
    return build(tmp_path_factory.mktemp("cuda"), architecture=900, **constants)
