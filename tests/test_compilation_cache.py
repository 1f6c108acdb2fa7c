"""The folder of what JAX compiled for the tests."""

import os
import pathlib
import time

import compilation_cache
import pytest

pytestmark = pytest.mark.any_backend


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "keras_internimage" / "tests"


def test_other_versions_and_processors_have_their_own(cache, monkeypatch):
    first = compilation_cache.folder()
    assert first.parent == cache and first == compilation_cache.folder()
    monkeypatch.setattr(compilation_cache, "processor", lambda: ["another", "flags : avx512f"])
    second = compilation_cache.folder()
    monkeypatch.setattr(compilation_cache, "version", lambda package: "0.0")
    assert len({first, second, compilation_cache.folder()}) == 3


def test_the_processor_says_what_it_can():
    found = compilation_cache.processor()
    if os.path.exists("/proc/cpuinfo"):
        assert len(found) > 1 and len(found) < 4


def test_only_its_own_unused_folders_are_removed(cache):
    old, young, other = (cache / name for name in ("jax-" + "0" * 16, "jax-" + "1" * 16, "jax-x"))
    month = time.time() - 31 * 24 * 3600
    for path, age in ((old, month), (young, time.time()), (other, month)):
        (path / "entry").mkdir(parents=True)
        os.utime(path, (age, age))
    made = pathlib.Path(compilation_cache.prepare())
    assert sorted(cache.iterdir()) == sorted([made, young, other])
    os.utime(made, (month, month))
    assert compilation_cache.prepare() == str(made)  # used again: not removed
    assert made.is_dir()
