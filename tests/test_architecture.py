"""Which package may import which: the lower ones never know of the higher ones.

All imports count, those inside functions and those for type checkers too: a late import hides a
circle, it does not undo it.
"""

import ast
import pathlib

import pytest

pytestmark = pytest.mark.any_backend

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOP = "keras_internimage"
# Two of the packages lie beside the others.
FOLDERS = {
    TOP: ROOT / TOP,
    f"{TOP}.custom_ops": ROOT / "custom_ops",
    f"{TOP}.weights_convert": ROOT / "weights_convert",
}
# The lowest first. Those of one line may import each other, but never in a circle.
RANKS = (
    ("variants", "files", "backends", "progress", "command_line", "imports", "lazy_names"),
    ("custom_ops",),
    ("ops",),
    ("layers",),
    ("checkpoints",),
    ("models",),
    ("data", "preprocessing", "training", "distribution"),
    ("report", "visualize", "exports"),
    ("predictor", "finished", "segmenter", "detector", "loading"),
    ("commands", "weights_convert"),
    ("__init__", "__main__"),
)
# A number that every part may print. It is read from the top package as a user reads it.
ANYWHERE = {f"{TOP}.__version__"}


def modules(folders):
    """The dotted name of each module below the folders, and its path."""
    found = {}
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            names = path.relative_to(folder).with_suffix("").parts
            if names[-1] == "__init__":
                names = names[:-1]
            found[".".join([package, *names])] = path
    return found


def part(name):
    """The package directly below the top one, or the module there, that a dotted name is in."""
    names = name.split(".")
    return names[1] if len(names) > 1 else "__init__"


def imported(tree, name, is_package, known):
    """Yields the module, and the line, of each import of this project in a module's code."""
    here = name if is_package else name.rpartition(".")[0]

    def absolute(module, level):
        if not level:
            return module
        base = here.split(".")
        return ".".join([*base[: len(base) - level + 1], *([module] if module else [])])

    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node.module, node.level)
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                # What is no module is something that the package itself has.
                targets.append(whole if whole in known or whole in ANYWHERE else module)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            called = getattr(function, "attr", None) or getattr(function, "id", None)
            text = node.args[0]
            if called in ("import_module", "__import__") and isinstance(text, ast.Constant):
                level = len(text.value) - len(text.value.lstrip("."))
                targets = [absolute(text.value[level:], level)]
        for target in targets:
            if target not in ANYWHERE and (target == TOP or target.startswith(f"{TOP}.")):
                yield target, node.lineno


def arrows(folders):
    """Pairs of parts, the importing one first, and where the imports are."""
    found = {}
    paths = modules(folders)
    known = {*paths, *(name.rpartition(".")[0] for name in paths)}
    for name, path in paths.items():
        importing = part(name)
        tree = ast.parse(path.read_text("utf-8"), str(path))
        for target, line in imported(tree, name, path.stem == "__init__", known):
            if part(target) != importing:
                where = f"{path}:{line} imports {target}"
                found.setdefault((importing, part(target)), []).append(where)
    return found


def upward(found):
    """What must not be imported from where it is, as lines to read."""
    rank = {name: number for number, names in enumerate(RANKS) for name in names}
    lines = []
    for (importing, target), places in sorted(found.items()):
        for name in (importing, target):
            if name not in rank:
                lines.append(f"{name} must have its place in RANKS: {places[0]}")
        if rank.get(target, 0) > rank.get(importing, len(RANKS)):
            lines += [f"{importing} must not know of {target}: {place}" for place in places]
    return lines


def circle(found):
    """Parts that import each other in a circle, the first of them once more at the end; or []."""
    following = {}
    for importing, target in sorted(found):
        following.setdefault(importing, []).append(target)
    done = set()

    def walk(name, way):
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for target in following.get(name, ()):
            met = walk(target, [*way, name])
            if met:
                return met
        done.add(name)
        return []

    for name in following:
        met = walk(name, [])
        if met:
            return met
    return []


