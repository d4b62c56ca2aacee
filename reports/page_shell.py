"""What every HTML page of ours is made of: one style sheet, one script that sorts tables, one policy, no network.

A page is one file. Its policy forbids whatever it does not carry itself; the only script that may run is
``templates/sort.js``, named by its digest.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

TEMPLATES = ("parts.html.j2",)  # macros that pages import


@dataclass(frozen=True)
class Picture:
    """A figure as a page inlines it: ``svg`` is made by us from escaped text, so it is safe to insert as it is."""

    svg: str
    title: str
    alt: str
    caption: str = ""


def render(template: str, **context: Any) -> str:
    """``templates/{template}`` as a page; everything in ``context`` is escaped unless the template says otherwise."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    environment = Environment(
        loader=DictLoader({name: _text(name) for name in (template, *TEMPLATES)}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _text("sort.js")
    shell = {"style": _text("page.css"), "script": script, "policy": policy(script)}
    return environment.get_template(template).render(**shell, **context)


def policy(script: str) -> str:
    """The Content-Security-Policy of a page that holds ``script`` inline, and nothing from anywhere else."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _text(name: str) -> str:
    return (files("apex4_probe.reports") / "templates" / name).read_text(encoding="utf-8")
