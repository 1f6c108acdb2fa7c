"""CUDA without a framework: its driver and its run-time compiler, called by ctypes.

What InternImage's official kernels are measured by, whatever framework is installed: the driver
comes with the GPU, and NVRTC with each framework's packages.
"""

import ctypes
import functools
import glob
import os
import re
import subprocess
import sys
import tempfile
import time

from custom_ops import toolchain

_CAPABILITY = (75, 76)  # attributes of a device: major, minor
_NON_BLOCKING = 1  # a stream that does not wait for the default one


class CudaError(RuntimeError):
    """A call of the driver or of the compiler failed."""


class Driver:
    """Device 0, its primary context, which frameworks use too, and one module of kernels.

    Args:
        source: path of the CUDA source.
        library: the driver's.
    """

    def __init__(self, source, library="libcuda.so.1"):
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise CudaError(f"NVIDIA's driver must be installed. Received: {error}") from error
        self._call("cuInit", 0)
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._enter()
        numbers = []
        for attribute in _CAPABILITY:
            number = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
            numbers.append(number.value)
        self.architecture = "sm_{}{}".format(*numbers)
        code, self.compiler = compiled(source, self.architecture)
        self._module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(self._module), ctypes.c_char_p(code))
        self._stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self._events:
            self._call("cuEventCreate", ctypes.byref(event), 0)

    def _call(self, name, *arguments):
        code = getattr(self._cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            raise CudaError(f"{name} must succeed. Received: error {code}, {text.value}")

    def _enter(self):
        # A thread that a framework made, as PyTorch does for gradients, has no context yet.
        self._call("cuCtxSetCurrent", self._context)

    @functools.cache  # noqa: B019 (there is one driver for the life of a process)
    def _function(self, name):
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
        return function

    def allocate(self, size):
        """The address of `size` bytes of device memory."""
        self._enter()
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address):
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address, array):
        source = array.ctypes.data_as(ctypes.c_void_p)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, _bytes(array))
        self._call("cuCtxSynchronize")  # the copy may still be on its way to the device

    def download(self, address, array):
        self.synchronize()
        target = array.ctypes.data_as(ctypes.c_void_p)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), _bytes(array))

    # ---- what follows is enqueued: on a stream's number, or on one of its own ----

    def launch(self, name, grid, block, shared, arguments, stream=None):
        """Enqueues a kernel. `arguments` are ctypes values; addresses are `c_void_p`."""
        self._enter()
        pointers = (ctypes.c_void_p * len(arguments))(
            *(ctypes.cast(ctypes.pointer(a), ctypes.c_void_p) for a in arguments)
        )
        sizes = (grid, 1, 1, block, 1, 1, shared)
        self._call(
            "cuLaunchKernel",
            self._function(name),
            *map(ctypes.c_uint, sizes),
            self._number(stream),
            pointers,
            None,
        )

    def zero(self, address, count, stream=None):
        """Enqueues zeros: `count` of 32 bits."""
        self._enter()
        count, stream = ctypes.c_size_t(count), self._number(stream)
        self._call("cuMemsetD32Async", ctypes.c_uint64(address), ctypes.c_uint(0), count, stream)

    def copy(self, target, source, size, stream=None):
        """Enqueues a copy of `size` bytes within the device's memory."""
        addresses = map(ctypes.c_uint64, (target, source))
        stream = self._number(stream)
        self._call("cuMemcpyDtoDAsync_v2", *addresses, ctypes.c_size_t(size), stream)

    def _number(self, stream):
        return self._stream if stream is None else ctypes.c_void_p(stream)

    def synchronize(self):
        self._enter()
        self._call("cuStreamSynchronize", self._stream)

    def seconds(self, enqueue, repeat):
        """Of one `enqueue()`, when `repeat` of them run one after the other on its own stream."""
        start = time.perf_counter()
        enqueue()
        host = time.perf_counter() - start
        self.synchronize()
        # The device is busy until the host has enqueued all; a cycle is half a nanosecond or more.
        cycles = ctypes.c_longlong(int(min(0.3, 1.5 * repeat * host + 1e-4) * 2e9))
        self.launch("spin", 1, 1, 0, [cycles])
        self._call("cuEventRecord", self._events[0], self._stream)
        for _ in range(repeat):
            enqueue()
        self._call("cuEventRecord", self._events[1], self._stream)
        self.synchronize()
        elapsed = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(elapsed), *self._events)
        return elapsed.value / 1e3 / repeat


def _bytes(array):
    return ctypes.c_size_t(array.nbytes)


def compiled(source, architecture):
    """Machine code of a CUDA source, and what made it: NVRTC, or nvcc where that does not do.

    Raises:
        CudaError: neither is there, or the source does not compile.
    """
    problems = []
    for path in nvrtc_paths():
        try:
            return _by_nvrtc(path, source, architecture), path
        except (CudaError, OSError) as error:
            problems.append(f"{path}: {error}")
    nvcc = nvcc_path()
    if nvcc is None:
        raise CudaError(
            "NVRTC (package nvidia-cuda-nvrtc) or nvcc must be installed. "
            f"Received: {'; '.join(problems) or 'neither'}"
        )
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "code")
        command = [nvcc, "-cubin", f"-arch={architecture}", "-std=c++17", "-o", made, str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise CudaError(f"nvcc must compile {source}. Received: {result.stderr[-2000:]}")
        with open(made, "rb") as file:
            return file.read(), nvcc


def nvcc_path():
    """The nvcc that a build of the kernels takes first, or None."""
    return next(iter(toolchain.nvcc_paths()), None)


def nvrtc_paths():
    """Where NVRTC's library is: in Python's packages, then in the toolkit."""
    found = []
    for folder in [*_in_packages("lib"), *_in_toolkits("lib64", "lib")]:
        names = sorted(glob.glob(os.path.join(folder, "libnvrtc.so*")), reverse=True)
        found += [n for n in names if re.search(r"/libnvrtc\.so(\.\d+)?$", n)][:1]
    return list(dict.fromkeys(found))


def _in_packages(name):
    folders = [glob.glob(os.path.join(path, "nvidia", "*", name)) for path in sys.path]
    return [folder for found in folders for folder in sorted(found, reverse=True)]


def _in_toolkits(*names):
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), toolchain.CUDA]
    return [os.path.join(home, name) for home in homes if home for name in names]


def _by_nvrtc(path, source, architecture):
    library = ctypes.CDLL(path)
    library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(name, *arguments):
        code = getattr(library, name)(*arguments)
        if code:
            raise CudaError(f"{name}: {library.nvrtcGetErrorString(code).decode()}")

    def text(size_name, name):
        size = ctypes.c_size_t()
        call(size_name, program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        call(name, program, buffer)
        return buffer.raw

    program = ctypes.c_void_p()
    with open(source, "rb") as file:
        code = file.read()
    call("nvrtcCreateProgram", ctypes.byref(program), code, b"official.cu", 0, None, None)
    try:
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
        strings = (ctypes.c_char_p * len(options))(*options)
        try:
            call("nvrtcCompileProgram", program, len(options), strings)
        except CudaError as error:
            log = text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0")
            raise CudaError(f"{error}: {log.decode(errors='replace')}") from error
        return text("nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
