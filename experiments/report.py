"""The report of a run: report.html in its workdir, one file without external files.

    python -m experiments.report --workdir=runs/tiny

Reads only files of the workdir, so it can be written at any time during a run. `run_experiment.py`
writes it at the end.
"""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from experiments.lib import page
from experiments.lib.charts import Chart, chart_svg, frontier_svg, run_charts
from experiments.lib.command import command
from experiments.lib.judged import judge_notes
from experiments.lib.pictures import LEGEND
from experiments.lib.progress import CUT, WORRIES, worries
from experiments.lib.workdir import read_metrics
from experiments.tables import PUBLISHED
from memalpha.data.files import write_text
from memalpha.paths import user_path

RAW = (  # files that the report links to if they exist
    "config.json", "summary.json", "metrics.jsonl", "timing.jsonl", "warm_start.jsonl",
    "starts.jsonl", "memory.txt", "timeline.html", "curves.png", "length.json", "length.png",
)  # fmt: skip
SHARES, SIZES = ("r2", "r3", "r4", "exact"), ("memory_tokens", "reader_tokens")
TRAINED = "after RL"  # the row of the trained writer, which is highlighted
COUNTERPART = {  # row -> row of the paper, and its tables; later tables take precedence
    TRAINED: ("trained", "21"),
    "untrained (warm start)": ("untrained", "3"),
    "RAG-Top2": ("rag_top2", "21"),
}
OTHERS = f"{PUBLISHED['source']} Model, reader and instances are others there."
MAX_MEMORY_TEXT = 40_000  # characters of memory.txt shown on the page


def write_report(folder: Path) -> Path:
    """Writes report.html from the files that the workdir has so far.

    Raises ValueError for a folder without a run, or if a file in it cannot be read.
    """
    folder = user_path(folder)
    config, summary = _json(folder / "config.json"), _json(folder / "summary.json")
    if config is None:
        raise ValueError(f"{folder} is no workdir of a run: it has no config.json")
    metrics = read_metrics(folder / "metrics.jsonl")
    starts = read_metrics(folder / "starts.jsonl")
    title = str(config.get("title", folder.name))
    parts = [
        f"<h1>{escape(title)}</h1>",
        _state(config, metrics, summary),
        _warnings(metrics),
        _results((summary or {}).get("results") or {}, folder),
        _frontier((summary or {}).get("results") or {}),
        _curves(folder, metrics),
        _examples(folder),
        _facts(config, summary, starts),
        _folded("Config", json.dumps(config, indent=1, sort_keys=True)),
        _raw(folder),
    ]
    text = page.page(title, "\n".join(filter(None, parts)), page.read("report.css"))
    return write_text(folder / "report.html", text)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _state(config: Mapping, metrics: Sequence[Mapping], summary: Mapping | None) -> str:
    steps = metrics[-1]["step"] + 1 if metrics else 0
    wanted = config.get("rl", {}).get("steps", 0)
    state = "Finished" if summary else "Not finished" if steps else "Warm start, or not begun"
    return f'<p class="soft">{state}: {steps} of {wanted} steps of reinforcement learning.</p>'


def _warnings(metrics: Sequence[Mapping]) -> str:
    """Warnings to be read before the curves; "" if there are none."""
    counts = {text: sum(bool(line.get(n)) for line in metrics) for n, text in WORRIES.items()}
    warnings = [f"{count} steps with {text}" for text, count in counts.items() if count]
    if metrics and CUT in worries(metrics[-1]):
        warnings.append(f"last step: {CUT}")
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<div class="warn"><b>Look at</b><ul>{items}</ul></div>' if warnings else ""


def _results(results: Mapping[str, Mapping[str, Mapping[str, float]]], folder: Path) -> str:
    if not results:
        return ""
    sources = [name for name in next(iter(results.values())) if name != "mean"]
    short = [source.removeprefix("synthetic_") for source in sources]
    heads = ["system", "r1", *short, *SHARES, *(s.replace("_", " ") for s in SIZES)]
    rows, note = [_row("th", heads)], f"{LEGEND}."
    ranked = sorted(results.items(), key=lambda item: -_or_zero(item[1]["mean"]["r1"]))
    for system, of_source in ranked:
        mean = of_source["mean"]
        values = [mean["r1"], *(of_source.get(source, {}).get("r1") for source in sources)]
        values += [mean.get(name) for name in SHARES]
        cells = [system, *(_figure(value, 3) for value in values)]
        cells += [_figure(mean.get(name), 0) for name in SIZES]
        rows.append(_row("td", cells, "best" if system == TRAINED else ""))
        figures = _published(system)
        if figures.keys() & sources:
            cells = ["the same, published", "", *(_figure(figures.get(s), 3) for s in sources)]
            rows.append(_row("td", cells + [""] * (len(heads) - len(cells)), "soft"))
            note = f"{LEGEND}. {OTHERS}"
    table = f"<table>{''.join(rows)}</table>"
    head = '<h2>Results on test instances</h2><div class="wide">'
    notes = "".join(
        f'<p class="soft">{escape(n)}</p>' for n in (note, *judge_notes(folder, sources))
    )
    return f"{head}{table}</div>{notes}"


