"""A CUDA driver that launches nothing and remembers what it was given, called through the real C calling convention."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from apex4_probe.kernels.launch import Function, LaunchConfig
from apex4_probe.kernels.variant import Geometry

_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(LaunchConfig),
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_void_p),
)


@dataclass(frozen=True)
class Launched:
    """What arrived at ``cuLaunchKernelEx``. ``attributes``: (id, value) pairs."""

    kernel: str
    geometry: Geometry
    stream: int
    arguments: tuple[int | float | bytes, ...]
    attributes: tuple[tuple[int, int], ...]


@dataclass(eq=False)
class FakeDriver:
    """``statuses``: what the next launches answer, 0 after that. ``functions``: by handle. ``execute``: what happens on
    the device at each launch."""

    statuses: list[int] = field(default_factory=list)
    launches: list[Launched] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    map_status: int = 0
    functions: dict[int, Function] = field(default_factory=dict)
    execute: Callable[[Launched], None] = lambda _launched: None

    def __post_init__(self) -> None:
        self.cuLaunchKernelEx = _LAUNCH(self._launch)

    def function(self, name: str, signature: str, *, can_overlap: bool = True) -> Function:
        handle = 0x7000 + len(self.functions)
        self.functions[handle] = Function(name, handle, signature, 0xC0DE, can_overlap, self)
        return self.functions[handle]

    def cuTensorMapEncodeTiled(  # noqa: N802
        self, to: Any, type_: int, rank: Any, address: Any, sizes: Any, strides: Any, box: Any, steps: Any, *modes: int
    ) -> int:
        """What it was given, as eight-byte numbers, stands for the driver's encoding."""
        if self.map_status:
            return self.map_status
        assert to.value % 64 == 0
        told = (type_, rank.value, address.value, *sizes, *strides, *box, *steps, *modes)
        ctypes.memmove(to, struct.pack("16q", *told, *[0] * (16 - len(told))), 128)
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        self.contexts.append(context.value)
        return 0

    def cuGetErrorName(self, status: int, text: Any) -> int:  # noqa: N802
        text._obj.value = {1: b"CUDA_ERROR_INVALID_VALUE", 701: b"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"}.get(status)
        return 0

    def cuGetErrorString(self, status: int, text: Any) -> int:  # noqa: N802
        text._obj.value = {1: b"invalid argument", 701: b"too many resources requested for launch"}.get(status)
        return 0

    def _launch(self, config: Any, handle: int, pointers: Any, extra: Any) -> int:
        assert not extra
        if self.statuses and (status := self.statuses.pop(0)):
            return status
        function, given = self.functions[handle], config.contents
        arguments = tuple(
            struct.unpack(code, ctypes.string_at(pointers[i], struct.calcsize(code)))[0]
            for i, code in enumerate(re.findall(r"\d*[a-zA-Z]", function.signature))
        )
        assert tuple(given.block)[1:] == (1, 1)
        attributes = tuple((given.attributes[i].id, given.attributes[i].value) for i in range(given.attribute_count))
        geometry = Geometry(tuple(given.grid), given.block[0], given.shared_bytes)
        self.launches.append(Launched(function.name, geometry, given.stream or 0, arguments, attributes))
        self.execute(self.launches[-1])
        return 0
