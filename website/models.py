"""The table of the models: every variant, and every published checkpoint."""

from keras_internimage.checkpoints.published import PUBLISHED
from keras_internimage.variants import VARIANTS, function_name, title

HEADS = {
    "classification": ("checkpoint", "model", "classes", "pixels", "top-1 %"),
    "segmentation": ("checkpoint", "model", "trained on", "shorter side", "mIoU %", "six scales %"),
    "detection": ("checkpoint", "model", "trained on", "shorter side", "box AP", "mask AP"),
}


def page() -> str:
    parts = [
        "# Models\n",
        "The numbers of accuracy are the published ones; [evaluation](evaluation.md) says how they "
        "are measured, and with which command. [Speed](speed.md) has the measured times.\n",
        "## Architectures\n",
        _table(
            ("model", "function", "operator", "channels", "depths", "groups"),
            [_variant(key) for key in VARIANTS],
        ),
    ]
    for task, heads in HEADS.items():
        rows = [_row(row) for row in PUBLISHED if row.task == task]
        parts += [f"## {task.capitalize()}\n", _table(heads, rows)]
    return "\n".join(parts)


def _variant(key):
    config = VARIANTS[key].config()
    sizes = (", ".join(map(str, config[name])) for name in ("depths", "groups"))
    return (title(key), f"`{function_name(key)}`", config["core_op"], config["channels"], *sizes)


def _row(row):
    numbers = {
        "classification": (row.classes, row.resolution, row.top1),
        "segmentation": (row.data, row.resolution, row.miou, row.miou_multiscale),
        "detection": (row.data, row.resolution, row.box_ap, row.mask_ap),
    }[row.task]
    return (f"`{row.name}`", title(row.variant), *("" if n is None else n for n in numbers))


def _table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines) + "\n"
