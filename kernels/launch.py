"""Launching on a torch stream: cubin to function, arguments packed once, ``cuLaunchKernelEx`` through ctypes.

The driver is called directly because CuPy cannot set launch attributes; programmatic dependent launch needs one.
Nothing here waits for the device. Loading allocates, so it must have happened before a CUDA graph is captured; a launch
itself may be captured.
"""

from __future__ import annotations

import ctypes
import re
import struct
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from apex4_probe.architecture import architecture
from apex4_probe.errors import ApexError
from apex4_probe.kernels.compile import Kernel, compile_kernel, load
from apex4_probe.kernels.variant import Chip, Geometry

if TYPE_CHECKING:
    import torch

# cuda.h
INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT: the thread has none yet
PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
PDL_SINCE = (9, 0)  # CUDA C++ Programming Guide, programmatic dependent launch
PDL_DRIVER = 12030  # CUDA 12.3: graphs have edges for it (release notes), so that a stream may be captured
PREPARED = 4096  # launches kept ready: every layer shape and prompt length of a server has its own


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: an identifier and a union of 64 bytes, of which we use an int."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("attribute_count", ctypes.c_uint),
    )


@cache
def chip(device: int) -> Chip:
    """The GPU that CUDA and torch number ``device``. Raises ApexError where there is none that kernels exist for."""
    from cupy.cuda import runtime

    try:
        properties = runtime.getDeviceProperties(device)
    except runtime.CUDARuntimeError as error:
        raise ApexError(f"GPU {device} cannot be used: {error}; check nvidia-smi and CUDA_VISIBLE_DEVICES") from None
    facts = architecture(f"{properties['major']}.{properties['minor']}")
    return Chip(
        compute_capability=facts.compute_capability,
        target=facts.target,
        sm_count=int(properties["multiProcessorCount"]),
        shared_bytes=int(properties["sharedMemPerBlockOptin"]),
    )


@cache
def load_kernel(kernel: Kernel, entry: str, signature: str, device: int) -> Function:
    """Compile (or find in the cache) and load ``entry`` of a kernel on a GPU; the same Function from then on.

    ``signature``: a code of the ``struct`` module for each argument: P pointer, i int, f float, q long long, 128s as
    many bytes. The function may use all the shared memory that a CTA can have. Raises CompileError, and ApexError
    during the capture of a CUDA graph, which loading would break.
    """
    import cupy
    import torch

    if torch.cuda.is_current_stream_capturing():
        raise ApexError(
            f"{kernel.name} is not loaded and a CUDA graph is being captured: call it once beforehand, or precompile"
        )
    with cupy.cuda.Device(device):
        raw = load(compile_kernel(kernel)).get_function(entry)
        raw.max_dynamic_shared_size_bytes = chip(device).shared_bytes - raw.shared_size_bytes
        handle = raw.kernel.ptr
        cuda = driver()
        if hasattr(cuda, "cuFuncLoad"):  # CUDA 12.4 and newer: with lazy loading a function may still be on disk
            _check(cuda, cuda.cuFuncLoad(ctypes.c_void_p(handle)), kernel.name, "load")
        context = ctypes.c_void_p()
        _check(cuda, cuda.cuCtxGetCurrent(ctypes.byref(context)), kernel.name, "load")
    version = ctypes.c_int()
    _check(cuda, cuda.cuDriverGetVersion(ctypes.byref(version)), kernel.name, "load")
    can_overlap = chip(device).version >= PDL_SINCE and version.value >= PDL_DRIVER
    return Function(kernel.name, handle, signature, context.value or 0, can_overlap, cuda, raw)


@cache
def driver() -> Any:
    """libcuda, as ctypes sees it. Raises ApexError where no driver is installed."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ApexError(f"the NVIDIA driver cannot be loaded ({error}): install or repair it") from None


def cuda_device(name: str, tensor: torch.Tensor) -> int:
    """The number of the GPU that holds ``tensor``. ValueError, naming it, where none does."""
    if not tensor.is_cuda:
        raise ValueError(
            f"{name} is on {tensor.device} and kernels run on a GPU: move it there with to(), or call "
            "reference_linear, which computes on any device"
        )
    return tensor.get_device()


def current_stream(device: int) -> int:
    """The handle of torch's current stream on a GPU."""
    import torch

    return torch.cuda.current_stream(device).cuda_stream


