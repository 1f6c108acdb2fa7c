"""Loading weights into a model: read, rename, transpose, check, assign.

Checked in both directions before anything is assigned: a weight of the model without a
tensor and a tensor without a weight are both errors, but for the unexpected tensors that a
named rule allows.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping

import keras
import numpy as np

from keras_internimage.checkpoints import download, infer, keras_files, published
from keras_internimage.checkpoints.errors import CheckpointError, MismatchError, listing
from keras_internimage.checkpoints.names import Layout, RenameTable, classifier
from keras_internimage.checkpoints.read import Checkpoint, open_checkpoint
from keras_internimage.checkpoints.tensors import Tensor, all_finite

# Loading shows a progress bar from this size on.
_LARGE = 1 << 30


@dataclasses.dataclass(frozen=True)
class Report:
    """What a load did.

    Attributes:
        source: the file the weights came from.
        assigned: number of variables set.
        newly_initialized: paths of the variables left as they were: the classifier, or none.
        allowed_unexpected: tensors of the file that the model has no place for, by the rule that
            allows it.
    """

    source: str
    assigned: int
    newly_initialized: tuple[str, ...]
    allowed_unexpected: dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class _Source:
    """A file, however it is packed: tensors by name, and how a variable is made of them."""

    path: str
    table: RenameTable
    tensors: Mapping[str, Tensor]
    needs: dict[str, tuple[str, ...]]  # variable path -> names of its tensors
    layouts: dict[str, Layout]  # by variable path; empty where stored as Keras has it
    classifier: tuple[str, ...]  # names of the classifiers' tensors, the main one's bias last
    stored_names: dict[str, str]

    @property
    def classes(self) -> int | None:
        """Number of classes of the file's classifier, None without one."""
        bias = self.tensors.get(self.classifier[-1])
        return bias.shape[0] if bias is not None and len(bias.shape) == 1 else None


def load_weights(
    model: keras.Model,
    weights: str | os.PathLike | None,
    *,
    table: RenameTable = classifier.TABLE,
    variant: str | None = None,
    container: str | None = None,
    progress: bool | None = None,
) -> Report | None:
    """Load weights into an InternImage.

    If the file has another number of classes than the model, everything but the last layer
    is loaded and one printed line says so. Nothing is assigned unless names and shapes fit.

    Args:
        model: an InternImage of this package, with or without its head.
        weights: None (nothing happens), `"imagenet"` or `"imagenet22k"` (the published file
            of `variant`), a published name, or a path: `.weights.h5`, `.keras`, an official
            `.pth` or `.safetensors`, the index of a sharded one, or a directory with one.
        table: the rename table of the model's family.
        variant: key of `VARIANTS`, for the two keywords.
        container: where in a `.pth` the weights are, such as `"model_ema"`.
        progress: whether to show a progress bar; None shows one for large files.

    Returns:
        A `Report`, or None for `weights=None`.

    Raises:
        MismatchError: names or shapes differ from the model's.
        CheckpointError: (a ValueError, as the former) the file cannot be read.
        DownloadError: the published file could not be had.
        ValueError: the keyword or name is not published for the variant.
    """
    if weights is None:
        return None
    row = _published_row(weights, variant)
    path = weights if row is None else download.fetch(row)
    return load_file(model, path, table, container=container, progress=progress)


def stored_classes(
    weights: str | os.PathLike, *, table: RenameTable = classifier.TABLE, variant: str | None = None
) -> int | None:
    """Number of classes that weights have, None without a classifier; reads no numbers.

    Args:
        weights, table, variant: as for `load_weights`; nothing is downloaded.

    Raises:
        CheckpointError: the file cannot be read.
        ValueError: the keyword or name is not published for the variant.
    """
    row = _published_row(weights, variant)
    if row is not None:
        return row.classes
    path = os.fspath(weights)
    if _is_keras_file(path):
        return _keras_source((), keras_files.read(path, table)).classes
    return _official_source((), open_checkpoint(path), table).classes


def _published_row(weights, variant):
    """The row of a keyword or a published name, None for a path."""
    if weights in published.IMAGENET_CLASSES or weights in published.SEGMENTATION_DATA:
        if variant is None:
            raise ValueError(
                "A model of no published size needs the name or path of its weights. "
                f"Received: weights={weights!r}, variant=None"
            )
        return published.for_variant(variant, weights)
    return published.find(weights) if weights in published.names() else None


def _is_keras_file(path):
    return path.endswith(keras_files.SUFFIXES) and os.path.isfile(path)


