"""The rename tables of all families of models, and which of them a file belongs to."""

from collections.abc import Iterable

from keras_internimage.checkpoints.names import cascade_mask_rcnn, classifier, mask_rcnn, upernet
from keras_internimage.checkpoints.names.table import RenameTable

TABLES = {
    "classifier": classifier.TABLE,
    "upernet": upernet.TABLE,
    "mask_rcnn": mask_rcnn.TABLE,
    "cascade_mask_rcnn": cascade_mask_rcnn.TABLE,
}


def of_official(names: Iterable[str]) -> str:
    """The family whose head official tensors of these names belong to; a backbone's classifier."""
    names = list(names)

    def head(family):
        """How many are in its head's modules, of detectors the same, and how many it knows."""
        found = list(filter(TABLES[family].is_head, names))
        return sum(map(TABLES[family].is_official, found)), len(found)

    return max(TABLES, key=head)


def of_layers(weights: Iterable[tuple[str, int]]) -> RenameTable:
    """The table that has most of the weights `(layer, index)` of a Keras file."""
    weights = list(weights)

    def known(table):
        return sum(table.weight_path(*weight) is not None for weight in weights)

    return max(TABLES.values(), key=known)
