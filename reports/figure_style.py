"""How figures look, and how they become PNG for a README and SVG for a page with light and dark colours.

matplotlib is imported inside functions: nothing that ``apex4-probe --help`` touches pays for it. No pyplot, so no
global figure state.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

# Okabe and Ito, "Color Universal Design", 2008, without its yellow (too light for lines on white)
BLUE, VERMILLION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
PURPLE, SKY, GREY = "#cc79a7", "#56b4e9", "#7f7f7f"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
INK = "#1f2328"  # text and axes; becomes the page's own text colour in an SVG
RULE = "#d0d7de"  # grid and outlines; becomes the page's rule colour
PAPER = "#ffffff"  # inside of hollow markers; becomes the page's paper in an SVG

WIDTH = 8.0  # inches: 800 px at 100 dpi, the width of a README
PNG_DPI = 160
HATCH = "////"

_STYLE: Any = {  # matplotlib types the keys as a literal that grows with its versions
    "text.parse_math": False,  # a "$" in a device's name is text, not mathematics
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
    "lines.solid_capstyle": "butt",
    "svg.fonttype": "none",  # text stays text: selectable, and small
    "figure.constrained_layout.use": True,
}


@contextmanager
def _styled() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run a drawing function under the house style, whatever the caller's own matplotlib settings are."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with _styled():
            return draw(*args, **kwargs)

    return wrapper


def new_figure(height: float) -> Figure:
    """An empty figure of README width; inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


@styled
def lay_out(figure: Figure) -> None:
    """Once for all files that a figure is saved to: laying out costs more than drawing."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


@styled
def to_png(figure: Figure) -> bytes:
    """1280 px wide, on white. A character that DejaVu lacks is drawn as a box."""
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=PNG_DPI, facecolor=PAPER, metadata={"Software": None})
    return buffer.getvalue()


@styled
def to_svg(figure: Figure, prefix: str) -> str:
    """An ``<svg>`` element for inlining: its ids carry ``prefix``, its ink and rules follow the page's colours."""
    import warnings

    import matplotlib as mpl

    buffer = io.StringIO()
    empty: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": prefix}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", facecolor="none", metadata=empty)
    return _inlined(buffer.getvalue(), prefix)


def _inlined(document: str, prefix: str) -> str:
    """Without prologue and namespaces (HTML knows them), ids made unique, fixed colours and size given up."""
    svg = document[document.index("<svg") :]
    head, body = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r'(<[^<>]*?\b)id="([^"]*)"', rf'\1id="{prefix}-\2"', body)
    body = re.sub(r'url\(#([^)"]*)\)', rf"url(#{prefix}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{prefix}-\1"', body)
    body = body.replace(INK, "currentColor").replace(RULE, "var(--rule)").replace(PAPER, "var(--paper)")
    body = body.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, system-ui, sans-serif")
    return f'<svg {view_box.group(0) if view_box else ""} aria-hidden="true" focusable="false">{body}'


def bar(
    axis: Axes, row: float, value: float, colour: str, *, solid: bool, left: float = 0.0, height: float = 0.62
) -> None:
    """A horizontal bar from ``left``: solid (measured), or hatched in its own colour (predicted).

    Hatched bars are not filled: matplotlib's SVG patterns have no transparency, a pale face would swallow its hatch.
    """
    patches = axis.barh(row, value, left=left, height=height, color=colour if solid else "none", zorder=2)
    if not solid:
        for patch in patches:
            patch.set(edgecolor=colour, hatch=HATCH, linewidth=0.8)


def end_label(axis: Axes, text: str, x: float, y: float) -> None:
    """Text just right of a bar's end."""
    axis.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=8)


def plain_log_ticks(axis: Axis) -> None:
    """Ticks of a log axis at 1, 10, 100, written out."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def ratio_axis(axis: Axes, which: str, low: float, high: float) -> None:
    """A log axis for ratios, with ticks at plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    steps = (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
    target = axis.xaxis if which == "x" else axis.yaxis
    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    (axis.set_xlim if which == "x" else axis.set_ylim)(low, high)
    target.set_major_locator(FixedLocator([step for step in steps if low <= step <= high]))
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    target.set_minor_locator(NullLocator())
    target.set_minor_formatter(NullFormatter())
