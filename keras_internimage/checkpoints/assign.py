"""Loading weights into a model: read, rename, transpose, check, assign.

Checked in both directions before anything is assigned: a weight of the model without a
tensor and a tensor without a weight are both errors, but for the unexpected tensors that a
named rule allows.
"""

import dataclasses
import os

import keras
import numpy as np

from keras_internimage.checkpoints import download, infer, keras_files, published
from keras_internimage.checkpoints.errors import CheckpointError, MismatchError, listing
from keras_internimage.checkpoints.names import RenameTable, classifier
from keras_internimage.checkpoints.read import CONTAINERS, Checkpoint, open_checkpoint
from keras_internimage.checkpoints.source import ALLOWED_UNEXPECTED, Source, optional
from keras_internimage.checkpoints.tensors import Tensor, all_finite

# Loading shows a progress bar from this size on.
_LARGE = 1 << 30


@dataclasses.dataclass(frozen=True)
class Report:
    """What a load did.

    Attributes:
        source: the file the weights came from.
        assigned: number of variables set.
        newly_initialized: paths of the variables left as they were: the classifier, the layer
            scales, or none.
        allowed_unexpected: tensors of the file that the model has no place for, by the rule that
            allows it.
    """

    source: str
    assigned: int
    newly_initialized: tuple[str, ...]
    allowed_unexpected: dict[str, tuple[str, ...]]


def load_weights(
    model: keras.Model,
    weights: str | os.PathLike | None,
    *,
    table: RenameTable = classifier.TABLE,
    variant: str | None = None,
    container: str | None = None,
    containers: tuple[str, ...] = CONTAINERS,
    progress: bool | None = None,
    keep_layer_scale: bool = False,
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
        containers: where they are looked for without `container`, in this order.
        progress: whether to show a progress bar; None shows one for large files.
        keep_layer_scale: whether the layer scales may keep their initial value if the file has
            none at all, as InternImage-T's of classification for the backbone of dense tasks. A
            printed line says so.

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
    return load_file(
        model,
        path,
        table,
        container=container,
        containers=containers,
        progress=progress,
        keep_layer_scale=keep_layer_scale,
    )


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
    if published.keyword_task(weights) is not None:
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
    containers: tuple[str, ...] = CONTAINERS,
    progress: bool | None = None,
    keep_layer_scale: bool = False,
) -> Report:
    """Load a weights file; arguments, returns and raises as `load_weights`."""
    path = os.fspath(path)
    if _is_keras_file(path):
        source = _keras_source(model.weights, keras_files.read(path, table))
    else:
        checkpoint = open_checkpoint(path, container, containers)
        source = _official_source(model.weights, checkpoint, table)
    return _load(model, source, progress, keep_layer_scale)


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
    return Source(
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
    return Source(
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


def _load(model, source, progress, keep_layer_scale=False):
    variables = {variable.path: variable for variable in model.weights}
    foreign = [path for path in variables if path not in source.needs]
    if foreign:
        raise CheckpointError(
            "The model must be an InternImage of this package. "
            f"Received: model={model.name!r} with {listing(foreign)}"
        )
    new = _classifier_of_other_width(variables, source)
    scales = _absent_scales(source) if keep_layer_scale else []
    needs = {path: used for path, used in source.needs.items() if path not in (*new, *scales)}
    missing = [name for used in needs.values() for name in used if name not in source.tensors]
    wanted = {name for used in source.needs.values() for name in used}
    unused = [name for name in source.tensors if name not in wanted]
    allowed = {}
    for rule, holds in ALLOWED_UNEXPECTED.items():
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
    if scales:
        print(
            f"{model.name}: the layer scales keep their initial value; "
            f"{os.path.basename(source.path)} has none."
        )
    return Report(source.path, len(needs), (*new, *scales), allowed)


def _absent_scales(source):
    """The paths of the model's layer scales if the file has none of them."""
    scales = [path for path in source.needs if path.endswith(("gamma1", "gamma2"))]
    stored = any(name in source.tensors for path in scales for name in source.needs[path])
    return [] if stored else scales


def _classifier_of_other_width(variables, source):
    """The paths of the model's classifier if the file's has another number of classes."""
    paths = [path for path, used in source.needs.items() if set(used) <= set(source.classifier)]
    if not paths or source.classes is None:
        return []
    return [] if variables[paths[-1]].shape[-1] == source.classes else paths


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
    if any(map(optional(source), missing)):
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
