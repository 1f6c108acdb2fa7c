"""Rename tables: Keras variables <-> tensors of the official checkpoints.

A table's rows give for every layer its official counterpart and its kind. The model's builder
hands the table down to the functions that read, check and assign weights.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from keras_internimage.checkpoints.names.layouts import Kind, Layout

# Counters of batch normalisation's updates: no part of the function.
BATCH_COUNTER = "num_batches_tracked"

# What fills a row's `{i}`, `{j}`, `{k}` and `{s}`, and for which models a row holds: from a
# model's arguments, by name, the values of the placeholders for each layer that it has.
Places = Callable[[Mapping], Iterable[dict]]


def once(config: Mapping) -> Iterable[dict]:
    """Places of a layer that a model has once."""
    return ({},)


def counted(count: int) -> Places:
    """Places of layers `{k}`, from 1, of which all models have the same number."""
    return lambda config: ({"k": k} for k in range(1, count + 1))


def stages(config: Mapping) -> Iterable[dict]:
    """One place for each stage `{i}`, from 1."""
    return ({"i": i} for i in range(1, len(config["depths"]) + 1))


def between_stages(config: Mapping) -> Iterable[dict]:
    """One place for each stage `{i}` but the last."""
    return ({"i": i} for i in range(1, len(config["depths"])))


def blocks(config: Mapping) -> Iterable[dict]:
    """One place for each block `{j}` of each stage `{i}`, both from 1."""
    for i, depth in enumerate(config["depths"], start=1):
        for j in range(1, depth + 1):
            yield {"i": i, "j": j}


def twice(places: Places) -> Places:
    """The places of two layers `{k}` for each of one."""
    return lambda config: ({**place, "k": k} for place in places(config) for k in (1, 2))


def where(condition: Callable[[Mapping], bool], places: Places) -> Places:
    """The same places, for the models whose arguments fulfil a condition alone."""
    return lambda config: places(config) if condition(config) else ()


@dataclasses.dataclass(frozen=True)
class Row:
    """Layers of one role, and what the official files call them.

    Attributes:
        layer: path of the Keras layer. `{i}`, `{j}` and `{k}` stand for numbers that count from
            1, `{s}` for letters.
        official: name of the official module; `{i-1}` and so on is the count from 0.
        kind: the layer's weights and their layouts.
        places: which of these layers a model has.
    """

    layer: str
    official: str
    kind: Kind
    places: Places = once


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a table says of one Keras variable.

    Attributes:
        path: the variable's path from the layer on, without a model's name before it.
        official: names of the official tensors it is made of.
        layout: how.
    """

    path: str
    official: tuple[str, ...]
    layout: Layout


