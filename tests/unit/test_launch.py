"""What reaches the driver: arguments, geometry, stream, attributes; what comes back when it refuses."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fake_driver import FakeDriver

from apex4_probe.errors import ApexError
from apex4_probe.kernels import compile as compiling
from apex4_probe.kernels import launch as launching
from apex4_probe.kernels import tensor_map
from apex4_probe.kernels.launch import LaunchAttribute, LaunchConfig
from apex4_probe.kernels.variant import Box, Geometry

GEOMETRY = Geometry((132, 2, 3), 512, 200_000)
BIG = 0x7FFF_1234_5678_9AB0


def test_structures_have_the_layout_of_cuda_h() -> None:
    # sizeof and offsetof of CUlaunchAttribute and CUlaunchConfig in cuda.h, x86-64 and AArch64
    assert ctypes.sizeof(LaunchAttribute) == 72
    assert LaunchAttribute.value.offset == 8
    assert ctypes.sizeof(LaunchConfig) == 56
    fields = {name: getattr(LaunchConfig, name).offset for name in ("block", "shared_bytes", "stream", "attributes")}
    assert fields == {"block": 12, "shared_bytes": 24, "stream": 32, "attributes": 40}
    assert LaunchConfig.attribute_count.offset == 48


def test_everything_arrives_as_given() -> None:
    driver = FakeDriver()
    function = driver.function("gemm", "PiPqfi")
    arguments = (BIG, -7, 0, -(2**40), 0.15625, 2**31 - 1)
    function.launch(GEOMETRY, arguments, stream=0xABCDEF012345)
    (launched,) = driver.launches
    assert (launched.kernel, launched.geometry, launched.stream) == ("gemm", GEOMETRY, 0xABCDEF012345)
    assert launched.arguments == arguments
    assert launched.attributes == ()


def test_a_structure_arrives_whole_and_what_stands_around_it_too() -> None:
    driver = FakeDriver()
    structure = bytes(range(128))
    driver.function("gemm", "Pi128si").launch(GEOMETRY, (BIG, -7, structure, 9), stream=1)
    assert driver.launches[0].arguments == (BIG, -7, structure, 9)


def test_a_tensor_map_says_how_an_output_lies() -> None:
    driver, box = FakeDriver(), Box(tokens=32, rows=64)
    encoded = tensor_map.of_output(driver, 1000, 4096, box, 0x7F00_0000_1230)
    # cuda.h: UINT16 is 1; two dimensions, the inner one first; 8192 bytes a row; no interleave, 128-byte swizzle (3)
    assert struct.unpack("16q", encoded) == (1, 2, 0x7F00_0000_1230, 4096, 1000, 8192, 64, 32, 1, 1, 0, 3, 0, 0, 0, 0)
    assert tensor_map.of_output(driver, 1000, 4096, box, 0x7F00_0000_1230) is encoded
    driver.map_status = 1
    with pytest.raises(ApexError, match=r"no tensor map for an output \[1000, 64\] at 0x1230: CUDA error 1"):
        tensor_map.of_output(driver, 1000, 64, box, 0x1230)


def test_one_frame_serves_call_after_call_and_carries_nothing_over() -> None:
    driver = FakeDriver()
    function = driver.function("gemm", "Pi")
    for stream, pointer, value in ((1, BIG, 5), (2, 0, 6)):
        function.launch(GEOMETRY, (pointer, value), stream)
    assert [(one.stream, one.arguments) for one in driver.launches] == [(1, (BIG, 5)), (2, (0, 6))]
    assert len(launching.prepared(function, GEOMETRY, False)._frames) == 1


def test_programmatic_dependent_launch_is_asked_for_where_it_exists() -> None:
    driver = FakeDriver()
    for can_overlap, pdl in ((True, True), (True, False), (False, True)):
        driver.function("gemm", "i", can_overlap=can_overlap).launch(GEOMETRY, (1,), 0, pdl)
    # 6: CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert [one.attributes for one in driver.launches] == [((6, 1),), (), ()]


def test_a_thread_without_a_context_gets_the_functions_own() -> None:
    driver = FakeDriver(statuses=[201])
    driver.function("gemm", "i").launch(GEOMETRY, (3,), 0)
    assert driver.contexts == [0xC0DE]
    assert [one.arguments for one in driver.launches] == [(3,)]


@pytest.mark.parametrize(
    ("statuses", "parts"),
    [
        ([701], ("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, too many resources requested for launch", "200000 bytes", "701")),
        ([201, 1], ("CUDA_ERROR_INVALID_VALUE, invalid argument", "grid (132, 2, 3) of 512 threads")),
        ([999], ("unknown", "(CUDA error 999)")),
    ],
)
def test_a_refused_launch_names_kernel_and_reason(statuses: list[int], parts: tuple[str, ...]) -> None:
    driver = FakeDriver(statuses=statuses)
    function = driver.function("w4a8.small.channel", "i")
    with pytest.raises(ApexError) as caught:
        function.launch(GEOMETRY, (3,), 0)
    assert str(caught.value).startswith("w4a8.small.channel: cannot launch")
    assert [part for part in parts if part not in str(caught.value)] == []
    assert driver.launches == []
    function.launch(GEOMETRY, (4,), 0)  # and the next one works
    assert driver.launches[0].arguments == (4,)


def test_threads_do_not_mix_their_arguments() -> None:
    driver = FakeDriver()
    function = driver.function("gemm", "Pi")
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for call in range(300):
            function.launch(GEOMETRY, (number << 40 | call, number), stream=number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = sorted((one.stream, *one.arguments) for one in driver.launches)
    assert seen == [(number, number << 40 | call, number) for number in range(1, 9) for call in range(300)]


class FakeRaw:
    """What ``cupy.RawModule.get_function`` returns, as far as loading uses it."""

    shared_size_bytes = 1024
    kernel = SimpleNamespace(ptr=0x7777)
    max_dynamic_shared_size_bytes = 0
    driver_version = 13000


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRaw]:
    """The machine replaced below load_kernel: compiler, module loader, driver."""
    import cupy
    import torch

    raw = FakeRaw()
    made = launching.Chip("9.0", "sm_90a", 132, 232_448)
    ampere = launching.Chip("8.0", "sm_80", 108, 166_912)
    fake = SimpleNamespace(
        cuLaunchKernelEx=None,
        cuFuncLoad=lambda _handle: 0,
        cuCtxGetCurrent=lambda out: _give(out, 0xC0DE),
        cuDriverGetVersion=lambda out: _give(out, raw.driver_version),
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(cupy.cuda, "Device", lambda _index: _Nothing())
    monkeypatch.setattr(launching, "compile_kernel", lambda kernel: kernel)
    monkeypatch.setattr(launching, "load", lambda _cubin: SimpleNamespace(get_function=lambda _entry: raw))
    monkeypatch.setattr(launching, "chip", lambda device: made if device < 2 else ampere)
    monkeypatch.setattr(launching, "driver", lambda: fake)
    launching.load_kernel.cache_clear()
    yield raw
    launching.load_kernel.cache_clear()


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def _give(out: Any, value: int) -> int:
    out._obj.value = value
    return 0


def test_loading_happens_once_and_allows_all_shared_memory(loaded: FakeRaw) -> None:
    kernel = compiling.Kernel("w4a8.small.channel", "…", "sm_90a")
    function = launching.load_kernel(kernel, "gemm", "PPi", 0)
    assert (function.name, function.handle, function.signature) == ("w4a8.small.channel", 0x7777, "PPi")
    assert (function.context, function.can_overlap) == (0xC0DE, True)
    assert loaded.max_dynamic_shared_size_bytes == 232_448 - 1024
    assert launching.load_kernel(kernel, "gemm", "PPi", 0) is function
    assert launching.load_kernel(kernel, "gemm", "PPi", 1) is not function


@pytest.mark.parametrize(("device", "driver", "expected"), [(0, 13000, True), (0, 12020, False), (2, 13000, False)])
def test_programmatic_dependent_launch_needs_hopper_and_a_driver_that_captures_it(
    loaded: FakeRaw, device: int, driver: int, expected: bool
) -> None:
    loaded.driver_version = driver
    kernel = compiling.Kernel("w4a8.small.channel", "…", "sm_90a")
    assert launching.load_kernel(kernel, "gemm", "PPi", device).can_overlap is expected


def test_loading_during_a_graph_capture_is_refused(loaded: FakeRaw, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kernel = compiling.Kernel("w4a8.small.channel", "…", "sm_90a")
    with pytest.raises(ApexError, match=r"w4a8\.small\.channel is not loaded and a CUDA graph is being captured"):
        launching.load_kernel(kernel, "gemm", "PPi", 0)
