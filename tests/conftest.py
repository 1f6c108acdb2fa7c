"""What every test shares: one thread per worker, quiet frameworks, and the ``any_backend`` rule.

The thread counts must be set before a framework is imported, hence at import of this file.
"""

import importlib.util
import os
import pathlib
import sys

import compilation_cache

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = str(max(1, (os.cpu_count() or 1) // WORKERS))

for variable in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "PJRT_NPROC",  # JAX's CPU client
):
    os.environ.setdefault(variable, THREADS)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
CACHE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ".pytest_cache")
# Below the user's cache, so that a clean clone finds what was built: `custom_ops.cache` keys it by
# the sources, the compiler and the framework's version.
USERS = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
os.environ.setdefault(
    "KERAS_INTERNIMAGE_CACHE", os.path.join(USERS, "keras_internimage", "tests", "kernels")
)
# Four fifths of the time of JAX's tests is compiling the same small programs again and again: that
# is done once for all clones, and without XLA's costly passes.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compilation_cache.prepare()
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Without an NVIDIA GPU Triton's kernels are interpreted, which is decided where they are imported.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault(
    "TRITON_CACHE_DIR", os.path.join(USERS, "keras_internimage", "tests", "triton")
)

import pytest  # noqa: E402

# A run over several backends names the one that runs the tests marked ``any_backend``.
ANY_BACKEND = "KERAS_INTERNIMAGE_TEST_ANY_BACKEND"


# What takes longest begins first: no worker is left with it when the others are through.
LONG = (
    "tests/scaling/",
    "::test_killed_and_resumed_is_as_if_uninterrupted",
    "::test_every_format_computes_what_the_model_does",
    "::test_full_size",
    "::test_across_backends",
    "tests/ecosystem/test_keras_hub.py",
)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONG))
    chosen = os.environ.get(ANY_BACKEND)
    if not chosen:
        return
    import keras

    if keras.config.backend() == chosen:
        return
    left_out = [item for item in items if item.get_closest_marker("any_backend")]
    items[:] = [item for item in items if not item.get_closest_marker("any_backend")]
    config.hook.pytest_deselected(items=left_out)


def pytest_report_header():
    """Says what is tested, and builds the kernels before the workers start."""
    import keras

    from keras_internimage.ops import dispatch

    implementation = next(name for name, _, runs, _ in dispatch.table() if runs)
    return (
        f"keras {keras.__version__}, backend {keras.config.backend()}, {THREADS} thread(s) each, "
        f"DCNv3: {implementation}"
    )


@pytest.fixture(autouse=True)
def _keras_state():
    """Seeds, the data type policy and the data format of one test do not reach the next."""
    import keras

    policy = keras.config.dtype_policy()
    data_format = keras.config.image_data_format()
    keras.utils.set_random_seed(1)
    yield
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(data_format)


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Loads an example as a module, whose main() then runs in a new folder."""
    monkeypatch.chdir(tmp_path)
    folder = pathlib.Path(__file__).resolve().parents[1] / "examples"

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
        module.main()

    load.run = run
    return load
