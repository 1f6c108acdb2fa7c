"""Finds the native libraries of DCNv3, and builds them where there are none.

They come, in this order, from the folder that $KERAS_INTERNIMAGE_KERNEL_PATH names, from an
installed wheel, from the cache, or from a build. Those with CUDA have wheels of their own.

One library computes (`libdcnv3_core`, with CUDA also `libdcnv3_cuda`), and one for each framework
binds it. They lie in one folder and find each other there. What is built with CUDA has a folder
of its own.

Importing this module compiles nothing and imports no framework.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import shutil
import sys
import tempfile
import time

from . import cache, libraries, packaged, toolchain
from .libraries import BACKENDS
from .toolchain import COMMAND, KernelsUnavailable

SHIPPED = "KERAS_INTERNIMAGE_KERNEL_PATH"


def _log(line):
    print(line, file=sys.stderr, flush=True)


def find(backend, cuda=False):
    """The library of a backend that was built already, or None.

    It is looked for in $KERAS_INTERNIMAGE_KERNEL_PATH where that is set, else in the installed
    wheel and then in the cache.
    """
    _check(backend)
    try:
        return _look_up(backend, cuda)
    except KernelsUnavailable:
        return None


def find_or_build(backend, cuda=None, without_cuda=None, refused=()):
    """The path of a backend's library, which is built where there is none.

    Args:
        backend: one of `BACKENDS`.
        cuda: whether the library also computes on NVIDIA GPUs; None where the installed framework
            does and there is nvcc, or such a library in a wheel or built before.
        without_cuda: called with the error where `cuda` is None, that cannot be had, and the
            library is one for processors alone.
        refused: folders of installed wheels whose library will not do.

    Raises:
        KernelsUnavailable: there is none and it cannot be built, or could not in an earlier
            attempt.
    """
    _check(backend)
    if cuda is None and _resolve(backend, cuda, refused):
        try:
            return _have(backend, True, refused)
        except KernelsUnavailable as error:
            reason = error
        found = _have(backend, False, refused)
        if without_cuda is not None:
            without_cuda(reason)
        return found
    return _have(backend, bool(cuda), refused)


def origin(path):
    """Where a library came from, in words; `path` as `find` returns it."""
    wheel = packaged.wheel_of(path)
    if wheel is not None:
        return f"from the installed wheel {wheel}".rstrip()
    if os.environ.get(SHIPPED):
        return f"from the folder of {SHIPPED}"
    return "compiled on this machine"


def core_library():
    """The path of `libdcnv3_core` without CUDA, which is built where there is none."""
    return _have(None, False)


def build(backends, cuda=False, output=None, force=False, log=_log):
    """Build libraries, also where an earlier attempt failed.

    Args:
        backends: some of `BACKENDS`.
        cuda: whether they also compute on NVIDIA GPUs.
        output: a folder that gets a copy of them and of what they need, for machines without a
            compiler: $KERAS_INTERNIMAGE_KERNEL_PATH names it there.
        force: whether to build what is built already.
        log: called with lines on the progress.

    Returns:
        The paths of the backends' libraries, in the same order.

    Raises:
        KernelsUnavailable: some could not be built. The others are.
    """
    for backend in backends:
        _check(backend)
    plan = _plan(backends, cuda)
    if backends and len(plan.errors) == len(backends):
        _raise_all(plan.errors)  # nobody wants the core alone
    folder = plan.folder
    if output is not None:
        folder = pathlib.Path(output).expanduser().absolute()
        with _writable_output(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    errors = _make(plan, force=force, log=log)
    if output is not None:
        for library in plan.libraries:
            if os.path.isfile(plan.folder / library.name):
                _copy(plan.folder / library.name, folder)
    _raise_all(errors)
    return [folder / libraries.binding_name(backend, cuda) for backend in backends]


def complete(folder, planned, *tools, log=_log):
    """Build those of the `libraries.Library`s planned for a folder of the cache that it lacks."""
    _raise_all(_make(_Plan(folder, tuple(planned), tools, ()), log=log))


def state(backend, cuda=None):
    """The pair of a backend's library, or None, and of the reason why there will be none, or None.

    Nothing is built. Both are None where the next use would try to build it. Arguments as for
    `find_or_build`.
    """
    _check(backend)
    try:
        if cuda is None:
            cuda = _resolve(backend, cuda) and state(backend, True)[1] is None
        found = _look_up(backend, cuda)
        if found is None:
            _raise_remembered(_plan([backend], cuda))
        return found, None
    except KernelsUnavailable as error:
        return None, str(error)


def why_no_cuda(backend):
    """Why a backend has no kernels for NVIDIA GPUs, None where it has or does not compute there."""
    try:
        if not toolchain.framework(backend).has_cuda():
            return None
    except KernelsUnavailable:
        return None
    path, reason = state(backend, True)
    build_now = f"not built yet; `{COMMAND} build --cuda --backend {backend}` builds them"
    return None if path is not None else reason or build_now


# ---- finding ----


def _check(backend):
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}. Received: backend={backend!r}")


def _resolve(backend, cuda, refused=()):
    if cuda is not None:
        return cuda
    if not toolchain.framework(backend).has_cuda():
        return False
    try:
        if _look_up(backend, True, refused) is not None:
            return True
    except KernelsUnavailable:
        return False  # nor can it be built
    return not os.environ.get(SHIPPED) and bool(toolchain.nvcc_paths())


def _look_up(backend, cuda, refused=()):
    """As `find`, but raises where it will not do to build; the core where `backend` is None."""
    name = libraries.binding_name(backend, cuda) if backend else libraries.CORE
    names = {name, *libraries.needed_names(cuda)}
    shipped = os.environ.get(SHIPPED)
    if shipped:
        folder = pathlib.Path(shipped).expanduser().absolute()
        missing = sorted(file for file in names if not os.path.isfile(folder / file))
        if missing:
            raise KernelsUnavailable(_not_shipped(folder, missing))
        return folder / name
    found = packaged.find(backend, cuda, refused)
    if found is not None:
        return found
    for folder in _built_folders(cuda):
        if all(os.path.isfile(folder / file) for file in names):
            return folder / name
    return None


def _not_shipped(folder, missing):
    present = libraries.found_in(folder)
    return (
        f"{SHIPPED} must name a folder with the native libraries for the installed frameworks. "
        f"Received: {SHIPPED}={folder}, without {', '.join(missing)}; "
        f"found there: {', '.join(present) or 'none'}. Where there is a compiler, "
        f"`{COMMAND} build --output FOLDER` writes them; without the variable they are built "
        "when they are needed"
    )


def _built_folders(cuda):
    """Where built libraries of the present sources may lie, the best first."""
    sources = libraries.sources_key(cuda)
    try:
        tools = _tools(cuda)
    except KernelsUnavailable:
        # What was built when there was a compiler is as good without one.
        return cache.folders(sources)
    return [cache.folder(sources, _tools_key(tools))]


def _tools(cuda):
    """The compilers of a build: for C++, and with CUDA nvcc."""
    if libraries.WINDOWS:
        raise KernelsUnavailable(
            "DCNv3's native kernels are built on Linux and macOS only; on Windows they come in a "
            f"wheel, for PyTorch and JAX. Received: sys.platform={sys.platform!r}"
        )
    compiler = toolchain.find_compiler()
    if not cuda:
        return (compiler,)
    return (compiler, toolchain.find_nvcc())


def _tools_key(tools):
    parts = [part for tool in tools for part in (*tool.command, tool.path, tool.version)]
    return libraries.digest(parts, 8)


# ---- building ----


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is to lie in `folder`, in the order of linking, and why some cannot be planned."""

    folder: pathlib.Path
    libraries: tuple
    tools: tuple
    errors: tuple

    def missing(self):
        there = [os.path.isfile(self.folder / library.name) for library in self.libraries]
        return [library for library, found in zip(self.libraries, there, strict=True) if not found]


