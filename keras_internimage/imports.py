"""What is to happen when an optional package is imported, sooner or later."""

import importlib.abc
import sys
from collections.abc import Callable


def when_imported(name: str, function: Callable[[], object]) -> None:
    """Calls `function` once the package `name` has been imported: now, if it is there already."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        function()
    else:
        sys.meta_path.insert(0, _Finder(name, function))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one package as it would be found without it, and calls a function behind its import.

    Who only asks whether the package is there (`importlib.util.find_spec`) changes nothing.
    """

    def __init__(self, name, function):
        self._name, self._function = name, function

    def find_spec(self, name, path=None, target=None):
        finders = list(sys.meta_path)
        if name != self._name or self not in finders:
            return None
        for finder in finders[finders.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._imported)
                return spec
        return None

    def _imported(self):
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self._function()


class _Loader(importlib.abc.Loader):
    """Gives way to the loader that was found, and calls a function behind its work."""

    def __init__(self, loader, function):
        self._loader, self._function = loader, function

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._function()