@pytest.fixture(scope="module")
def project():
    return arrows(FOLDERS)


def test_every_part_has_its_place():
    rank = [name for names in RANKS for name in names]
    assert len(rank) == len(set(rank))
    parts = {part(name) for name in modules(FOLDERS)}
    assert {"ops", "layers", "checkpoints", "models", "commands", "custom_ops"} <= parts
    assert parts <= set(rank)


def test_no_import_points_upward(project):
    assert len(project) > 20  # it has read them
    assert ("layers", "ops") in project and ("ops", "custom_ops") in project
    lines = upward(project)
    assert not lines, "\n" + "\n".join(lines)


def test_no_circle_between_packages(project):
    met = circle(project)
    places = [f"{a} -> {b}: {project[a, b][0]}" for a, b in zip(met, met[1:], strict=False)]
    assert not met, "\n" + "\n".join(places)


def tree(folder, **files):
    """Modules of a made-up package; the keys have __ for a dot."""
    for name, text in {"": "", **files}.items():
        names = [TOP, *filter(None, name.split("__"))]
        path = folder.joinpath(*names[:-1], f"{names[-1]}.py") if len(names) > 1 else None
        path = path or folder / TOP / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {TOP: folder / TOP}


@pytest.mark.parametrize(
    "statement",
    [
        f"import {TOP}.models",
        f"import numpy, {TOP}.models.network as n",
        f"from {TOP} import models",
        f"from {TOP}.models import InternImage",
        "from .. import models",
        "from ..models.network import build",
        "from importlib import import_module as i; import importlib\n"
        f"    importlib.import_module('{TOP}.models')",
        "import importlib; importlib.import_module('..models', __package__)",
        f"from typing import TYPE_CHECKING\n    if TYPE_CHECKING:\n        import {TOP}.models",
    ],
)
def test_an_arrow_upward_inside_a_function_is_seen(tmp_path, statement):
    folders = tree(
        tmp_path,
        layers__blocks=f"import keras\n\n\ndef late():\n    {statement}\n",
        models__network=f"from {TOP}.layers import blocks",
        models____init__="",
        layers____init__="",
    )
    (line,) = upward(arrows(folders))
    assert line.startswith("layers must not know of models: ")
    assert "blocks.py:" in line
    assert set(circle(arrows(folders))) == {"layers", "models"}


def test_what_the_top_package_exports_is_above_all(tmp_path):
    folders = tree(
        tmp_path,
        report__write=f"import {TOP}",
        commands__train=f"def f():\n    from {TOP} import InternImageT, __version__",
        data__loader=f"from {TOP} import __version__",
    )
    assert [line.split(": ")[0] for line in upward(arrows(folders))] == [
        "commands must not know of __init__",
        "report must not know of __init__",
    ]


def test_a_circle_of_one_rank_is_seen(tmp_path):
    folders = tree(
        tmp_path,
        data__loader=f"from {TOP} import preprocessing",
        preprocessing=f"def f():\n    from {TOP} import training",
        training__recipes=f"from {TOP}.data.loader import ImageFiles",
        report__page=f"from {TOP}.training import recipes",
    )
    found = arrows(folders)
    assert not upward(found)
    met = circle(found)
    assert met[0] == met[-1] and set(met) == {"data", "preprocessing", "training"}


def test_downward_and_within_is_allowed(tmp_path):
    folders = tree(
        tmp_path,
        variants="import math",
        ops__dcnv3="from . import geometry\nfrom ..variants import stack",
        ops__geometry="import dataclasses",
        ops__native__jax="from .. import geometry",
        models__network=f"import {TOP}.ops.dcnv3, keras_internimage_other",
    )
    found = arrows(folders)
    assert set(found) == {("ops", "variants"), ("models", "ops")}
    assert not upward(found) and not circle(found)


def test_a_new_package_needs_a_place(tmp_path):
    found = arrows(tree(tmp_path, novelty__x=f"from {TOP} import ops", ops="import keras"))
    (line,) = upward(found)
    assert line.startswith("novelty must have its place in RANKS: ")
