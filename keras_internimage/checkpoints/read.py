"""Opening checkpoints of the official models, whatever they are packed in."""

import dataclasses
import json
import os

from keras_internimage.checkpoints import safetensors_files, torch_files
from keras_internimage.checkpoints.errors import CheckpointError, listing
from keras_internimage.checkpoints.names import BATCH_COUNTER
from keras_internimage.checkpoints.tensors import Tensor

# Where trainers put a model's weights, in the order in which they are looked for; an
# exponential average is taken only when asked for by name.
CONTAINERS = ("model", "module", "state_dict")
AVERAGE = "model_ema"
# What the official backbones of FlashInternImage for dense tasks start from.
_CONTAINERS_OF_DENSE_FLASH = ("state_dict", AVERAGE, "model", "module")
BARE = "bare"

# What wrappers put before the official names, taken away as often as it occurs.
_PREFIXES = ("module.", "backbone.", "model.", "student.")
# What begins the names of a teacher's weights, and of the copies of MMDetection's weight average,
# which after each epoch are the weights that were averaged: the average itself has the plain names.
_OTHER_WEIGHTS = ("teacher", "ema_")
# Counters of averaging, in the containers of averages.
_COUNTERS = ("n_averaged", "num_updates")
# The hub's Python classes call the layer scale so, because their framework renames "gamma".
_RENAMED = ((".layer_scale1", ".gamma1"), (".layer_scale2", ".gamma2"))

