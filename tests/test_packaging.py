"""What a wheel of a clean copy of the repository holds, and that it works when installed."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import keras_internimage
from keras_internimage.checkpoints import published

pytestmark = pytest.mark.any_backend

ROOT = pathlib.Path(__file__).resolve().parent.parent
INSTALLED = {
    "keras_internimage": ROOT / "keras_internimage",
    "keras_internimage/custom_ops": ROOT / "custom_ops",
    "keras_internimage/weights_convert": ROOT / "weights_convert",
}
HOOKS = ".pre-commit-config.yaml"
WORKFLOW = ".github/workflows/tests.yml"
# Sources of kinds that the package may come to hold, beside what it holds now.
NATIVE_SOURCES = (
    "custom_ops/probe.h",
    "custom_ops/core/probe.cu",
    "custom_ops/core/probe.cuh",
    "custom_ops/core/deeper/probe.inl",
    "custom_ops/jax/probe.cc",
    "custom_ops/torch/probe.cpp",
)


def run(*arguments, **options):
    result = subprocess.run(
        arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the tracked files alone, as a clean clone has them."""
    folder = tmp_path_factory.mktemp("packaging")
    copy = folder / "copy"
    try:
        tracked = run("git", "-C", str(ROOT), "ls-files", "-z").split("\0")
    except (AssertionError, FileNotFoundError):
        pytest.skip("the tests do not run from a git clone")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    for name in NATIVE_SOURCES:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("// probe\n")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--quiet", "--wheel-dir", str(folder), str(copy)),
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("installed")
    run(
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"),
        *("--target", str(target), str(wheel)),
    )
    return target


def test_nothing_but_the_package(wheel, names):
    version = keras_internimage.__version__
    assert wheel.name == f"keras_internimage-{version}-py3-none-any.whl"
    tops = {name.split("/")[0] for name in names}
    assert tops == {"keras_internimage", f"keras_internimage-{version}.dist-info"}
    assert not [name for name in names if "test" in name.lower()]


def test_every_module_is_there(names):
    """Also of a package that somebody added and forgot to list in setup.cfg."""
    for prefix, folder in INSTALLED.items():
        for path in folder.rglob("*.py"):
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            if _is_tracked(path):
                assert name in names


def _is_tracked(path):
    relative = str(path.relative_to(ROOT))
    return bool(run("git", "-C", str(ROOT), "ls-files", "--", relative))


def test_native_sources_are_there(names):
    for source in NATIVE_SOURCES:
        assert f"keras_internimage/{source}" in names
    for path in (ROOT / "custom_ops").rglob("*"):
        if path.suffix in {".h", ".cc", ".cpp", ".cu", ".cuh", ".inl"} and _is_tracked(path):
            assert f"keras_internimage/{path.relative_to(ROOT).as_posix()}" in names


def test_templates_are_there(names):
    templates = sorted((ROOT / "keras_internimage" / "report" / "templates").iterdir())
    assert {path.suffix for path in templates} == {".css", ".jinja"}
    for path in templates:
        assert f"keras_internimage/report/templates/{path.name}" in names


def test_hints_are_there(names):
    """Type checkers read the hints of a package that says it has them."""
    assert "keras_internimage/py.typed" in names


