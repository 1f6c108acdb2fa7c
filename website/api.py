"""The API reference: a page for each public package, with all its public names."""

import ast
import functools
import importlib
import types

from website.places import ROOT

# The top package's own names are those of these packages.
PACKAGES = ("models", "layers", "ops", "training", "data", "preprocessing", "exports")
PACKAGES += ("segmenter", "detector", "checkpoints", "visualize", "report", "distribution")
TOP = "keras_internimage"


@functools.cache
def public_names(package: str) -> tuple[str, ...]:
    """The names of a package's or module's `__all__`, or its functions and classes without one."""
    path = ROOT / TOP / package / "__init__.py"
    path = path if path.is_file() else ROOT / TOP / f"{package}.py"
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return tuple(ast.literal_eval(node.value))
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    return tuple(name for name in names if not name.startswith("_"))


def navigation():
    return [{TOP: "api/load.md"}, *({package: f"api/{package}.md"} for package in PACKAGES)]


def pages():
    made = {"api/load.md": _page(TOP, _of_top())}
    for package in PACKAGES:
        module = importlib.import_module(f"{TOP}.{package}")
        values = {name: getattr(module, name) for name in public_names(package)}
        names = [
            _place(package, name, value)
            for name, value in sorted(values.items())
            if not isinstance(value, types.ModuleType)
        ]
        made[f"api/{package}.md"] = _page(f"{TOP}.{package}", names)
    return made


def _of_top():
    """What the top package alone has."""
    loading = [f"{TOP}.loading.{name}" for name in public_names("loading") if name != "task_of"]
    return [*loading, f"{TOP}.ops.tracing.portable_ops"]


def _place(package, name, value):
    """Where a public name is documented: where it is defined, if a module is called the same."""
    folder = ROOT / TOP / package
    if (folder / f"{name}.py").is_file() or (folder / name).is_dir():
        return f"{value.__module__}.{name}"
    return f"{TOP}.{package}.{name}"


def _page(title, places):
    return "\n".join([f"# {title}\n", *(f"::: {place}\n" for place in places)])
