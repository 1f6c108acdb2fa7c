"""Public names of a package whose modules are imported when a name is first used (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Collection, Mapping


def of(
    package: str, module_of: Mapping[str, str], packages: Collection[str] = (), more: tuple = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        module_of: the module below the package, for each public name that it defines.
        packages: public names that are themselves modules below the package.
        more: names that `dir` shows besides.
    """

    def get(name: str) -> object:
        if name in packages:
            return importlib.import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted([*module_of, *packages, *more])

    return get, names
