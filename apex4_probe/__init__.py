"""apex4-probe: does 4-bit inference pay on this GPU, at which granularity, and why.

import apex4_probe as apex
profile = apex.run(device=0, model="llama-3-8b")
profile = apex.load_profile("profile.yaml")
profile = apex.predict("RTX 3090")
frame = profile.to_frame()
axes = apex.plot.throughput(profile)
frame = apex.compare([profile, "RTX 3090", "A100"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apex4_probe import plot as plot
    from apex4_probe.compare_job import compare as compare
    from apex4_probe.flow import run as run
    from apex4_probe.predict_job import predict as predict
    from apex4_probe.profile_file import load_profile as load_profile

    __version__: str

__all__ = ["__version__", "compare", "load_profile", "plot", "predict", "run"]

# Resolved on first use, so that importing the package (which `apex4-probe --help` does) loads nothing else.
_LAZY = {
    "compare": "apex4_probe.compare_job",
    "run": "apex4_probe.flow",
    "predict": "apex4_probe.predict_job",
    "load_profile": "apex4_probe.profile_file",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("apex4-probe")
    if name == "plot":
        return import_module("apex4_probe.plot")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
