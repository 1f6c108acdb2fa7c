"""What a user calls says which types it takes and gives."""

import importlib
import inspect
import pkgutil

import pytest

import keras_internimage

pytestmark = pytest.mark.any_backend


def public_modules():
    """The top package, and those below it that say by `__all__` what is public."""
    yield keras_internimage
    for found in pkgutil.walk_packages(keras_internimage.__path__, "keras_internimage."):
        names = found.name.split(".")
        if names[-1] == "__main__" or names[1] == "custom_ops":
            continue
        if found.ispkg or len(names) == 2:
            module = importlib.import_module(found.name)
            if hasattr(module, "__all__"):
                yield module


def functions():
    """Each public function once, by the module where it is written."""
    found = {}
    for module in public_modules():
        for name in module.__all__:
            value = inspect.unwrap(getattr(module, name))
            if inspect.isfunction(value):
                found[value.__module__, value.__qualname__] = value
    return found


def without_hint(function):
    """The parameters that have none, and "return"."""
    signature = inspect.signature(function)
    empty = inspect.Parameter.empty
    missing = [name for name, value in signature.parameters.items() if value.annotation is empty]
    return missing + ["return"] * (signature.return_annotation is inspect.Signature.empty)


def test_public_functions_have_hints():
    found = functions()
    assert len(found) > 20
    assert ("keras_internimage.ops.dcnv3", "dcnv3") in found
    missing = {
        f"{module}.{name}": without_hint(function) for (module, name), function in found.items()
    }
    assert not {name: names for name, names in missing.items() if names}


def test_a_missing_hint_is_seen():
    def half(a: int, b, *rest: str, **options):
        pass

    def whole(a: int, *, b: str = "") -> None:
        pass

    assert without_hint(half) == ["b", "options", "return"]
    assert without_hint(whole) == []