@dataclass(frozen=True, eq=False)
class Function:
    """A loaded kernel. ``keeps``: whatever holds its module in memory."""

    name: str
    handle: int  # CUfunction
    signature: str
    context: int  # CUcontext in which it was loaded
    can_overlap: bool  # programmatic dependent launch exists here
    cuda: Any = field(repr=False)
    keeps: Any = field(repr=False, default=None)

    def launch(self, geometry: Geometry, arguments: tuple[int | float, ...], stream: int, pdl: bool = False) -> None:
        """Enqueue once on ``stream`` (a CUstream handle, 0: the legacy default) of the function's device, which must be
        the current one. Arguments in the order of the signature, pointers as integers, 0 for null.

        ``pdl``: may begin while the kernel before it on the stream still runs; the kernel itself waits where it must.
        Raises ApexError naming the kernel and CUDA's reason.
        """
        prepared(self, geometry, pdl)(stream, *arguments)


@lru_cache(maxsize=PREPARED)
def prepared(function: Function, geometry: Geometry, pdl: bool) -> Launch:
    return Launch(function, geometry, pdl)


class Launch:
    """A function with its geometry: called with a stream and arguments, any number of times and from any thread."""

    def __init__(self, function: Function, geometry: Geometry, pdl: bool) -> None:
        self._function = function
        self._geometry = geometry
        self._pdl = pdl and function.can_overlap
        self._launch = function.cuda.cuLaunchKernelEx
        self._handle = ctypes.c_void_p(function.handle)
        self._frames: list[_Frame] = []  # list.pop and append are atomic: a frame belongs to one call at a time

    def __call__(self, stream: int, *arguments: int | float | bytes) -> None:
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = _Frame(self._function.signature, self._geometry, self._pdl)
        frame.config.stream = stream
        frame.pack(frame.values, 0, *arguments)
        status = self._launch(frame.config_pointer, self._handle, frame.pointers, None)
        if status == INVALID_CONTEXT:  # the first call of a thread that has not used this GPU
            self._function.cuda.cuCtxSetCurrent(ctypes.c_void_p(self._function.context))
            status = self._launch(frame.config_pointer, self._handle, frame.pointers, None)
        self._frames.append(frame)
        if status:
            grid, threads, shared = self._geometry.grid, self._geometry.threads, self._geometry.shared_bytes
            what = f"launch grid {grid} of {threads} threads with {shared} bytes of shared memory"
            _check(self._function.cuda, status, self._function.name, what)


class _Frame:
    """What one call hands to the driver, which copies it before it returns."""

    def __init__(self, signature: str, geometry: Geometry, pdl: bool) -> None:
        codes = struct.Struct(signature)
        self.pack = codes.pack_into
        self.values = ctypes.create_string_buffer(codes.size)
        address = ctypes.addressof(self.values)
        ends = [(match.end(), match.group()) for match in re.finditer(r"\d*[a-zA-Z]", signature)]
        offsets = [struct.calcsize(signature[:end]) - struct.calcsize(code) for end, code in ends]
        self.pointers = (ctypes.c_void_p * len(offsets))(*(address + offset for offset in offsets))
        self.attribute = LaunchAttribute(id=PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
        self.config = LaunchConfig(
            grid=geometry.grid,
            block=(geometry.threads, 1, 1),
            shared_bytes=geometry.shared_bytes,
            attributes=ctypes.pointer(self.attribute),
            attribute_count=int(pdl),
        )
        self.config_pointer = ctypes.byref(self.config)


def _check(cuda: Any, status: int, kernel: str, what: str) -> None:
    if status == 0:
        return
    name, text = ctypes.c_char_p(), ctypes.c_char_p()
    cuda.cuGetErrorName(status, ctypes.byref(name))
    cuda.cuGetErrorString(status, ctypes.byref(text))
    told = ", ".join(part.value.decode() for part in (name, text) if part.value)
    raise ApexError(f"{kernel}: cannot {what}: {told or 'unknown'} (CUDA error {status})")
