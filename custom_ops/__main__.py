"""`python -m keras_internimage.custom_ops`: build the native kernels, see and remove them."""

import argparse
import sys

from . import build, cache, check, toolchain


class _Version(argparse.Action):
    """Prints the package's version. This folder works alone as well, so it is asked for late."""

    def __call__(self, parser, namespace, values, option_string=None):
        from keras_internimage import __version__

        print(f"{parser.prog} {__version__}")
        parser.exit()


def _parser():
    made = argparse.ArgumentParser(
        prog=toolchain.COMMAND, description="The native kernels of DCNv3."
    )
    made.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subcommands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add = subcommands.add_parser("build", help="build them now, also where that failed before")
    add.add_argument(
        "--backend",
        choices=[*build.BACKENDS, "all"],
        default="all",
        help="for which framework (default: all that are installed)",
    )
    add.add_argument("--cuda", action="store_true", help="also for NVIDIA GPUs; needs nvcc, no GPU")
    add.add_argument(
        "--output",
        metavar="DIR",
        help=f"write them there, for machines where {build.SHIPPED}=DIR and no compiler is needed",
    )
    add.set_defaults(run=_build)

    add = subcommands.add_parser("status", help="what is built and where, or why not")
    add.set_defaults(run=_status)

    add = subcommands.add_parser("clean", help="remove all that was built from the cache")
    add.set_defaults(run=_clean)
    return made


def _installed():
    found = []
    for backend in build.BACKENDS:
        try:
            toolchain.framework(backend)
        except toolchain.KernelsUnavailable:
            continue
        found.append(backend)
    return found


def _build(arguments):
    backends = _installed() if arguments.backend == "all" else [arguments.backend]
    if not backends:
        raise toolchain.KernelsUnavailable(
            f"One of {', '.join(build.BACKENDS)} must be installed. Received: none of them"
        )
    built = build.build(backends, arguments.cuda, arguments.output, force=True)
    for backend, path in zip(backends, built, strict=True):
        if arguments.cuda:
            check.check(backend, path, ("cpu", "cuda"))
        print(path)
        used = None if arguments.output else build.find(backend, arguments.cuda)
        if used not in (None, path):
            print(f"The library {build.origin(used)} comes before it: {used}", file=sys.stderr)


def _status(arguments):
    for backend in build.BACKENDS:
        path, reason = build.state(backend)
        if path is not None:
            line = f"{build.origin(path)}, {path}"
        elif reason is None:
            compiler = toolchain.find_compiler().name
            line = f"not built yet; the first use builds it with {compiler}"
        else:
            line = "unavailable: " + reason.replace("\n", "\n            ")
        print(f"{backend:12}{line}")
        if (reason := build.why_no_cuda(backend)) is not None:
            print(f"{'':12}for NVIDIA GPUs: {reason}".replace("\n", "\n            "))
    print(f"{'cache':12}{cache.root()}")


def _clean(arguments):
    removed = cache.clean()
    print(f"{cache.root()}: {len(removed)} {'build' if len(removed) == 1 else 'builds'} removed")


def main(arguments=None):
    """Returns the exit status: 0, or 1 where something could not be done, which stderr tells."""
    arguments = _parser().parse_args(arguments)
    try:
        arguments.run(arguments)
    except toolchain.KernelsUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
