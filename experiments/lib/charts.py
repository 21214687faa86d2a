"""Curves of a run and points of systems as SVG text for a page, in the colours around them."""

import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lib.pictures import REWARDS, column, smooth

INK = "#010203"  # placeholder that `svg` replaces by the text colour of the page
_STYLE = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    "svg.fonttype": "none",  # text stays text: small, and in the font of the page
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


@dataclass(frozen=True)
class Chart:
    """Curves of metrics against the step.

    lines, dots: name of a metric -> label; `dots` are drawn as points. top: limit of the y axis.
    """

    title: str
    lines: Mapping[str, str]
    dots: Mapping[str, str] | None = None
    top: float | None = None
    log: bool = False


def chart_svg(chart: Chart, metrics: Sequence[Mapping]) -> str:
    """One picture; "" if the metrics have no values for it."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": chart.title}):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for name, label in chart.lines.items():
            steps, values = column(metrics, name)
            if steps:
                (drawn,) = axes.plot(*smooth(metrics, name), label=label)
                axes.plot(steps, values, color=drawn.get_color(), alpha=0.25, linewidth=0.7)
        for name, label in (chart.dots or {}).items():
            steps, values = column(metrics, name)
            if steps:
                axes.plot(steps, values, "o-", markersize=3, linewidth=0.7, label=label)
        if not axes.lines:
            return ""
        axes.set(title=chart.title, xlabel="step")
        if chart.log:
            axes.set_yscale("symlog", linthresh=1e-6)
        else:
            axes.set_ylim(min(0.0, axes.dataLim.y0), chart.top)  # r3 can be negative
        axes.legend(frameon=False, fontsize=8)
        return svg(figure, chart.title)


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points that no other beats: none has a smaller x and a y as large, or a
    larger y and an x as small; by x."""
    best: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    return best


def frontier_svg(title: str, points: Mapping[str, tuple[float, float]]) -> str:
    """Systems as points (tokens of the reader, score), and a line through those that no other
    beats; "" without points."""
    if not points:
        return ""

    def draw(axes: Axes) -> None:
        for name, (tokens, score) in points.items():
            axes.plot(tokens, score, "o", markersize=5, label=name)
        line = [points[name] for name in frontier(points)]
        axes.plot(*zip(*line, strict=True), "--", color="gray", linewidth=0.8, zorder=0)
        axes.set(title=title, xlabel="tokens given to the reader for a question", ylabel="score")
        axes.set_xscale("symlog", linthresh=10)
        axes.legend(frameon=False, fontsize=8)

    return _draw_svg(title, draw)


def lengths_svg(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A line a system through (tokens of the stream, score); "" without a system of two lengths."""
    if max(map(len, lines.values()), default=0) < 2:
        return ""

    def draw(axes: Axes) -> None:
        for name, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), "o-", markersize=4, label=name)
        axes.set(title=title, xlabel="tokens of the stream", ylabel="score", xscale="log")
        axes.legend(frameon=False, fontsize=8)

    return _draw_svg(title, draw)


def _draw_svg(title: str, draw: Callable[[Axes], None]) -> str:
    """A picture with a score from 0 to 1 on its y axis."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_ylim(-0.02, 1.05)
        return svg(figure, title)


def svg(figure: Figure, title: str) -> str:
    """The figure as an svg element with the width and the text colour of the element around it."""
    buffer = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    # Ids are only unique within a picture, and a page has many pictures.
    mark = f"c{zlib.crc32(title.encode()):08x}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{mark}", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def run_charts(metrics: Sequence[Mapping]) -> list[Chart]:
    """The charts that the report draws from metrics.jsonl."""
    names = dict.fromkeys(name for line in metrics for name in line)
    prefix = "validation_r1_"
    sources = {
        name: name.removeprefix(prefix).removeprefix("synthetic_")
        for name in names
        if name.startswith(prefix)
    }
    rewards = [
        Chart(label, {name: "training"}, {f"validation_{name}": "validation"}, top=1.02)
        for name, label in REWARDS.items()
    ]
    return rewards + [
        Chart("exact entries", {"exact": "training"}, {"validation_exact": "validation"}, top=1.02),
        Chart("r1 of each source, validation", {}, sources, top=1.02),
        Chart("calls a step", {"calls": "made", "ok_calls": "executed"}),
        Chart("tokens of a step", {"response_tokens": "response", "prompt_tokens": "prompt"}),
        Chart("tokens of an episode", {"memory_tokens": "memory", "chunk_tokens": "chunks"}),
        Chart("entropy, nats a token", {"entropy": "entropy"}),
        Chart("norms", {"grad_norm": "gradient", "update_norm": "update"}),
        Chart("advantages: groups", {"groups": "all", "zero_variance": "without a difference"}),
        Chart(
            "sampler against learner, log-prob gap",
            {"logp_gap_mean": "mean", "logp_gap_max": "largest"},
            log=True,
        ),
        Chart("clipping", {"clip_fraction": "share clipped", "approx_kl": "approximate KL"}),
        Chart("responses cut by their limit", {"unfinished": "share"}, top=1.02),
    ]
