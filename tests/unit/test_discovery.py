"""Discovery on machines that are described rather than present: NVML and CUDA are stand-ins."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pynvml
import pytest
from fake_nvml import Board, FakeNvml

from apex4_probe import cuda_extra
from apex4_probe.discovery import CudaDevice, LocalGpu, NoGpuError, Survey, devices_of_cupy, discover, select, survey
from apex4_probe.errors import ApexError

H100 = Board()
LAPTOP = Board(
    name="NVIDIA GeForce RTX 3080 Laptop GPU",
    uuid="GPU-aaaabbbb-cccc-dddd-eeee-ffff00001111",
    bus_id="0000:01:00.0",
    memory=16384 * 2**20,
    ecc=None,
    power_limit_mw=None,
    max_sm_clock=2100,
    processes=None,
    utilisation=None,
)


def cuda(board: Board, **changes: Any) -> CudaDevice:
    device = CudaDevice(
        ordinal=0,
        name=board.name,
        compute_capability=(9, 0),
        sm_count=132,
        memory_bytes=85_000_000_000,
        l2_bytes=50 * 2**20,
        pci_bus_id=board.bus_id,
        uuid=bytes.fromhex(board.uuid[4:].replace("-", "")),
    )
    return replace(device, **changes)


def find(nvml: FakeNvml, *devices: CudaDevice, selection: str | int | None = "0") -> list[LocalGpu]:
    found = discover(selection, nvml_library=nvml, cuda_devices=lambda: list(devices), driver_cuda=lambda: None)
    assert nvml.open == 0, "NVML must be closed again"
    return found


def sentence(call: Callable[[], Any]) -> str:
    with pytest.raises(ApexError) as caught:
        call()
    return str(caught.value)


def test_one_whole_gpu_is_described_by_nvml_and_cuda_together() -> None:
    (gpu,) = find(FakeNvml(H100), cuda(H100))
    assert gpu.device.model_dump() == {
        "name": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "architecture": "Hopper",
        "sm_count": 132,
        "memory_mib": 81559,  # NVML's, which is what nvidia-smi shows, and not CUDA's
        "l2_mib": 50.0,
        "mig": None,
        "ecc": True,
        "power_limit_w": 700.0,
        "max_sm_clock_mhz": 1980.0,
        "max_memory_clock_mhz": 2619.0,
    }
    assert (gpu.sm_clock_mhz, gpu.power_w, gpu.temperature_c) == (345.0, 71.5, 34.0)
    assert (gpu.driver, gpu.cuda, gpu.uuid, gpu.busy) == ("580.95.05", "13.0", H100.uuid, None)


def test_an_older_nvidia_ml_py_answers_bytes() -> None:
    (gpu,) = find(FakeNvml(H100, driver=b"535.54.03", cuda=12020), cuda(H100))
    assert (gpu.driver, gpu.cuda) == ("535.54.03", "12.2")


def test_what_a_laptop_part_does_not_report_is_none_and_does_not_make_it_busy() -> None:
    (gpu,) = find(FakeNvml(LAPTOP), cuda(LAPTOP, compute_capability=(8, 6), sm_count=48))
    assert gpu.device.power_limit_w is None
    assert gpu.device.ecc is None
    assert gpu.device.max_sm_clock_mhz == 2100.0
    assert gpu.other_processes is None
    assert gpu.busy is None


def test_unified_memory_parts_take_their_size_from_cuda() -> None:
    board = replace(H100, name="NVIDIA GB10", memory=None)
    (gpu,) = find(FakeNvml(board), cuda(board, memory_bytes=119 * 2**30, compute_capability=(12, 1), sm_count=48))
    assert gpu.device.memory_mib == 119 * 1024


def test_nvml_and_cuda_number_gpus_differently_and_are_matched_by_pci_address() -> None:
    nvml = FakeNvml(LAPTOP, H100)
    fastest_first = cuda(H100), cuda(LAPTOP, ordinal=1, compute_capability=(8, 6), sm_count=48)
    both = find(nvml, *fastest_first, selection="all")
    assert [(gpu.index, gpu.nvml_index, gpu.device.name) for gpu in both] == [(0, 1, H100.name), (1, 0, LAPTOP.name)]


def test_a_part_without_pci_address_is_matched_by_uuid() -> None:
    board = replace(H100, bus_id="")
    (gpu,) = find(FakeNvml(LAPTOP, board), cuda(board, pci_bus_id="0000:00:00.0"))
    assert gpu.uuid == H100.uuid


def test_a_uuid_cut_at_its_first_zero_byte_still_matches_and_an_ambiguous_one_does_not() -> None:
    first = replace(H100, bus_id="", uuid="GPU-11110022-3333-4444-5555-666677778888")
    second = replace(H100, bus_id="", uuid="GPU-11220022-3333-4444-5555-666677778888")
    nvml = FakeNvml(first, second)
    (gpu,) = find(nvml, cuda(first, pci_bus_id="0000:00:00.0", uuid=b"\x11\x22"))
    assert gpu.uuid == second.uuid
    assert "its clocks cannot be watched" in sentence(
        lambda: find(nvml, cuda(first, pci_bus_id="0000:00:00.0", uuid=b"\x11"))
    )


def test_a_mig_slice_has_the_boards_name_its_own_profile_and_cudas_size() -> None:
    small = Board(name=f"{H100.name} MIG 1g.10gb", uuid="MIG-00010203-0405-0607-0809-0a0b0c0d0e0f", processes=(7,))
    other = Board(name=f"{H100.name} MIG 3g.40gb", uuid="MIG-ff010203-0405-0607-0809-0a0b0c0d0e0f")
    board = replace(H100, mig=True, slices=(None, other, small), processes=(7, 8, 9), utilisation=None)
    visible = cuda(
        board,
        sm_count=16,
        memory_bytes=9856 * 2**20,
        uuid=bytes.fromhex(small.uuid[4:].replace("-", "")),
    )
    (gpu,) = find(FakeNvml(board), visible)
    assert (gpu.device.name, gpu.device.mig) == (H100.name, "1g.10gb")
    assert (gpu.device.sm_count, gpu.device.memory_mib) == (16, 9856)
    assert gpu.uuid == small.uuid
    assert gpu.other_processes == 1  # of the slice, not of the board


def test_a_mig_slice_whose_name_nobody_tells_is_called_by_its_sms() -> None:
    (gpu,) = find(FakeNvml(replace(H100, mig=True)), cuda(H100, sm_count=26, uuid=b""))
    assert gpu.device.mig == "26 SMs"


@pytest.mark.parametrize(
    ("board", "expected"),
    [
        (replace(H100, processes=(os.getpid(),)), None),
        (replace(H100, processes=(os.getpid(), 4711)), "1 other compute process is on it"),
        (replace(H100, processes=(4711, 4712, 4711)), "2 other compute processes are on it"),
        (replace(H100, utilisation=9), None),
        (replace(H100, utilisation=10), "10% utilised"),
    ],
)
def test_a_busy_gpu_says_why(board: Board, expected: str | None) -> None:
    (gpu,) = find(FakeNvml(board), cuda(board))
    if expected is None:
        assert gpu.busy is None
    else:
        assert gpu.busy is not None
        assert expected in gpu.busy


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver found"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "driver is not loaded"),
    ],
)
def test_without_a_driver_there_is_no_gpu(code: int, expected: str) -> None:
    with pytest.raises(NoGpuError, match=expected):
        find(FakeNvml(init_error=code))


def test_a_container_without_nvml_is_told_the_capability_it_lacks() -> None:
    nvml = FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with pytest.raises(ApexError, match="NVIDIA_DRIVER_CAPABILITIES=compute,utility") as caught:
        discover(nvml_library=nvml, cuda_devices=list, driver_cuda=lambda: 12040)
    assert not isinstance(caught.value, NoGpuError)


def test_a_driver_updated_under_a_loaded_one_asks_for_a_reboot() -> None:
    nvml = FakeNvml(init_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    assert "reboot" in sentence(lambda: find(nvml))


def test_a_driver_too_old_names_the_needed_version() -> None:
    nvml = FakeNvml(H100, driver="470.256.02", cuda=11040)
    text = sentence(lambda: find(nvml, cuda(H100)))
    assert "470.256.02 runs CUDA 11.4" in text
    assert "525.60.13 or newer" in text
    assert nvml.open == 0


def test_volta_is_refused_in_one_sentence_and_turing_is_measured() -> None:
    text = sentence(lambda: find(FakeNvml(H100), cuda(H100, name="Tesla V100", compute_capability=(7, 0))))
    assert text.startswith("GPU 0 (Tesla V100, compute capability 7.0)")
    (gpu,) = find(FakeNvml(H100), cuda(H100, name="Tesla T4", compute_capability=(7, 5)))
    assert gpu.device.architecture == "Turing"


def test_a_lost_gpu_is_an_error_and_not_an_unknown_field() -> None:
    assert "lost the GPU" in sentence(lambda: find(FakeNvml(replace(H100, lost=True)), cuda(H100)))


def test_nothing_visible_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(NoGpuError, match="sees no GPU"):
        find(FakeNvml())
    with pytest.raises(NoGpuError, match="MIG mode and has no slice"):
        find(FakeNvml(replace(H100, mig=True, slices=(None,))))
    with pytest.raises(NoGpuError, match="CUDA sees none"):
        find(FakeNvml(H100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(NoGpuError, match="CUDA_VISIBLE_DEVICES='' hides every GPU"):
        find(FakeNvml(H100))


@pytest.mark.parametrize(
    ("selection", "count", "expected"),
    [("0", 1, [0]), (None, 2, [0]), (1, 2, [1]), ("1, 0", 2, [1, 0]), ("0,0", 2, [0]), ("ALL", 3, [0, 1, 2])],
)
def test_selection(selection: str | int | None, count: int, expected: list[int]) -> None:
    assert select(selection, count) == expected


@pytest.mark.parametrize(
    ("selection", "count", "expected"),
    [
        ("1", 1, "there is no GPU 1; CUDA sees only GPU 0 here"),
        ("0,7", 4, "there is no GPU 7; CUDA sees GPUs 0 to 3 here"),
        ("-1", 1, "expected a number"),
        ("", 1, "expected a number"),
        ("0,", 1, "expected a number"),
        ("cuda:0", 1, "expected a number"),
        ("٣", 9, "expected a number"),
    ],
)
def test_bad_selection(selection: str, count: int, expected: str) -> None:
    assert expected in sentence(lambda: select(selection, count))


def test_cupy_for_a_newer_cuda_than_the_drivers_says_which_package_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("cupy.cuda").runtime

    class Error(runtime.CUDARuntimeError):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            pass

        def __str__(self) -> str:
            return "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"

    def refuse() -> int:
        raise Error

    monkeypatch.setattr(runtime, "getDeviceCount", refuse)
    monkeypatch.setattr(runtime, "runtimeGetVersion", lambda: 13020)
    text = sentence(lambda: devices_of_cupy(12080))
    assert "the driver runs CUDA 12.8 and the installed CuPy needs 13" in text
    assert "pip uninstall cupy-cuda13x and pip install 'apex4-probe[cuda12]'" in text


class FakeDriver:
    """libcuda as ctypes calls it."""

    def __init__(self, version: int, devices: int, init: int = 0) -> None:
        self.version, self.devices, self.init = version, devices, init

    def cuInit(self, _flags: int) -> int:  # noqa: N802
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.devices
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0


@pytest.mark.parametrize(
    ("driver", "version", "extra"),
    [
        (FakeDriver(13000, 1), 13000, "cuda13"),
        (FakeDriver(12090, 8), 12090, "cuda12"),
        (FakeDriver(11080, 1), 11080, ""),
        (FakeDriver(13000, 0), None, ""),
        (FakeDriver(13000, 1, init=100), None, ""),  # CUDA_ERROR_NO_DEVICE
    ],
)
def test_the_extra_follows_the_driver(driver: FakeDriver, version: int | None, extra: str) -> None:
    found = cuda_extra.usable_cuda_version(lambda _name: driver)
    assert (found, cuda_extra.extra_for(found)) == (version, extra)


def test_no_driver_library_means_no_extra() -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    assert cuda_extra.usable_cuda_version(missing) is None
    assert cuda_extra.extra_for(None) == ""


def test_cuda_devices_are_read_from_cupys_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("cupy.cuda").runtime
    properties = {
        "name": b"NVIDIA A40",
        "major": 8,
        "minor": 6,
        "multiProcessorCount": 84,
        "totalGlobalMem": 47_000_000_000,
        "l2CacheSize": 6 * 2**20,
        "uuid": bytes(range(1, 17)) + b"\x99",
    }
    monkeypatch.setattr(runtime, "getDeviceCount", lambda: 1)
    monkeypatch.setattr(runtime, "getDeviceProperties", lambda _ordinal: properties)
    monkeypatch.setattr(runtime, "deviceGetPCIBusId", lambda _ordinal: "0000:65:00.0")
    expected = CudaDevice(0, "NVIDIA A40", (8, 6), 84, 47_000_000_000, 6 * 2**20, "0000:65:00.0", bytes(range(1, 17)))
    assert devices_of_cupy(13000) == [expected]


def test_without_cupy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "cupy.cuda", raising=False)
    assert "pip install 'apex4-probe[cuda12]'" in sentence(lambda: devices_of_cupy(12040))


def test_the_stand_in_answers_by_pynvmls_names() -> None:
    """A function that pynvml does not have would be tested against nothing."""
    asked = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert len(asked) > 20
    assert [name for name in asked if not hasattr(pynvml, name)] == []


# several GPUs, of which some cannot be used


def look(nvml: FakeNvml, *devices: CudaDevice, selection: str = "all") -> Survey:
    return survey(selection, nvml_library=nvml, cuda_devices=lambda: list(devices), driver_cuda=lambda: None)


@pytest.fixture
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def second(**changes: Any) -> Board:
    return replace(H100, uuid="GPU-22223333-4444-5555-6666-777788889999", bus_id="0000:43:00.0", **changes)


@pytest.mark.usefixtures("all_visible")
def test_a_gpu_that_cannot_be_used_stands_beside_those_that_can() -> None:
    old = cuda(second(), ordinal=1, compute_capability=(6, 0))
    found = look(FakeNvml(H100, second()), cuda(H100), old)
    assert [gpu.index for gpu in found.gpus] == [0]
    (left_out,) = found.left_out
    assert (left_out.index, left_out.failed) == (1, True)
    assert "compute capability 6.0" in left_out.reason
    with pytest.raises(ApexError, match=r"compute capability 6\.0"):
        find(FakeNvml(H100, second()), cuda(H100), old, selection="all")


@pytest.mark.usefixtures("all_visible")
def test_a_gpu_that_the_driver_lost_is_a_fault_and_no_end() -> None:
    found = look(FakeNvml(second(lost=True), H100), cuda(H100))
    assert [gpu.index for gpu in found.gpus] == [0]
    (left_out,) = found.left_out
    assert (left_out.index, left_out.nvml_index, left_out.failed) == (None, 0, True)
    assert left_out.reason.startswith("the driver has lost the GPU")


@pytest.mark.usefixtures("all_visible")
@pytest.mark.parametrize(
    ("slices", "told"),
    [
        (
            (Board(uuid="MIG-5"), Board(uuid="MIG-6")),
            "cut into 2 MIG slices, of which CUDA shows a process one at most",
        ),
        ((), "in MIG mode and has no slice"),
    ],
)
def test_a_sliced_gpu_beside_a_whole_one_is_named_and_no_fault(slices: tuple[Board, ...], told: str) -> None:
    found = look(FakeNvml(H100, second(mig=True, slices=slices)), cuda(H100))
    (left_out,) = found.left_out
    assert (left_out.index, left_out.nvml_index, left_out.name, left_out.failed) == (None, 1, H100.name, False)
    assert told in left_out.reason
    assert not slices or "CUDA_VISIBLE_DEVICES=MIG-5 apex4-probe run" in left_out.reason


@pytest.mark.usefixtures("all_visible")
def test_one_that_cuda_does_not_show_is_a_fault_unless_hidden_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(H100, second())
    (left_out,) = look(nvml, cuda(H100)).left_out
    assert left_out.failed and "CUDA does not show it" in left_out.reason
    assert look(nvml, cuda(H100), selection="0").left_out == ()  # nobody asked for it
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert look(nvml, cuda(H100)).left_out == ()


@pytest.mark.usefixtures("all_visible")
def test_a_shown_slice_is_measured_and_its_board_not_told_again() -> None:
    slice_ = Board(name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", uuid="MIG-33334444-5555-6666-7777-888899990000")
    board = replace(H100, mig=True, slices=(slice_,))
    shown = cuda(board, name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", uuid=bytes.fromhex(slice_.uuid[4:].replace("-", "")))
    found = look(FakeNvml(board), shown)
    assert [gpu.device.mig for gpu in found.gpus] == ["1g.10gb"] and found.left_out == ()
