from __future__ import annotations

from typing import Any

import pytest

from apex4_probe.models import ROLES
from apex4_probe.quality import quality_prior


@pytest.mark.parametrize(
    ("format", "granularity", "loss"),  # mean of the two texts
    [
        ("fp16", "none", 0.0),
        ("w4a16", "g128", (0.061 + 0.096) / 2),
        ("w4a8", "channel", (0.066 + 0.127) / 2),
        ("w4a8", "g128i", (0.065 + 0.112) / 2),
        ("w4a4", "channel", (0.305 + 0.425) / 2),
        ("w4a4", "a128i", (0.265 + 0.349) / 2),
        ("w4a4", "g128", (0.239 + 0.305) / 2),
        ("w4a4", "g32", (0.182 + 0.261) / 2),
    ],
)
def test_seven_roles_add_up_to_the_measured_model(format: Any, granularity: Any, loss: float) -> None:
    found = quality_prior().expected_loss((role, format, granularity) for role in ROLES)
    assert found == pytest.approx(loss)


def test_the_step_to_coarse_goes_by_role_and_down_is_the_dearest() -> None:
    prior = quality_prior()
    steps = {r: prior.role_loss("w4a4", "channel", r) - prior.role_loss("w4a4", "g128", r) for r in ROLES}
    assert max(steps, key=lambda role: steps[role]) == "down"
    assert steps["down"] == pytest.approx((0.365 - 0.272) * 52 / 112)
    assert steps["k"] == 0.0  # measured below zero, which is noise


def test_the_published_mix_gains_by_g32_and_pays_by_channel() -> None:
    wanted = {role: "g32" if role in ("v", "down") else "channel" for role in ROLES}
    found = quality_prior().expected_loss((role, "w4a4", wanted[role]) for role in ROLES)  # type: ignore[misc]
    share = (0.03 + 0.25) / 0.99
    paid = (0.365 - 0.272) * (0.007 + 0.007 + 0.010 + 0.010) / 0.112
    assert found == pytest.approx(0.272 * (1 - share) + 0.2215 * share + paid)


def test_the_prior_says_whose_it_is() -> None:
    prior = quality_prior()
    assert "SmolLM2-135M-Instruct" in prior.label and "full-width rotation" in prior.label
    assert "a128i" in prior.losses["w4a4"] and "channel" not in prior.losses["w4a16"]
