"""The API reference: a page for each public package, with all its public names."""

import ast
import functools
import importlib
import pathlib
import types

from website.places import ROOT

TOP = "keras_internimage"


@functools.cache
def public_names(package: str) -> tuple[str, ...]:
    """The names of a package's or module's `__all__`, or its functions and classes without one."""
    tree = ast.parse(_source(package).read_text("utf-8"))
    stated = _stated(tree)
    if stated is not None:
        return stated
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    return tuple(name for name in names if not name.startswith("_"))


@functools.cache
def packages() -> tuple[str, ...]:
    """Every package and module with a page: those with an `__all__`, and the public modules.

    A package whose names are all those of the package around it, such as models.detection, has
    none: its names stand there.
    """
    found = {
        name: names
        for path in (ROOT / TOP).rglob("*.py")
        if (name := _name(path)) and (names := _stated(ast.parse(path.read_text("utf-8"))))
    }
    # Modules that the top package names, such as preprocessing, need no `__all__`.
    top = _stated(ast.parse(_source("").read_text("utf-8"))) or ()
    public = [name for name in top if _source(name).is_file() and public_names(name)]
    nested = [n for n in found if set(found[n]) <= set(found.get(n.rpartition(".")[0], ()))]
    return tuple(sorted({*found, *public} - set(nested)))


def page_of(package: str) -> str:
    return f"api/{package.replace('.', '_')}.md"


def navigation():
    return [{TOP: "api/load.md"}, *({package: page_of(package)} for package in packages())]


def pages():
    made = {"api/load.md": _page(TOP, _of_top())}
    for package in packages():
        module = importlib.import_module(f"{TOP}.{package}")
        values = {name: getattr(module, name) for name in public_names(package)}
        names = [
            _place(package, name, value)
            for name, value in sorted(values.items())
            if not isinstance(value, types.ModuleType)
        ]
        made[page_of(package)] = _page(f"{TOP}.{package}", names)
    return made


def _of_top():
    """What the top package alone has."""
    loading = [f"{TOP}.loading.{name}" for name in public_names("loading") if name != "task_of"]
    return [*loading, f"{TOP}.ops.tracing.portable_ops"]


def _place(package, name, value):
    """Where a public name is documented: where it is defined, if a module is called the same."""
    folder = pathlib.Path(ROOT, TOP, *package.split("."))
    if (folder / f"{name}.py").is_file() or (folder / name).is_dir():
        return f"{value.__module__}.{name}"
    return f"{TOP}.{package}.{name}"


def _page(title, places):
    # On a narrow screen a long title is broken after a point.
    return "\n".join(
        [f"# {title.replace('.', '.<wbr>')}\n", *(f"::: {place}\n" for place in places)]
    )


def _source(package):
    """The file of a package or module, by its name below the top package."""
    path = pathlib.Path(ROOT, TOP, *package.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _name(path):
    """The other way round; empty for the top package."""
    parts = path.relative_to(ROOT / TOP).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _stated(tree):
    """The names of `__all__`, None without one."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return tuple(ast.literal_eval(node.value))
    return None