def load_file(
    model: keras.Model,
    path: str | os.PathLike,
    table: RenameTable,
    *,
    container: str | None = None,
    progress: bool | None = None,
) -> Report:
    """Load a weights file; arguments, returns and raises as `load_weights`."""
    path = os.fspath(path)
    if _is_keras_file(path):
        return load_keras(model, keras_files.read(path, table), progress=progress)
    return load_official(model, open_checkpoint(path, container), table, progress=progress)


def load_official(
    model: keras.Model,
    checkpoint: Checkpoint,
    table: RenameTable,
    *,
    progress: bool | None = None,
) -> Report:
    """Load an opened official checkpoint; see `load_weights`."""
    return _load(model, _official_source(model.weights, checkpoint, table), progress)


def load_keras(
    model: keras.Model, file: keras_files.KerasFile, *, progress: bool | None = None
) -> Report:
    """Load an opened Keras weights file; see `load_weights`."""
    return _load(model, _keras_source(model.weights, file), progress)


def _entries(variables, table):
    found = {variable.path: table.entry(variable.path) for variable in variables}
    return {path: entry for path, entry in found.items() if entry is not None}


def _official_source(variables, checkpoint, table):
    entries = _entries(variables, table)
    return _Source(
        checkpoint.path,
        table,
        checkpoint.tensors,
        {path: entry.official for path, entry in entries.items()},
        {path: entry.layout for path, entry in entries.items()},
        table.classifier_names,
        checkpoint.stored_names,
    )


def _keras_source(variables, file):
    others = {name: Tensor((), "float32", _no_numbers) for name in file.unknown}
    return _Source(
        file.path,
        file.table,
        {**file.tensors, **others},
        {path: (entry.path,) for path, entry in _entries(variables, file.table).items()},
        {},
        file.table.classifier_paths,
        {},
    )


def _no_numbers():
    raise CheckpointError("Weights of other layers must not be read.")


def _load(model, source, progress):
    variables = {variable.path: variable for variable in model.weights}
    foreign = [path for path in variables if path not in source.needs]
    if foreign:
        raise CheckpointError(
            "The model must be an InternImage of this package. "
            f"Received: model={model.name!r} with {listing(foreign)}"
        )
    new = _classifier_of_other_width(variables, source)
    needs = {path: used for path, used in source.needs.items() if path not in new}
    missing = [name for used in needs.values() for name in used if name not in source.tensors]
    wanted = {name for used in source.needs.values() for name in used}
    unused = [name for name in source.tensors if name not in wanted]
    allowed = {}
    for rule, holds in _ALLOWED_UNEXPECTED.items():
        found = tuple(name for name in unused if holds(name, wanted, source))
        if found:
            allowed[rule] = found
            unused = [name for name in unused if name not in found]
    shapes = _wrong_shapes(variables, needs, source)
    if missing or unused or shapes:
        message = _mismatch(model, source, missing, unused, shapes)
        raise MismatchError(message, missing, unused, shapes)
    _assign([variables[path] for path in needs], needs, source, progress)
    if new:
        print(
            f"{model.name}: the classifier is newly initialised with "
            f"{variables[new[-1]].shape[-1]} classes; {os.path.basename(source.path)} has "
            f"{source.classes} (classes={source.classes} keeps them)."
        )
    return Report(source.path, len(needs), tuple(new), allowed)


def _classifier_of_other_width(variables, source):
    """The paths of the model's classifier if the file's has another number of classes."""
    paths = [path for path, used in source.needs.items() if set(used) <= set(source.classifier)]
    if not paths or source.classes is None:
        return []
    same = all(variables[path].shape[-1] == source.classes for path in paths)
    return [] if same else paths


def _has_classifier(wanted, source):
    return any(name in wanted for name in source.classifier)


def _head_of_the_file(name, wanted, source):
    if _has_classifier(wanted, source):
        return False
    if source.layouts:
        return source.table.is_head(name)
    entry = source.table.entry(name)
    return entry is not None and any(source.table.is_head(official) for official in entry.official)


def _around_backbone(name, wanted, source):
    if _has_classifier(wanted, source):
        return False
    return not source.layouts and source.table.entry(name) is None


def _dense_task(name, wanted, source):
    if _has_classifier(wanted, source):
        return False
    stored = source.stored_names.get(name, "")
    dense = any("backbone." in stored_name for stored_name in source.stored_names.values())
    return dense and "backbone." not in stored


def _auxiliary_head(name, wanted, source):
    if any(map(_optional(source), wanted)):
        return False
    return _optional(source)(name)


def _optional(source):
    """Whether a name of the source belongs to the part of the head that a model may lack."""
    table = source.table
    if source.layouts:
        return table.is_optional

    def holds(path):
        entry = table.entry(path)
        return entry is not None and all(map(table.is_optional, entry.official))

    return holds


