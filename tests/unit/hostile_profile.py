"""A profile whose every string is an attack on whatever shows it, and one with every list empty."""

from __future__ import annotations

from sample_profile import predicted_profile, sample_device, sample_environment, sample_profile

from apex4_probe.deployment import Profile, Provenance, Rejected, RhoFigure

ATTACK = (
    "<script>alert(1)</script>[bold]b[/bold] $\\frac{ ]]> --> \x1b[31mred\x07 \u202e\"'&amp; https://evil.example/x"
)
ENDLESS = ATTACK + "A" * 10_000


def hostile_profile() -> Profile:
    good = sample_profile()
    unsupported = next(figure for figure in good.measurements if figure.unsupported)
    return sample_profile(
        tool_version=ATTACK,
        device=sample_device(name=ENDLESS, architecture=ATTACK, mig=ATTACK),
        environment=sample_environment(platform=ENDLESS, python=ATTACK, driver=ATTACK),
        provenance=Provenance(command=ENDLESS, commit=ATTACK, warnings=[ATTACK, ENDLESS]),
        measurements=[
            *(
                figure.model_copy(update={"name": figure.name + ENDLESS, "unit": ATTACK, "throttle": [ATTACK]})
                for figure in good.measurements
                if figure.value is not None
            ),
            unsupported.model_copy(update={"unsupported": ENDLESS}),
        ],
        co_issue=[
            point.model_copy(update={"mma": ATTACK, "shape": ATTACK, "instruction": point.instruction + ENDLESS})
            for point in good.co_issue
        ],
        rho={"int4": RhoFigure(usable=False, reason="emulated: " + ENDLESS)},
        balance=[
            item.model_copy(update={"strategy": ENDLESS, "mma": ATTACK, "bound_by": ENDLESS, "pipes": {ATTACK: 1.0}})
            for item in good.balance
        ],
        decision=good.decision.model_copy(update={"reason": ENDLESS, "runner_up": ENDLESS, "rule": ATTACK}),
        workload=good.workload.model_copy(update={"model": ENDLESS}),
        kernels=[
            table.model_copy(
                update={
                    "kernels": [
                        kernel.model_copy(update={"variant": ENDLESS, "tile": ATTACK, "runner_up": ENDLESS})
                        for kernel in table.kernels
                    ]
                }
            )
            for table in good.kernels
        ],
        gemm_timings=[
            timing.model_copy(update={"variant": ATTACK, "tile": ENDLESS, "strategy": ENDLESS})
            for timing in good.gemm_timings
        ],
        layers=[layer.model_copy(update={"reason": ENDLESS}) for layer in good.layers],
        rejected=[Rejected(variant=ENDLESS, why=ENDLESS)],
        notes=[ATTACK, ENDLESS],
    )


def empty_profile() -> Profile:
    return predicted_profile(
        measurements=[], co_issue=[], rho={}, balance=[], layers=[], w4a4=None, rejected=[], notes=[]
    )