def _plan(backends, cuda):
    try:
        tools = _tools(cuda)
    except KernelsUnavailable as error:
        # Where a wheel was to make a compiler needless, it says why it does not.
        notes = "".join(packaged.explain(backend, cuda) for backend in backends)
        raise KernelsUnavailable(f"{error}{notes}") from error
    folder = cache.folder(libraries.sources_key(cuda), _tools_key(tools))
    planned, errors = [libraries.core(tools[0])], []
    if cuda:
        planned.append(libraries.cuda_core(*tools))
    for backend in backends:
        try:
            planned.append(libraries.binding(backend, folder, *tools))
        except KernelsUnavailable as error:
            errors.append(error)
    return _Plan(folder, tuple(planned), tools, tuple(errors))


def _have(backend, cuda, refused=()):
    """The path of a library, built unless it is there or an earlier attempt failed."""
    found = _look_up(backend, cuda, refused)
    if found is None:
        plan = _plan([backend] if backend else [], cuda)
        _raise_remembered(plan)
        _raise_all(_make(plan, remembering=True))
        found = plan.folder / plan.libraries[-1].name
    return found


def _raise_remembered(plan):
    for library in plan.missing():
        message = cache.remembered_failure(plan.folder, library, cuda=len(plan.tools) > 1)
        if message is not None:
            raise KernelsUnavailable(message)
    _raise_all(plan.errors)


