"""What a plan is expected to lose in quality: a prior by format, granularity and role, in quality_prior.yaml.

Losses are nats per token over the unquantised model. They were measured on one small model and are additive by role to
within their noise, so a plan's loss is the sum over its roles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import yaml

from apex4_probe.deployment import Format, Granularity, Role

ROLE_RESOLVED: Format = "w4a4"  # the only format whose loss was measured role by role
FINE: Granularity = "g128"  # what the measured role-by-role steps start from


@dataclass(frozen=True)
class QualityPrior:
    model: str
    recipe: str
    source: str
    resolution: float  # nats; smaller differences are noise
    losses: Mapping[str, Mapping[str, float]]  # format -> granularity -> whole model
    mac_share: Mapping[str, float]
    coarse_delta: Mapping[str, float]
    block_scaled: Mapping[str, float]

    def role_loss(self, format: Format, granularity: Granularity, role: Role) -> float:
        """The part of the loss that ``role`` causes; the parts of all seven roles sum to the whole model's.

        KeyError: the prior does not know this format and granularity.
        """
        whole = self.losses[format][granularity]
        share = self.mac_share[role] / sum(self.mac_share.values())
        if format != ROLE_RESOLVED:
            return whole * share
        fine = self.losses[format][FINE]
        if whole <= fine:
            return whole * share
        steps = {name: max(0.0, delta) for name, delta in self.coarse_delta.items()}
        return fine * share + (whole - fine) * steps[role] / sum(steps.values())

    def expected_loss(self, choices: Iterable[tuple[Role, Format, Granularity]]) -> float:
        """Nats per token of a plan that names a format and granularity for each role."""
        return sum(self.role_loss(format, granularity, role) for role, format, granularity in choices)

    @property
    def label(self) -> str:
        return f"Expected losses are a prior measured on {self.model} ({self.recipe}), not on the planned model."


@cache
def quality_prior() -> QualityPrior:
    """The prior that ships with the package."""
    data = yaml.safe_load(files("apex4_probe.profiles").joinpath("quality_prior.yaml").read_text(encoding="utf-8"))
    losses = {
        format: MappingProxyType({granularity: float(entry["value"]) for granularity, entry in by_granularity.items()})
        for format, by_granularity in data["losses"].items()
    }
    return QualityPrior(
        model=data["model"],
        recipe=data["recipe"],
        source=data["source"],
        resolution=float(data["resolution"]),
        losses=MappingProxyType(losses),
        mac_share=MappingProxyType(data["mac_share"]),
        coarse_delta=MappingProxyType(data["coarse_delta"]),
        block_scaled=MappingProxyType({name: float(entry["value"]) for name, entry in data["block_scaled"].items()}),
    )
