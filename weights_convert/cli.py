"""`python -m keras_internimage.weights_convert`, also installed as `internimage-convert`.

A command prints what it found or did and exits with 0, or 1 where `verify` finds a
difference; what cannot be done is one line on standard error and exit code 2.
"""

import argparse
import os
import shutil
import sys

from keras_internimage import backends, command_line, files

_KERAS = (".weights.h5", ".keras")
# What a command can write.
_OUTPUTS = {
    "convert": _KERAS,
    "export": (".pth", ".safetensors"),
    "download": (".pth", *_KERAS),
}
_DESCRIPTION = "Official InternImage weights <-> Keras files."


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = command_line.parser("internimage-convert", _DESCRIPTION)
    subcommands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add = subcommands.add_parser("inspect", help="say what a file holds")
    add.add_argument("file", help="checkpoint (.pth, .safetensors, index, directory) or Keras file")
    add.add_argument("--container", help="where in a .pth the weights are, such as model_ema")
    add.set_defaults(run=_inspect)

    add = subcommands.add_parser("convert", help="make a Keras file of a checkpoint")
    add.add_argument("file", help="checkpoint (.pth, .safetensors, index, directory)")
    add.add_argument("out", help="ends in .weights.h5 (weights) or .keras (whole model)")
    add.add_argument("--variant", help="such as T or FlashT (default: by the shapes)")
    add.add_argument("--classes", type=int, help="another number: a newly initialised classifier")
    add.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16")
    add.add_argument("--no-top", action="store_true", help="leave the classification head out")
    add.add_argument("--offset-scale", type=float, help="for geometries that are not published")
    add.add_argument("--container", help="where in a .pth the weights are, such as model_ema")
    add.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    add.set_defaults(run=_convert)

    add = subcommands.add_parser("verify", help="compare a file with a checkpoint, bit by bit")
    add.add_argument("keras_file", help=".weights.h5 or .keras")
    add.add_argument("--against", required=True, metavar="FILE", help="checkpoint")
    add.add_argument("--container", help="where in a .pth the weights are, such as model_ema")
    add.set_defaults(run=_verify)

    add = subcommands.add_parser("export", help="back to the official names and layout")
    add.add_argument("keras_file", help=".weights.h5 or .keras")
    add.add_argument("out", help="ends in .pth or .safetensors")
    add.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    add.set_defaults(run=_export)

    add = subcommands.add_parser("list", help="the published checkpoints")
    add.set_defaults(run=_list)

    add = subcommands.add_parser("download", help="bring a published checkpoint into Keras' cache")
    add.add_argument("name", help="a name of `list`")
    add.add_argument("out", nargs="?", help="also write it here: .pth, .weights.h5 or .keras")
    add.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    add.set_defaults(run=_download)
    return made


def _inspect(arguments):
    from keras_internimage.checkpoints import infer, keras_files, published
    from keras_internimage.checkpoints.read import open_checkpoint
    from keras_internimage.variants import title

    path = arguments.file
    rows = []
    if path.endswith(keras_files.SUFFIXES):
        file = keras_files.read(path)
        tensors, shapes = file.tensors, file.official_shapes()
        rows.append(("file", path))
        rows.append(("format", "Keras"))
        unknown = list(file.unknown)
    else:
        checkpoint = open_checkpoint(path, arguments.container)
        tensors, shapes = checkpoint.tensors, checkpoint.shapes()
        rows.extend(("file", file) for file in checkpoint.files)
        rows.append(("format", checkpoint.format))
        others = [name for name in checkpoint.containers if name != checkpoint.container]
        also = f" (also in the file: {', '.join(others)})" if others else ""
        rows.append(("container", checkpoint.container + also))
        unknown = []
        if len(checkpoint.files) == 1:
            row = published.by_file(checkpoint.files[0])
            if row is not None:
                rows.append(("published", f"{row.name}, {row.resolution} pixels"))
            else:
                rows.extend(
                    ("published", f"{row.name} by its size; no SHA-256 of it is known")
                    for row in published.by_size(checkpoint.files[0])
                )
    guess = infer.infer_config(shapes)
    config = ", ".join(f"{key}={value}" for key, value in guess.config.items())
    model = title(guess.variant) if guess.variant else "no published size"
    if guess.head:
        head = ", ".join(f"{key}={value}" for key, value in guess.head.items())
        model = f"{infer.HEADS[guess.family]} on {model} ({head})"
    rows.append(("model", model))
    rows.append(("arguments", config))
    if guess.unseen:
        rows.append(("not visible", f"{', '.join(guess.unseen)} (taken at the default)"))
    rows.append(("classes", guess.classes if guess.classes is not None else "no classifier"))
    rows.append(("parameters", f"{infer.parameters(shapes, guess.table):,}"))
    rows.append(("tensors", len(tensors)))
    rows.append(("stored as", _dtypes(tensors)))
    expected = dict.fromkeys(infer.expected_names(guess))
    unknown += [name for name in shapes if name not in expected]
    missing = [name for name in expected if name not in shapes]
    for label, listed in (("missing", missing), ("others", unknown)):
        rows.append((label, f"{len(listed)}: {', '.join(listed)}" if listed else "none"))
    rows.append(("not finite", _not_finite(tensors)))
    for label, value in rows:
        print(f"{label:12}{value}")
    return 0


def _not_finite(tensors):
    """The tensors with NaN or infinity, read one at a time."""
    from keras_internimage.checkpoints.tensors import not_finite

    counts = {name: (not_finite(tensor), tensor.size) for name, tensor in tensors.items()}
    found = [f"{name} ({bad} of {size})" for name, (bad, size) in counts.items() if bad]
    return f"{len(found)}: {', '.join(found)}" if found else "none"


