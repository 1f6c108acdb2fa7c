"""Names and layouts of the official weights: one file of rows for each family of models.

`table` and `layouts` are what all tables are made of.
"""

from keras_internimage.checkpoints.names.layouts import Layout
from keras_internimage.checkpoints.names.table import BATCH_COUNTER, Entry, RenameTable, Row

__all__ = ["BATCH_COUNTER", "Entry", "Layout", "RenameTable", "Row"]