@dataclasses.dataclass(frozen=True, eq=False)
class RenameTable:
    """The rename table of a family of models.

    Attributes:
        backbone: rows of stem and stages.
        head: rows of what follows them.
        classifiers: the layers of `head` whose width is the number of classes, the main one last.
        without_classifier: what to do with a file that lacks the classifier.
        optional: what official names of a part of the head begin with that a model may lack.
    """

    backbone: tuple[Row, ...]
    head: tuple[Row, ...]
    classifiers: tuple[str, ...]
    without_classifier: str
    optional: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.backbone + self.head

    def entry(self, path: str) -> Entry | None:
        """The table's entry for a Keras variable.

        Args:
            path: `variable.path`, with or without the model's name before it.

        Returns:
            An `Entry`, or None when the table does not have the variable.
        """
        layer, _, leaf = path.rpartition("/")
        found = self._layer(layer)
        if found is None:
            return None
        layer, module, kind = found
        return next((entry for entry in _entries(layer, module, kind, leaf)), None)

    def weight_path(self, layer: str, index: int) -> str | None:
        """Path of the weight that Keras stores as number `index` of a layer, or None.

        Args:
            layer: names of the layer and of those around it, joined by `/`.
            index: position among the layer's own weights.
        """
        found = self._layer(layer)
        if found is None or index >= len(found[2]):
            return None
        return f"{found[0]}/{found[2][index][0]}"

    def expand(self, config: Mapping, head: bool = True) -> Iterator[Entry]:
        """The entries of all variables of a model.

        Args:
            config: the model's arguments, by the names of `keras_internimage.InternImage`.
            head: whether the model has its head.
        """
        for row in self.rows if head else self.backbone:
            for place in row.places(config):
                layer, module = _fill(row.layer, place), _fill(row.official, place)
                yield from _entries(layer, module, row.kind)

    def to_official(self, path: str, array: np.ndarray) -> dict[str, np.ndarray]:
        """Split a Keras variable's value, or its gradient, into official tensors.

        Args:
            path: `variable.path`.
            array: NumPy array of the variable's shape.

        Returns:
            A dict of contiguous arrays by official name.

        Raises:
            ValueError: the table does not have the path.
        """
        found = self.known_entry(path)
        parts = found.layout.to_official(np.asarray(array))
        return {
            name: np.ascontiguousarray(part)
            for name, part in zip(found.official, parts, strict=True)
        }

    def to_keras(self, path: str, official: Mapping[str, np.ndarray]) -> np.ndarray:
        """Make a Keras variable's value of official tensors: the inverse of `to_official`.

        Args:
            path: `variable.path`.
            official: arrays by official name, more are ignored.

        Returns:
            A contiguous array in Keras' layout.

        Raises:
            ValueError: the table does not have the path.
            KeyError: a tensor is missing.
        """
        found = self.known_entry(path)
        parts = (official[name] for name in found.official)
        return np.ascontiguousarray(found.layout.to_keras(*parts))

    def is_head(self, official_name: str) -> bool:
        """Whether an official tensor belongs to the head rather than to the backbone."""
        return official_name.startswith(self._head_modules)

    def is_optional(self, official_name: str) -> bool:
        """Whether an official tensor belongs to a part of the head that a model may lack."""
        return official_name.startswith(self.optional)

    def is_official(self, name: str) -> bool:
        """Whether `name` is one of the names that the official models use."""
        return self._official_pattern.fullmatch(name) is not None

    @property
    def classifier_paths(self) -> tuple[str, ...]:
        """Paths of the classifiers' variables, the main one's bias last."""
        return tuple(f"{layer}/{leaf}" for layer in self.classifiers for leaf in ("kernel", "bias"))

    @property
    def classifier_names(self) -> tuple[str, ...]:
        """Official names of the classifiers' tensors, the main one's bias last."""
        return tuple(
            name for path in self.classifier_paths for name in self.known_entry(path).official
        )

    def known_entry(self, path: str) -> Entry:
        """The entry of a path that the table must have.

        Raises:
            ValueError: it has not.
        """
        found = self.entry(path)
        if found is None:
            raise ValueError(
                f"The path must be one of InternImage's weights. Received: path={path!r}"
            )
        return found

    @functools.cached_property
    def _layer(self):
        """Finds the layer that a layer's path ends in: (path, official module, kind) or None.

        The function is made once for a table, to remember what it found: a model's variables are
        looked up several times.
        """
        patterns = [(_layer_pattern(row.layer), row) for row in self.rows]

        @functools.lru_cache(maxsize=8192)
        def find(path):
            parts = path.split("/")
            for start in range(len(parts)):
                candidate = "/".join(parts[start:])
                for pattern, row in patterns:
                    match = pattern.fullmatch(candidate)
                    if match:
                        return candidate, _fill(row.official, match.groupdict()), row.kind
            return None

        return find

    @functools.cached_property
    def _head_modules(self):
        return tuple(sorted({row.official.partition(".")[0] + "." for row in self.head}))

    @functools.cached_property
    def _official_pattern(self):
        names = {
            _official_pattern(row.official + ending)
            for row in self.rows
            for _, endings, _ in row.kind
            for ending in endings.split("+")
        }
        return re.compile("|".join(sorted(names)))


def _entries(layer, module, kind, leaf=None):
    """Entries of a layer's weights, or of the one called `leaf`."""
    for name, endings, layout in kind:
        if leaf in (None, name):
            official = tuple(module + ending for ending in endings.split("+"))
            yield Entry(f"{layer}/{name}", official, layout)


def _layer_pattern(layer):
    layer = re.sub(r"\{([ijk])\}", r"(?P<\1>[0-9]+)", layer)
    return re.compile(layer.replace("{s}", "(?P<s>[qkv])"))


def _official_pattern(name):
    text = re.sub(r"\\\{[ijk](\\-1)?\\\}", "[0-9]+", re.escape(name))
    return text.replace(r"\{s\}", "[qkv]")


def _fill(text, values):
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", str(value))
        if str(value).isdigit():
            text = text.replace(f"{{{key}-1}}", str(int(value) - 1))
    return text