def _frontier(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Score against the tokens of the reader, where the summary has both."""
    means = {name: rows["mean"] for name, rows in results.items()}
    points = {
        name: (mean["reader_tokens"], mean["r1"])
        for name, mean in means.items()
        if all(math.isfinite(mean.get(field, math.nan)) for field in ("reader_tokens", "r1"))
    }
    picture = frontier_svg("r1 against what the reader gets", points)
    return f'<div class="charts"><figure>{picture}</figure></div>' if picture else ""


def _published(system: str) -> dict[str, float]:
    """Source -> figure of the paper for this row of the table; empty if it has none."""
    name, numbers = COUNTERPART.get(system, ("", ""))
    figures: dict[str, float] = {}
    for table in (PUBLISHED[number] for number in numbers):
        figures |= zip(table["columns"], table["systems"][name]["perf"], strict=False)
    return figures


def _row(tag: str, cells: Sequence[str], kind: str = "") -> str:
    first = f"<{tag}>{escape(cells[0])}</{tag}>"
    rest = "".join(f'<{tag} class="number">{escape(cell)}</{tag}>' for cell in cells[1:])
    return f'<tr class="{kind}">{first}{rest}</tr>'


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _or_zero(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else 0.0


def _curves(folder: Path, metrics: Sequence[Mapping]) -> str:
    pictures = [chart_svg(chart, metrics) for chart in run_charts(metrics)]
    timing = read_metrics(folder / "timing.jsonl")
    stages = {name: name for name in ("write", "update", "retrieve", "render", "validate")}
    seconds = [line["step_seconds"] for line in timing]
    top = 3 * float(np.median(seconds)) if seconds else None  # the first steps compile
    pace = Chart("seconds a step", {"step_seconds": "all"} | stages, top=top)
    pictures.append(chart_svg(pace, timing))
    warm = read_metrics(folder / "warm_start.jsonl")
    pictures.append(chart_svg(Chart("warm start", {"loss": "loss"}), warm))
    figures = "".join(f"<figure>{picture}</figure>" for picture in pictures if picture)
    note = "Bold: running mean of ten steps; faint: each step."
    return (
        f'<h2>Curves</h2><p class="soft">{note}</p><div class="charts">{figures}</div>'
        if figures
        else ""
    )


def _examples(folder: Path) -> str:
    parts = []
    if (folder / "timeline.html").exists():
        link = '<a href="timeline.html">memory timeline</a>'
        parts.append(f"<p>Step through example episodes, before and after training: {link}.</p>")
    memory = folder / "memory.txt"
    if memory.exists():
        text = memory.read_text(encoding="utf-8")
        more = "\n[the rest is in memory.txt]" if len(text) > MAX_MEMORY_TEXT else ""
        parts.append(_folded("One episode as text", text[:MAX_MEMORY_TEXT] + more))
    return "<h2>Example episodes</h2>" + "".join(parts) if parts else ""


def _facts(config: Mapping, summary: Mapping | None, starts: Sequence[Mapping]) -> str:
    facts: dict[str, object] = {}
    if starts:
        last = starts[-1]
        facts["command"] = last["command"]
        facts["started"] = ", ".join(start["at"] for start in starts)
        facts["devices"] = f"{len(last['devices'])} × {last['devices'][0]}, {last['cores']} cores"
        facts["system"] = f"{last['platform']}, Python {last['python']}"
        facts["versions"] = ", ".join(f"{k} {v}" for k, v in last["versions"].items())
    facts["seed"] = config.get("seed")
    for name, text in (
        ("parameters", "parameters"),
        ("seconds", "seconds of the last start"),
        ("host_share", "share of a step on the host"),
    ):
        if summary and summary.get(name) is not None:
            value = summary[name]
            facts[text] = f"{value:,}" if isinstance(value, int) else f"{np.round(value, 3):g}"
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()
    )
    return f"<h2>What ran</h2><dl>{items}</dl>"


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _raw(folder: Path) -> str:
    links = [f'<a href="{name}">{name}</a>' for name in RAW if (folder / name).exists()]
    return f"<h2>Raw files</h2><p>{', '.join(links)}</p>"


def main(argv: list[str]) -> None:
    with command(argv):
        print(f"report {write_report(WORKDIR.value)}")


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    app.run(main)
