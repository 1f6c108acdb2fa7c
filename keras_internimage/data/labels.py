"""`labels.json`: what a model's outputs are called, and which images it takes."""

import collections
import dataclasses
import json
import pathlib

from keras_internimage.files import atomic_write

FILE = "labels.json"


@dataclasses.dataclass(frozen=True)
class Labels:
    """Names of the classes in the order of the model's outputs, and the side of its images."""

    classes: tuple[str, ...]
    resolution: int | None = None
    variant: str | None = None

    def write(self, folder):
        """Writes `labels.json` into a folder."""
        write_json(pathlib.Path(folder, FILE), dataclasses.asdict(self))


def read(path):
    """The `Labels` of a file, or None where there is none.

    Raises:
        ValueError: it is no file of labels.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} must be JSON. Received: {error}") from error
    if isinstance(content, list):
        content = {"classes": content}
    classes = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(
            f'{path} must hold a list of names, or {{"classes": [...]}}. '
            f"Received: {type(classes or content).__name__}"
        )
    return Labels(tuple(classes), content.get("resolution"), content.get("variant"))


def check_unique(argument, names):
    """Raises ValueError where two classes have one name: results could not tell them apart."""
    twice = sorted(name for name, count in collections.Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"{argument} must differ from each other. "
            f"Received: {', '.join(map(repr, twice[:5]))}{', ...' if twice[5:] else ''} "
            "more than once"
        )


def write_json(path, content):
    """Writes JSON under a temporary name, then renames it."""
    with (
        atomic_write(path, durable=True) as unfinished,
        open(unfinished, "w", encoding="utf-8") as file,
    ):
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")
