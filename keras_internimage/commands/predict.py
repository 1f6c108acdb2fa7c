"""`internimage-predict MODEL IMAGE...`: what is on images, by a model of this package.

Exits with 0; with 1 where some of the images could not be read; with 2 and one line on standard
error for what cannot be done.
"""

import argparse
import csv
import io
import json
import pathlib
import sys

from keras_internimage import backends, command_line, files

PROGRAM = "internimage-predict"
STDIN = "-"
SUFFIXES = {"text": ".txt", "csv": ".csv", "json": ".json"}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = command_line.parser(PROGRAM, "Names what is on images, by a finished model.")
    command_line.add_model(made)
    made.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image, folder (all images below it), or - for an image on standard input",
    )
    made.add_argument("--top", type=int, default=5, metavar="K", help="classes shown (default 5)")
    made.add_argument(
        "--output", metavar="FILE", help="write there; the format by its suffix: .csv, .json, .txt"
    )
    made.add_argument(
        "--format", choices=list(SUFFIXES), help="default: by --output's suffix, or text"
    )
    made.add_argument(
        "--json", metavar="FILE", help="--format json --output FILE; - is standard output"
    )
    made.add_argument(
        "--labels",
        metavar="FILE",
        help="JSON, or one name a line (default: labels.json beside the model)",
    )
    made.add_argument("--batch-size", type=int, default=16, metavar="N", help="default 16")
    made.add_argument(
        "--resolution", type=int, metavar="PIXELS", help="default: that of the labels or the model"
    )
    made.add_argument("--backend", choices=backends.BACKENDS, help="Keras' backend")
    return made


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command_line.exit_code(PROGRAM, _predict, parser().parse_args(argv))


def _predict(arguments):
    command_line.check_positive(arguments, "top", "batch_size", "resolution")
    format, output = _output(arguments)
    if arguments.images.count(STDIN) > 1:
        raise ValueError("Standard input holds one image. Received: - more than once")
    backends.use(arguments.backend)
    from keras_internimage import predictor

    place = predictor.locate(arguments.model)
    # From here on Keras is imported.
    backends.hide_tensorflow()
    labels = predictor.read_labels(arguments.labels)
    found, bad = _images(arguments.images)
    if not found and not bad:
        raise ValueError(f"There must be images. Received: {', '.join(arguments.images)} with none")
    made = predictor.assemble(place, labels, arguments.resolution, command_line.remark(PROGRAM))
    from keras_internimage.progress import Progress

    results = []
    with Progress("Predicting", len(found)) as progress:
        stdin = [io.BytesIO(sys.stdin.buffer.read()) if f == STDIN else None for f in found]
        images = [file if data is None else data for file, data in zip(found, stdin, strict=True)]
        stream = made.stream(images, arguments.batch_size)
        for file, (_, scores, error) in zip(found, stream, strict=True):
            if error is None:
                results.append((file, made.best(scores, arguments.top)))
            else:
                bad.append((file, _reason(file, error)))
            progress.advance()
    if format != "text" or results:
        _write(output, {"text": _table, "csv": _csv, "json": _json}[format](results, bad, place))
    for file, reason in bad:
        print(f"{PROGRAM}: {_shown(file)}: {reason}", file=sys.stderr)
    return 1 if bad else 0


def _output(arguments):
    """The format, and the file or None for standard output."""
    option, output, format = "--output", arguments.output, arguments.format
    if arguments.json is not None:
        if output is not None or format is not None:
            raise ValueError("--json must be given without --output and --format")
        option, output, format = "--json", arguments.json, "json"
    if output in (None, "-"):
        return format or "text", None
    path = pathlib.Path(output)
    if format is None:
        known = {suffix: name for name, suffix in SUFFIXES.items()}
        if path.suffix.lower() not in known:
            raise ValueError(
                f"--output must end in {', '.join(known)}, or --format says what to write. "
                f"Received: --output {output}"
            )
        format = known[path.suffix.lower()]
    if not path.parent.is_dir():
        raise ValueError(f"The folder of {option} must exist. Received: {option} {output}")
    # Replacing the named file is what an output option is for; but not a photograph's, by a slip.
    files.check_file(path, (SUFFIXES[format],))
    return format, path


def _images(given):
    from keras_internimage.data.folders import images_below

    found, missing = [], []
    for name in given:
        path = pathlib.Path(name)
        if name == STDIN:
            found.append(name)
        elif path.is_dir():
            found += images_below(path)
        elif path.exists():
            found.append(path)
        else:
            missing.append((path, "no such file"))
    return found, missing


def _reason(file, error):
    from keras_internimage.data.check import explain

    if isinstance(error, FileNotFoundError):
        return "no such file"
    return "is not an image that can be read" if file == STDIN else explain(file, error)


def _shown(file):
    from keras_internimage.data.check import printable

    return printable(str(file))


def _write(path, text):
    if path is None:
        print(text, end="")
        return
    with files.atomic_write(path) as unfinished:
        pathlib.Path(unfinished).write_text(text, "utf-8", newline="")


def _table(results, bad, place):
    width = max((len(_shown(file)) for file, _ in results), default=0)
    lines = []
    for file, best in results:
        for rank, (name, score) in enumerate(best):
            head = _shown(file) if rank == 0 else ""
            lines.append(f"{head:{width}}  {score:6.1%}  {name}\n")
    return "".join(lines)


def _csv(results, bad, place):
    """A row for each image and class; the images that cannot be read are on standard error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "rank", "label", "probability"))
    for file, best in results:
        for rank, (name, score) in enumerate(best, start=1):
            writer.writerow((_shown(file), rank, name, f"{score:.6f}"))
    return text.getvalue()


def _json(results, bad, place):
    content = {
        "model": str(place) if isinstance(place, pathlib.Path) else place.name,
        "predictions": [
            {
                "file": _shown(file),
                "classes": [
                    {"label": name, "probability": round(score, 6)} for name, score in best
                ],
            }
            for file, best in results
        ],
        "failed": [{"file": _shown(file), "reason": reason} for file, reason in bad],
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