# What the hub's repositories call a file of weights, and the index of one in several parts.
WHOLE_FILE, PARTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Files a directory is searched for, best first.
_IN_DIRECTORY = (
    PARTS_INDEX,
    WHOLE_FILE,
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def of_backbone(core_op: str) -> tuple[str, ...]:
    """The containers in which weights of a dense model's backbone are looked for, in this order.

    Args:
        core_op: the backbone's operator, "DCNv3" or "DCNv4".
    """
    return _CONTAINERS_OF_DENSE_FLASH if core_op == "DCNv4" else CONTAINERS


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors of a checkpoint by official name, still in their file.

    Attributes:
        path: what was opened.
        files: the files that hold the numbers.
        format: `"pytorch"`, `"pytorch (legacy)"` or `"safetensors"`.
        container: the container the weights were found in, `"bare"` for none.
        containers: all containers with tensors in the file.
        tensors: `Tensor`s by official name, prefixes taken away.
        stored_names: name in the file by official name.
        dropped: names left out by rule: a teacher's weights, a weight average's copies, counters
            of batch normalisation and of averaging.
    """

    path: str
    files: tuple[str, ...]
    format: str
    container: str
    containers: tuple[str, ...]
    tensors: dict[str, Tensor]
    stored_names: dict[str, str]
    dropped: tuple[str, ...]

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of stored values by type, most first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.size
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def open_checkpoint(
    path: str | os.PathLike,
    container: str | None = None,
    containers: tuple[str, ...] = CONTAINERS,
) -> Checkpoint:
    """Open a checkpoint of the official models without reading its numbers.

    Args:
        path: a `.pth`, `.pt`, `.bin` or `.safetensors` file, the `.index.json` of one in
            several parts, or a directory that holds such files.
        container: the container to take the weights from, such as `"model_ema"`. None takes
            the first of `containers`, or the top level.
        containers: names of containers, in the order in which they are looked for.

    Returns:
        A `Checkpoint`.

    Raises:
        CheckpointError: there is nothing to read, it is damaged, or it could run code.
    """
    path = os.path.abspath(os.fspath(path))
    if not os.path.exists(path):
        raise CheckpointError(
            f"The weights file must exist; there is no such file. Received: path={path}"
        )
    source = _in_directory(path) if os.path.isdir(path) else path
    if source.endswith(".index.json"):
        kind, content, files = _read_parts(source)
    else:
        kind, content = _read_file(source)
        files = (source,)
    found = _containers(content)
    chosen = _choose(found, container, containers, path)
    tensors, stored_names, dropped = _rename(found[chosen], path)
    return Checkpoint(path, files, kind, chosen, tuple(found), tensors, stored_names, dropped)


def _read_file(path):
    size = os.path.getsize(path)
    if not size:
        raise CheckpointError(f"The weights file must not be empty. Received: path={path}")
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"PK\x03\x04"):
        return "pytorch", torch_files.read_zip(path)
    if start.startswith(torch_files.LEGACY_MAGIC):
        return "pytorch (legacy)", torch_files.read_legacy(path)
    if safetensors_files.looks_like(path):
        return "safetensors", safetensors_files.read(path)
    if start.startswith(b"\x80"):
        raise torch_files.refusal(path, "whatever a bare pickle likes")
    if start.startswith(b"version https://git-lfs"):
        what = "a pointer to a large file; fetch the file itself (git lfs pull)"
    elif start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        what = "a web page; download the file itself"
    else:
        what = "something else, or damaged from the start"
    raise CheckpointError(
        f"The file must be a PyTorch or safetensors checkpoint; it is {what}. Received: path={path}"
    )


def _in_directory(path):
    inside = sorted(os.listdir(path))
    for name in _IN_DIRECTORY:
        if name in inside:
            return os.path.join(path, name)
    candidates = [name for name in inside if name.endswith(_SUFFIXES)]
    if len(candidates) == 1:
        return os.path.join(path, candidates[0])
    raise CheckpointError(
        f"A directory must hold one checkpoint ({', '.join(_IN_DIRECTORY)}, or a single file "
        f"ending in {', '.join(_SUFFIXES)}). Received: path={path} with "
        f"{listing(inside) or 'nothing in it'}"
    )


def parts_of(index: str) -> list[str]:
    """Names of the files that an index says hold the tensors, all of them beside it.

    Raises:
        CheckpointError: it is no index.
    """
    return sorted(set(_read_index(index).values()))


def _read_index(index):
    """Dict of tensor to file."""
    try:
        with open(index, encoding="utf-8") as file:
            parts = json.load(file)["weight_map"]
        shards = sorted(set(parts.values()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The index must be JSON with a `weight_map`. Received: path={index}"
        ) from error
    # A part lies beside its index: no path of the file's choosing is opened.
    if not shards or any(os.path.basename(str(part)) != part for part in shards):
        raise CheckpointError(
            f"The index must name files beside it. Received: {listing(shards)}, path={index}"
        )
    return parts


def _read_parts(index):
    parts = _read_index(index)
    shards, folder = sorted(set(parts.values())), os.path.dirname(index)
    missing = [part for part in shards if not os.path.isfile(os.path.join(folder, part))]
    if missing:
        raise CheckpointError(
            f"All parts of the checkpoint must be there; missing: {listing(missing)}. "
            f"Received: path={index}"
        )
    files = tuple(os.path.join(folder, part) for part in shards)
    content, kinds = {}, set()
    for part, file in zip(shards, files, strict=True):
        kind, tensors = _read_file(file)
        kinds.add(kind)
        expected = {name for name, where in parts.items() if where == part}
        if not isinstance(tensors, dict) or not expected <= tensors.keys():
            lacking = expected - (tensors.keys() if isinstance(tensors, dict) else set())
            raise CheckpointError(
                f"{part} must hold what the index says; missing: {listing(sorted(lacking))}. "
                f"Received: path={index}"
            )
        content.update({name: tensors[name] for name in expected})
    return "/".join(sorted(kinds)), {name: content[name] for name in parts}, files


def _tensors(content):
    if not isinstance(content, dict):
        return {}
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _containers(content):
    found = {}
    if isinstance(content, dict):
        for name, value in content.items():
            if isinstance(name, str) and _tensors(value):
                found[name] = _tensors(value)
    if _tensors(content):
        found[BARE] = _tensors(content)
    return found


def _choose(containers, wanted, order, path):
    for name in (wanted,) if wanted else (*order, BARE):
        if name in containers:
            return name
    raise CheckpointError(
        f"The file must hold tensors under {wanted or ', '.join(order)}"
        f"{'' if wanted else ' or at its top level'}; "
        f"it holds some under: {listing(containers) or 'nothing'}. Received: path={path}"
    )


def _rename(tensors, path):
    renamed, stored_names, dropped = {}, {}, []
    for stored, tensor in tensors.items():
        name = official_name(stored)
        if name is None or name.endswith((BATCH_COUNTER, *_COUNTERS)):
            dropped.append(stored)
        elif name in renamed:
            raise CheckpointError(
                "A checkpoint must hold each tensor once. "
                f"Received: {stored_names[name]} and {stored}, path={path}"
            )
        else:
            renamed[name], stored_names[name] = tensor, stored
    return renamed, stored_names, tuple(dropped)


def official_name(stored: str) -> str | None:
    """The official name of a tensor stored as `stored`, None for what is left out by its name."""
    name = stored
    while True:
        if name.startswith(_OTHER_WEIGHTS):
            return None
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            break
        name = name.removeprefix(prefix)
    for theirs, official in _RENAMED:
        if name.endswith(theirs):
            name = name.removesuffix(theirs) + official
    return name
