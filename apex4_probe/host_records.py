"""What a run over several GPUs of one host finds out about the host, beside a profile a GPU: ``host.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from apex4_probe.deployment import Measurement, PeerLink, Record

HOST_SCHEMA_VERSION = "1.0"  # major.minor, as a profile's
HOST = "host.json"


class TogetherFigure(Record):
    """One load on one GPU: with the others idle, and while all ran it at once. Both sustained, by the same code."""

    role: Literal["int8", "fp16", "copy", "host"]
    alone: Measurement
    together: Measurement

    @property
    def ratio(self) -> float | None:
        """Together over alone; None where one of the two has no value."""
        return self.together.value / self.alone.value if self.together.value and self.alone.value else None


class HostGpu(Record):
    """One GPU of the host. ``reason``: why it was not measured, None where it was. ``profile``: below the folder.

    ``failed``: it should have been measured; False for one that is set up so that it cannot be (MIG).
    ``together_failed``: why its loads beside the others' are missing, where they were asked for.
    """

    index: int | None  # CUDA's number; None: CUDA does not show it
    nvml_index: int | None  # nvidia-smi's
    name: str
    mig: str | None = None
    profile: str | None = None
    reason: str | None = None
    failed: bool = False
    together: list[TogetherFigure] = Field(default_factory=list)
    together_failed: str | None = None

    @property
    def label(self) -> str:
        return f"GPU {self.index}" if self.index is not None else f"nvidia-smi {self.nvml_index}"


class HostLink(Record):
    """A pair of GPUs, as the first of them sees the link."""

    first: int
    link: PeerLink


class OddFigure(Record):
    """``ratio``: this GPU's figure over the reference's; ``bound``: what noise explains of it, as a fraction."""

    name: str
    unit: str
    here: float
    reference: float
    ratio: float
    bound: float
    beyond_cards: bool  # more than two cards of one name differ by as well

    @property
    def shortfall(self) -> bool:
        return self.ratio > 1 if self.unit == "us" else self.ratio < 1

    @property
    def loss(self) -> float:
        """How far it is behind, as a ratio below 1; above 1 where it is ahead."""
        return 1 / self.ratio if self.unit == "us" else self.ratio


class Odd(Record):
    """A GPU that differs from the others of its model by more than the spread. ``reference``: the most typical one."""

    index: int
    reference: int
    compared: int  # figures that both have
    figures: list[OddFigure]  # those that differ, the worst first
    causes: list[str]  # of the shortfalls, each a clause that the profiles' own fields support
    differences: list[str]  # in how the two are set up, whether or not a figure shows it


class Host(Record):
    """``links``: every pair once. ``poor_links``, ``links_failed``, ``all_reduce``: sentences.

    ``together_s``: how long each load of the GPUs' ``together`` ran; None: not asked for.
    """

    schema_version: str = Field(default=HOST_SCHEMA_VERSION, pattern=r"^\d+\.\d+$")
    tool_version: str
    created: str  # ISO 8601, UTC
    command: str
    gpus: list[HostGpu]
    links: list[HostLink] = Field(default_factory=list)
    links_failed: list[str] = Field(default_factory=list)
    odd: list[Odd] = Field(default_factory=list)
    poor_links: list[str] = Field(default_factory=list)
    all_reduce: str | None = None
    together_s: float | None = None

    @property
    def measured(self) -> list[HostGpu]:
        return [gpu for gpu in self.gpus if gpu.profile is not None]

    @property
    def failures(self) -> list[HostGpu]:
        """GPUs that could not be measured though they should have been, alone or together with the others."""
        return [gpu for gpu in self.gpus if gpu.failed or gpu.together_failed]