def _raise_all(errors):
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise KernelsUnavailable("\n\n".join(map(str, errors)))


def _make(plan, force=False, remembering=False, log=_log):
    """Build what `plan` has and its folder lacks, with `force` all of it; returns the errors.

    With `remembering`, raises what another process met while this one waited for it.
    """
    with cache.locked(log):
        if remembering:
            _raise_remembered(plan)
        missing = plan.libraries if force else plan.missing()
        if not missing:
            return plan.errors
        named = dict.fromkeys(library.backend for library in missing if library.backend)
        backends = " and ".join(named)
        log(
            f"keras_internimage: building the DCNv3 kernels{' for ' if backends else ''}{backends} "
            f"with {' and '.join(tool.name for tool in plan.tools)} (once per installation) ..."
        )
        started = time.monotonic()
        errors = _compile_and_link(plan.folder, missing)
        if not errors:
            seconds = time.monotonic() - started
            log(f"keras_internimage: the DCNv3 kernels are built ({seconds:.1f} s)")
        return [*plan.errors, *errors]


def _compile_and_link(folder, missing):
    """Returns the errors of bindings; raises that of a library which all of them need."""
    with (
        cache.unfinished(folder) as temporary,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        # All objects at once: no library waits for another one's slowest.
        jobs = {
            library.name: [
                pool.submit(
                    toolchain.run, [*command, "-o", temporary / name], temporary, library.advice
                )
                for command, name in library.objects
            ]
            for library in missing
        }
        errors = []
        try:
            for library in missing:
                try:
                    _link(library, jobs[library.name], folder, temporary)
                except toolchain.CommandFailed as error:
                    if error.lasting:
                        cache.remember_failure(folder, library, str(error), temporary)
                    if library.backend is None:
                        raise
                    errors.append(error)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return errors


def _link(library, jobs, folder, temporary):
    for job in jobs:
        job.result()
    objects = [temporary / name for _, name in library.objects]
    command = [*library.link, *objects, "-o", temporary / library.name, *library.libraries]
    toolchain.run(command, temporary, library.advice)
    with cache.writable(folder):
        for name in (*library.beside, library.name):
            os.replace(temporary / name, folder / name)
    cache.forget_failure(folder, library)


def _writable_output(folder):
    return cache.writable(folder, "--output names another one.")


def _copy(path, folder):
    with _writable_output(folder):
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as temporary:
            os.replace(shutil.copy(path, temporary), folder / path.name)