def _dtypes(tensors):
    counts = {}
    for tensor in tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + 1
    return ", ".join(f"{dtype} ({count} tensors)" for dtype, count in sorted(counts.items()))


def _return_freed_memory():
    """Have the C library give freed tensors back to the system at once (glibc only).

    By default it keeps blocks of up to 32 MB for reuse. The short-lived copies of a conversion
    then split the space between the weights, and the process may grow to twice the model.
    """
    import ctypes

    mmap_threshold = -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(mmap_threshold, 1 << 20)


def _convert(arguments):
    from keras_internimage.weights_convert import convert

    _return_freed_memory()
    report = convert.convert(
        arguments.file,
        arguments.out,
        variant=arguments.variant,
        classes=arguments.classes,
        dtype=arguments.dtype,
        include_top=not arguments.no_top,
        offset_scale=arguments.offset_scale,
        container=arguments.container,
    )
    for rule, tensors in report.allowed_unexpected.items():
        print(f"left out, {rule}: {len(tensors)} tensors")
    print(f"{arguments.out}: {report.assigned} variables from {report.source}")
    return 0


def _verify(arguments):
    from keras_internimage.checkpoints import keras_files
    from keras_internimage.weights_convert.verify import verify

    path, against = arguments.keras_file, arguments.against
    differences, extra, lacking = verify(path, against, arguments.container)
    for variable, difference in differences.items():
        if difference is None:
            print(f"{variable}: another shape")
        elif difference != 0:
            print(f"{variable}: differs by up to {difference:.3g}")
    for name in lacking:
        print(f"{name}: not in {against}")
    # A file's head, or an auxiliary one, may be left out of a model as a whole, and so may what is
    # no InternImage's.
    table = keras_files.read(path).table
    official = [name for variable in differences for name in table.known_entry(variable).official]
    left_out = [name for name in extra if table.is_official(name)]
    for is_part in (table.is_head, table.is_optional):
        if not any(map(is_part, official)):
            left_out = [name for name in left_out if not is_part(name)]
    for name in extra:
        print(f"{name}: only in {against}{'' if name in left_out else ', no part of the model'}")
    exact = sum(difference == 0 for difference in differences.values())
    print(f"{exact} of {len(differences)} variables are bit-exact")
    return 0 if exact == len(differences) and not lacking and not left_out else 1


def _export(arguments):
    from keras_internimage.weights_convert.export import export

    count = export(arguments.keras_file, arguments.out)
    print(f"{arguments.out}: {count} tensors")
    return 0


def _list(arguments):
    from keras_internimage.checkpoints import download, published

    width = max(len(row.name) for row in published.PUBLISHED) + 2
    print(
        f"{'name':{width}}variant  classes  pixels  top-1   mIoU  box AP  mask AP     MB  "
        "in the cache"
    )
    for row in published.PUBLISHED:
        numbers = (row.top1, row.miou, row.box_ap, row.mask_ap)
        top1, miou, box_ap, mask_ap = ("-" if n is None else f"{n:.1f}" for n in numbers)
        size = "?" if row.bytes is None else f"{row.bytes / 1e6:.0f}"
        cached = "yes" if download.is_cached(row) else "no"
        print(
            f"{row.name:{width}}{row.variant:7}{row.classes:9}{row.resolution:8}{top1:>7}{miou:>7}"
            f"{box_ap:>8}{mask_ap:>9}{size:>7}  {cached}"
        )
    return 0


def _download(arguments):
    from keras_internimage.checkpoints import download, published
    from keras_internimage.checkpoints.keras_files import SUFFIXES
    from keras_internimage.files import atomic_write
    from keras_internimage.weights_convert import convert

    row, out = published.find(arguments.name), arguments.out
    if out is not None and not out.endswith((".pth", *SUFFIXES)):
        raise ValueError(
            f"The output must end in .pth or {' or '.join(SUFFIXES)}. Received: path={out}"
        )
    if out is None:
        print(download.fetch(row))
        return 0
    if out.endswith(".pth"):
        with atomic_write(out) as unfinished:
            shutil.copyfile(download.fetch(row), unfinished)
    else:
        _return_freed_memory()
        convert.convert(download.fetch(row), out, variant=row.variant)
    print(out)
    return 0


def _check_paths(arguments):
    """Raises for what can be said before Keras is imported and a file read or downloaded."""
    out = getattr(arguments, "out", None)
    if out is not None:
        endings = _OUTPUTS[arguments.command]
        if not out.endswith(endings):
            raise ValueError(f"The output must end in {' or '.join(endings)}. Received: path={out}")
        files.check_file(out)
        if not os.path.isdir(os.path.dirname(os.path.abspath(out))):
            raise ValueError(f"The output's folder must exist. Received: path={out}")
    source = getattr(arguments, "file", None) or getattr(arguments, "keras_file", None)
    for path in (source, getattr(arguments, "against", None)):
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(f"The file must exist. Received: {path}, no such file")
    # But never the file that is read.
    if out is not None and source and os.path.exists(out) and os.path.samefile(source, out):
        raise ValueError(f"The output must be another file than the one read. Received: {out}")
    if out is not None and os.path.exists(out) and not arguments.overwrite:
        # It may be a trained model, which cannot be had again.
        raise ValueError(
            f"The output must be a new file, or --overwrite be given. Received: path={out}"
        )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        _check_paths(arguments)
        backends.hide_tensorflow()
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
