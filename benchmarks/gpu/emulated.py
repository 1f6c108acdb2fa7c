"""The place of `driver.Driver` in a rehearsal: the same calls, the kernels compiled by g++."""

import ctypes
import functools
import os
import subprocess
import tempfile
import time

from benchmarks.gpu import ROOT
from benchmarks.gpu.driver import CudaError


class EmulatedDriver:
    """As `Driver`, with addresses in the host's memory, and all done at once."""

    architecture = "emulated"

    def __init__(self, source):
        self._library = _library(source)
        self.compiler = "g++"
        self._memory = {}

    def allocate(self, size):
        memory = ctypes.create_string_buffer(size)
        self._memory[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def free(self, address):
        del self._memory[address]

    def upload(self, address, array):
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, address, array):
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def launch(self, name, grid, block, shared, arguments, stream=None):
        pointers = (ctypes.c_void_p * len(arguments))(
            *(ctypes.cast(ctypes.pointer(a), ctypes.c_void_p) for a in arguments)
        )
        status = self._library.emulated_launch(name.encode(), grid, block, shared, pointers)
        if status:
            raise CudaError(f"A kernel must be in the source. Received: {name}, status {status}")

    def zero(self, address, count, stream=None):
        ctypes.memset(address, 0, 4 * count)

    def copy(self, target, source, size, stream=None):
        ctypes.memmove(target, source, size)

    def synchronize(self):
        pass

    def seconds(self, enqueue, repeat):
        start = time.perf_counter()
        for _ in range(repeat):
            enqueue()
        return (time.perf_counter() - start) / repeat


@functools.cache
def _library(source):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "emulated.so")
        here = os.path.dirname(os.path.abspath(__file__))
        command = [
            *("g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-I", here),
            *("-I", str(ROOT / "tests" / "custom_ops"), os.path.join(here, "emulated.cc")),
            *("-o", path),
        ]
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise CudaError(f"g++ must be installed for a rehearsal. Received: {error}") from error
        if result.returncode:
            raise CudaError(f"g++ must compile {source}. Received: {result.stderr[-2000:]}")
        return ctypes.CDLL(path)
