"""Repositories of the hub in the published form, of which a folder holds the same files.

| file | what is taken from it |
| --- | --- |
| `config.json` | the architecture, the number of classes, names of the classes where it has them |
| `preprocessor_config.json` | the images' size; all else must be as in the models' test |
| `model.safetensors`, or `model.safetensors.index.json` and its parts | the weights |

Nothing else is read, and nothing of a repository is run.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from keras_internimage.checkpoints import hub
from keras_internimage.checkpoints.errors import CheckpointError
from keras_internimage.checkpoints.read import PARTS_INDEX, WHOLE_FILE, parts_of

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# "intern_image" is what the first generation of the repositories is called.
MODEL_TYPES = ("internimage", "intern_image")
DEFAULT_RESOLUTION = 224

# Arguments of `InternImage` that config.json has by the same names.
_ARGUMENTS = (
    "channels",
    "depths",
    "groups",
    "mlp_ratio",
    "layer_scale",
    "offset_scale",
    "post_norm",
    "res_post_norm",
    "dw_kernel_size",
    "level2_post_norm",
    "level2_post_norm_block_ids",
    "center_feature_scale",
    "use_clip_projector",
    "remove_center",
)
# What InternImage is built with, whatever else the official code may allow.
_FIXED_CONFIG = {
    "core_op": ("DCNv3", "DCNv3_pytorch"),
    "act_layer": ("GELU",),
    "norm_layer": ("LN",),
    "cls_scale": (1.5,),
}
# ImageNet's mean and standard deviation; shorter side, then the centre; bicubic.
_FIXED_PREPROCESSOR = {
    "do_resize": (True,),
    "do_center_crop": (True,),
    "do_normalize": (True,),
    "do_rescale": (True,),
    "do_convert_rgb": (True, None),
    "resample": (3,),
    "image_mean": ([0.485, 0.456, 0.406],),
    "image_std": ([0.229, 0.224, 0.225],),
}


@dataclasses.dataclass(frozen=True)
class Repository:
    """A classifier in the published form.

    Attributes:
        name: its address or path.
        folder: the files.
        config: arguments of `keras_internimage.InternImage`.
        classes: number of classes.
        labels: names of the classes, None where the repository has none.
        resolution: side of the images in pixels.
    """

    name: str
    folder: pathlib.Path
    config: dict[str, Any]
    classes: int
    labels: tuple[str, ...] | None
    resolution: int
    task: str = "classification"
    top1: None = None

    @property
    def weights(self) -> pathlib.Path:
        """What `load_weights` takes: the file, or the index of its parts."""
        index = self.folder / PARTS_INDEX
        return index if index.is_file() else self.folder / WHOLE_FILE


def is_repository(place: str | os.PathLike) -> bool:
    """Whether an address `hf://...` or a folder has a config.json that says what model it is of.

    Raises:
        CheckpointError: config.json, or the address, cannot be read.
        DownloadError: config.json could not be downloaded.
    """
    path = hub.Fetcher(str(place))(CONFIG) if hub.is_address(place) else pathlib.Path(place, CONFIG)
    return path.is_file() and "model_type" in _read(path)


def open_repository(place: str | os.PathLike, load_weights: bool = True) -> Repository:
    """Opens a repository; one of the hub is brought into the cache first.

    Args:
        place: `hf://organisation/name`, with `@revision` for one of its revisions, or a folder.
        load_weights: whether the files of the weights are needed, too.

    Returns:
        A `Repository`.

    Raises:
        CheckpointError: it is no InternImage, has something that InternImage cannot be built with,
            or lacks a file.
        DownloadError: a file could not be downloaded.
    """
    if not hub.is_address(place):
        folder = pathlib.Path(place)
        found = read_repository(folder, str(place))
        if load_weights:
            check_weights(folder, str(place))
        return found
    fetch = hub.Fetcher(str(place))
    folder = fetch(CONFIG).parent
    fetch.optional(PREPROCESSOR)
    found = read_repository(folder, str(place))  # before gigabytes are downloaded
    if load_weights:
        index = fetch.optional(PARTS_INDEX)
        for name in [WHOLE_FILE] if index is None else parts_of(str(index)):
            fetch(name)
    return found


def read_repository(folder: pathlib.Path, name: str) -> Repository:
    """The `Repository` of a folder, without a look at its weights."""
    config = _read(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            f"The repository's model_type must be {' or '.join(map(repr, MODEL_TYPES))}. "
            f"Received: model_type={kind!r}, {name}"
        )
    _check_fixed(config, _FIXED_CONFIG, CONFIG, name)
    arguments = {key: config[key] for key in _ARGUMENTS if key in config}
    missing = [key for key in ("channels", "depths", "groups") if arguments.get(key) is None]
    if missing:
        raise CheckpointError(f"{CONFIG} must have {', '.join(missing)}. Received: {name}")
    labels = _labels(config, name)
    count = config.get("num_classes", config.get("num_labels"))
    classes = len(labels) if count is None and labels else count
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise CheckpointError(
            f"num_classes of {CONFIG} must be a positive integer. "
            f"Received: num_classes={classes!r}, {name}"
        )
    if labels is not None and len(labels) != classes:
        raise CheckpointError(
            f"id2label of {CONFIG} must name each of the {classes} classes. "
            f"Received: {len(labels)} names, {name}"
        )
    return Repository(name, folder, arguments, classes, labels, _resolution(folder, name))


def check_weights(folder: pathlib.Path, name: str) -> None:
    """Raises CheckpointError unless a folder has the weights in a safetensors file or in parts."""
    if (folder / PARTS_INDEX).is_file():
        missing = [n for n in parts_of(str(folder / PARTS_INDEX)) if not (folder / n).is_file()]
        if missing:
            raise CheckpointError(
                f"The repository must have all parts that {PARTS_INDEX} names. "
                f"Received: {name}, without {', '.join(missing)}"
            )
    elif not (folder / WHOLE_FILE).is_file():
        raise CheckpointError(
            f"The repository must have {WHOLE_FILE} or {PARTS_INDEX}; other files of weights are "
            f"read by themselves, with `weights=`. Received: {name}, without"
        )


def _read(path: pathlib.Path) -> dict:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"The repository must have {path.name}. Received: {path}, {error.strerror}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path.name} must be JSON. Received: {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} must be a JSON object. Received: {path}")
    return content


def _check_fixed(content: Mapping, fixed: Mapping[str, tuple], file: str, name: str) -> None:
    for key, allowed in fixed.items():
        if key in content and content[key] not in allowed:
            raise CheckpointError(
                f"{key} of {file} must be {' or '.join(map(repr, allowed))}, which the models "
                f"here have. Received: {key}={content[key]!r}, {name}"
            )


def _labels(config, name):
    """Names of the classes in the order of their numbers; made-up ones, "LABEL_0", are none."""
    given = config.get("id2label")
    if not given:
        return None
    try:
        numbered = {int(number): str(label) for number, label in given.items()}
        labels = tuple(numbered[number] for number in range(len(numbered)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"id2label of {CONFIG} must name the classes 0, 1, 2 and so on. Received: {name}"
        ) from error
    made_up = all(label == f"LABEL_{number}" for number, label in numbered.items())
    return None if made_up else labels


def _resolution(folder, name):
    path = folder / PREPROCESSOR
    if not path.is_file():
        return DEFAULT_RESOLUTION
    content = _read(path)
    _check_fixed(content, _FIXED_PREPROCESSOR, PREPROCESSOR, name)
    size = _side(content.get("size", DEFAULT_RESOLUTION))
    crop = _side(content.get("crop_size", size))
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size != crop:
        raise CheckpointError(
            f"size and crop_size of {PREPROCESSOR} must be one side in pixels: the shorter one is "
            f"resized to it, and the centre cut. Received: size={content.get('size')!r}, "
            f"crop_size={content.get('crop_size')!r}, {name}"
        )
    return size


def _side(size):
    """A side in pixels, also of `{"shortest_edge": N}` and `{"height": N, "width": N}`."""
    if isinstance(size, dict):
        sides = set(size.values())
        known = set(size) in ({"shortest_edge"}, {"height", "width"})
        return sides.pop() if known and len(sides) == 1 else None
    return size
