"""What is to happen when an optional package is imported, sooner or later."""

import importlib.abc
import importlib.util
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
    """Finds one package as it would be found without it, and calls a function behind its import."""

    def __init__(self, name, function):
        self._name, self._function = name, function

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                self._function()

            spec.loader.exec_module = exec_module
        return spec