def _second_classifier(name, wanted, source):
    head = source.tensors.get(source.classifier[-2])
    if head is None or len(head.shape) != 2 or source.table.is_official(name) or not source.layouts:
        return False
    shape, features = source.tensors[name].shape, head.shape[-1]
    if len(shape) == 2:
        return features in shape
    matrix = source.tensors.get(f"{name.rpartition('.')[0]}.weight")
    return matrix is not None and matrix.shape == (*shape, features)


# Tensors of a file that a model may have no place for. Each rule takes the tensor's name, the
# names that the model wants, and the source.
_ALLOWED_UNEXPECTED: dict[str, Callable[[str, set, _Source], bool]] = {
    "the model has no classification head": _head_of_the_file,
    "heads of a detection or segmentation model, outside its `backbone.`": _dense_task,
    "other layers around the backbone in a Keras file": _around_backbone,
    "the auxiliary head, which serves training alone": _auxiliary_head,
    # H's and G's files with 21841 classes are larger than their model by one matrix on the
    # classifier's 768 inputs, of a name that is documented nowhere.
    "a second classifier: a matrix on the classifier's inputs": _second_classifier,
}


def _wrong_shapes(variables, needs, source):
    wrong = []
    for path, used in needs.items():
        if any(name not in source.tensors for name in used):
            continue
        shape = tuple(variables[path].shape)
        layout = source.layouts.get(path)
        expected = layout.official_shapes(shape) if layout else (shape,)
        for name, shape in zip(used, expected, strict=True):
            received = source.tensors[name].shape
            if received != shape:
                wrong.append(f"{name} {received} instead of {shape}")
    return wrong


def _mismatch(model, source, missing, unused, shapes):
    lines = [f"The weights must fit the model {model.name!r}. Received: path={source.path}"]
    if missing:
        lines.append(f"Missing in the file ({len(missing)}): {listing(missing)}")
    if unused:
        lines.append(f"Not used by the model ({len(unused)}): {listing(unused)}")
    if shapes:
        lines.append(f"Of another shape ({len(shapes)}): {listing(shapes)}")
    if any(name.endswith(("gamma1", "gamma2")) for name in unused):
        lines.append("The file has layer scales: build the model with layer_scale=1.0.")
    if any(name.endswith(("gamma1", "gamma2")) for name in missing):
        lines.append("The file has no layer scales: build the model with layer_scale=None.")
    lines += _about_heads(source, missing)
    if source.layouts:
        try:
            guess = infer.infer_config({n: t.shape for n, t in source.tensors.items()})
        except CheckpointError as error:
            lines.append(str(error))
        else:
            lines.append(f"By its shapes the file holds {infer.describe(guess)}.")
    return "\n".join(lines)


def _about_heads(source, missing):
    """Lines about a head, or a part of it, that the file lacks as a whole."""
    if set(source.classifier[-2:]) <= set(missing):
        return [f"The file has no classifier: {source.table.without_classifier}."]
    if any(map(_optional(source), missing)):
        return ["The file has no auxiliary head: build the model with auxiliary=False."]
    return []


def _assign(variables, needs, source, progress):
    sizes = [sum(source.tensors[name].nbytes for name in needs[v.path]) for v in variables]
    bar = None
    if progress or (progress is None and sum(sizes) >= _LARGE):
        bar = keras.utils.Progbar(sum(sizes) >> 20, unit_name="MiB")
    bad, done = [], 0
    for variable, size in zip(variables, sizes, strict=True):
        value = _value(variable, needs[variable.path], source, bad)
        # After a first bad tensor the rest is only looked at, to name them all.
        if not bad:
            variable.assign(value)
        value = None  # freed before the next one is read
        done += size
        if bar is not None:
            bar.update(done >> 20, finalize=False)
    if bar is not None:
        bar.update(done >> 20, finalize=True)
    if bad:
        raise CheckpointError(
            "All weights must be finite numbers of the model's type. "
            f"Received: {listing(bad)}, path={source.path}"
        )


def _value(variable, used, source, bad):
    """A variable's value read from the file; names of tensors it cannot hold go to `bad`."""
    parts = [source.tensors[name].float32() for name in used]
    for name, part in zip(used, parts, strict=True):
        if not all_finite(part):
            bad.append(f"{name} is not finite")
        elif not _fits_dtype(variable, part):
            bad.append(f"{name} does not fit in {variable.dtype}")
    layout = source.layouts.get(variable.path)
    return np.ascontiguousarray(layout.to_keras(*parts) if layout else parts[0])


def _fits_dtype(variable, part):
    if keras.backend.standardize_dtype(variable.dtype) != "float16" or not part.size:
        return True
    limit = float(np.finfo(np.float16).max)
    return -limit <= part.min() and part.max() <= limit
