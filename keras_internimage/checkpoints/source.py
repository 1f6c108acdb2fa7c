"""A file's tensors as a model's variables need them, and which a model may have no place for."""

import dataclasses
from collections.abc import Callable, Mapping

from keras_internimage.checkpoints.names import Layout, RenameTable
from keras_internimage.checkpoints.tensors import Tensor


@dataclasses.dataclass(frozen=True)
class Source:
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
    if any(map(optional(source), wanted)):
        return False
    return optional(source)(name)


def optional(source):
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
ALLOWED_UNEXPECTED: dict[str, Callable[[str, set, Source], bool]] = {
    "the model has no classification head": _head_of_the_file,
    "heads of a detection or segmentation model, outside its `backbone.`": _dense_task,
    "other layers around the backbone in a Keras file": _around_backbone,
    "the auxiliary head, which serves training alone": _auxiliary_head,
    # H's and G's files with 21841 classes are larger than their model by one matrix on the
    # classifier's 768 inputs, of a name that is documented nowhere.
    "a second classifier: a matrix on the classifier's inputs": _second_classifier,
}
