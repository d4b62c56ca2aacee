"""apex4-probe: does 4-bit inference pay on this GPU, at which granularity, and why.

import apex4_probe as apex
profile = apex.run(device=0, model="llama-3-8b")
profile = apex.load_profile("profile.yaml")
profile = apex.predict("RTX 3090")
frame = profile.to_frame()
axes = apex.plot.throughput(profile)
frame = apex.compare([profile, "RTX 3090", "A100"])

packed = apex.pack(weight, format="w4a8", granularity="g128i")  # torch tensors: weight [N, K]
y = apex.linear(x, packed, bias=None, profile=profile)          # x [M, K] -> y [M, N]
fitted = apex.refit_groups(codes, scale, zero)                  # a checkpoint with float scales per group of 128
packed = apex.pack_quantised(fitted.weight, format="w4a8")
y = apex.reference_linear(x, packed)                            # slow, exact, on any device
names = [variant.name for variant in apex.variants()]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apex4_probe import plot as plot
    from apex4_probe.compare_job import compare as compare
    from apex4_probe.flow import run as run
    from apex4_probe.kernels.packing import pack as pack
    from apex4_probe.kernels.packing import pack_quantised as pack_quantised
    from apex4_probe.kernels.reference import reference_linear as reference_linear
    from apex4_probe.kernels.refit import refit as refit
    from apex4_probe.kernels.refit import refit_groups as refit_groups
    from apex4_probe.predict_job import predict as predict
    from apex4_probe.profile_file import load_profile as load_profile
    from apex4_probe.runtime.linear import linear as linear
    from apex4_probe.runtime.linear import variants as variants

    __version__: str

__all__ = [
    "__version__",
    "compare",
    "linear",
    "load_profile",
    "pack",
    "pack_quantised",
    "plot",
    "predict",
    "reference_linear",
    "refit",
    "refit_groups",
    "run",
    "variants",
]

# Resolved on first use, so that importing the package (which `apex4-probe --help` does) loads nothing else.
_LAZY = {
    "compare": "apex4_probe.compare_job",
    "run": "apex4_probe.flow",
    "predict": "apex4_probe.predict_job",
    "load_profile": "apex4_probe.profile_file",
    "pack": "apex4_probe.kernels.packing",
    "pack_quantised": "apex4_probe.kernels.packing",
    "refit": "apex4_probe.kernels.refit",
    "refit_groups": "apex4_probe.kernels.refit",
    "linear": "apex4_probe.runtime.linear",
    "reference_linear": "apex4_probe.kernels.reference",
    "variants": "apex4_probe.runtime.linear",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("apex4-probe")
    if name == "plot":
        return import_module("apex4_probe.plot")
    if name in _LAZY:
        value = globals()[name] = getattr(import_module(_LAZY[name]), name)  # `linear` is called often
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