def test_metadata(wheel, names):
    (name,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(name).decode()
    for extra in ("tensorflow", "jax", "torch", "convert", "cv", "all", "dev"):
        assert f"Provides-Extra: {extra}\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    for minor in (11, 12, 13):
        assert f"Classifier: Programming Language :: Python :: 3.{minor}\n" in metadata
    assert "Project-URL: Reference, https://github.com/OpenGVLab/InternImage\n" in metadata
    assert "Apache-2.0" in metadata
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_console_script_and_modules_work_when_installed(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    script = installed / "bin" / "internimage-convert"
    by_script = run(sys.executable, str(script), "list", env=environment, cwd=tmp_path)
    by_module = run(
        *(sys.executable, "-m", "keras_internimage.weights_convert", "list"),
        env=environment,
        cwd=tmp_path,
    )
    assert all(entry.name in by_script for entry in published.PUBLISHED)
    assert by_script == by_module
    where = run(
        *(sys.executable, "-c"),
        "import keras_internimage.custom_ops as c, keras_internimage.weights_convert as w;"
        "print(c.__file__); print(w.__file__)",
        env=environment,
        cwd=tmp_path,
    )
    for line in where.splitlines():
        assert line.startswith(str(installed))


def test_requirements_lie_within_the_ranges():
    """The pinned versions are ones that the metadata allows."""
    from packaging.requirements import Requirement

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split()
    for key, value in config["options.extras_require"].items():
        if key not in ("all", "dev"):
            lines += [line for line in value.split() if not line.startswith("keras-internimage")]
    ranges = {r.name: r.specifier for r in map(Requirement, lines)}
    pinned = {}
    for path in (ROOT / "requirements").glob("*.txt"):
        for line in path.read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                requirement = Requirement(line)
                (version,) = requirement.specifier
                assert version.operator == "==", line
                assert pinned.setdefault(requirement.name, version.version) == version.version
    for name, specifier in ranges.items():
        assert pinned[name] in specifier, name


def test_the_table_of_extras():
    """docs/install.md has every extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    cells = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(config["options.extras_require"])


def test_the_kernels_need_the_pytorch_that_is_stated():
    """The metadata says beside the extra what the kernels' build asks for."""
    from keras_internimage.custom_ops import libraries

    version = ".".join(map(str, libraries._TORCH_ABI))
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    extra = next(i for i, line in enumerate(lines) if line.startswith("torch = torch>="))
    assert f"DCNv3's native kernels need PyTorch {version} or newer" in lines[extra - 2]


def test_citation():
    """The file for citing says what the README does, and the version that is here."""
    citation = (ROOT / "CITATION.cff").read_text()
    title = re.findall(r'^ *title: "(.*)"$', citation, re.M)
    family = re.findall(r"family-names: (\w+), given-names: (\w+)", citation)
    assert f"\nversion: {keras_internimage.__version__}\n" in citation
    paper, software = re.findall(r"^@\w+\{.*?^\}", (ROOT / "README.md").read_text(), re.M | re.S)

    def field(entry, name):
        text = re.search(rf"^  {name} *= \{{(.*?)\}},?$", entry, re.M | re.S)[1]
        return " ".join(text.replace("\\", "").split())

    assert title == [field(software, "title"), field(paper, "title")]
    assert " and ".join(map(", ".join, family)) == field(paper, "author")
    assert "start: {}\n  end: {}\n".format(*field(paper, "pages").split("--")) in citation
    assert f"  year: {field(paper, 'year')}\n" in citation
    assert f"  - name: {field(software, 'author').strip('{}')}\n" in citation


def test_hooks_and_workflows_are_those_of_make():
    """What runs before a commit is what `make lint` runs; the workflow runs what .ci/run does."""
    makefile, run_all = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    hooks = re.findall(r"^ *entry: \.venv/bin/(.*)$", (ROOT / HOOKS).read_text(), re.M)
    lint = re.findall(r"^\t@\$\(VENV\)/bin/((?:ruff|mypy).*)$", makefile, re.M)
    assert [hook.replace(" --force-exclude", "") for hook in hooks] == [
        line.removesuffix(" .") for line in lint
    ]
    workflow = (ROOT / WORKFLOW).read_text()
    assert re.findall(r"^ *- run: make (\w+)", workflow, re.M) == ["lint", "test"]
    assert re.findall(r"^make (\w+)$", run_all, re.M) == ["lint", "test"]
    backends = re.search(r"backend: \[(.*)\]", workflow)[1].split(", ")
    assert backends == re.search(r"^BACKENDS := (.*)$", makefile, re.M)[1].split()


def test_the_workflow_of_the_wheels_names_one_list_of_systems():
    text = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    built, used = text.split("\n  predict:\n")
    runners = re.findall(r"\{system: (\S+), runner: ([^,}]+)", built)
    assert runners == re.findall(r"\{system: (\S+), runner: ([^,}]+)", used) and len(runners) == 4
    (systems,) = re.findall(r"system: \[(.*)\]", used)
    assert systems.split(", ") == [system for system, _ in runners]
    for command in ("make wheels", "python wheels/build.py", "python wheels/check.py"):
        assert command in text
