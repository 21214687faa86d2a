"""Pictures and text for people: learning curves, the results table, one episode as text."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from rich.table import Table

from experiments.lib.workdir import read_metrics
from memalpha.episode import Episode

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (after the choice of a back end without a screen)

REWARDS = {
    "r1": "r1 correctness",
    "r2": "r2 call format",
    "r3": "r3 compression",
    "r4": "r4 content",
}
LEGEND = (
    "r1: share of the questions answered right from the memory, its mean over sources and that of"
    " each; r2: share of the calls that were executed; r3: 1 - tokens of the memory / tokens of the"
    " text; r4: share of the calls whose content fits its memory; exact: share of stored contents"
    " whose numbers, dates and names the writer had read; memory: its tokens"
)
WINDOW = 10  # steps of the running mean


def draw_curves(workdir: Path, title: str) -> Path:
    """curves.png: each reward, calls and lengths, entropy and the sampler's gap, against steps."""
    lines = read_metrics(workdir / "metrics.jsonl")
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    for name, label in REWARDS.items():
        (drawn,) = axes[0].plot(*smooth(lines, name), label=label)
        x, y = column(lines, f"validation_{name}")
        axes[0].plot(x, y, "o", color=drawn.get_color(), markersize=4)
    axes[0].set(title="Rewards (lines: training, dots: validation)", ylim=(-0.02, 1.02))
    for name, label in (
        ("calls", "calls a step"),
        ("ok_calls", "of them executed"),
    ):
        axes[1].plot(*smooth(lines, name), label=label)
    right = axes[1].twinx()
    right.plot(*smooth(lines, "response_tokens"), color="gray", label="response tokens (right)")
    right.set(ylim=(0, None))
    right.legend(loc="lower right", frameon=False)
    axes[1].set(title="Calls and lengths", ylim=(0, None))
    for name, label in (("entropy", "entropy, nats a token"), ("grad_norm", "gradient norm")):
        axes[2].plot(*smooth(lines, name), label=label)
    axes[2].plot(*smooth(lines, "logp_gap_mean"), label="sampler - learner log-prob gap")
    axes[2].set(title="Diagnostics", yscale="symlog", ylim=(0, None))
    axes[2].set_yscale("symlog", linthresh=0.1)
    for ax in axes:
        ax.set_xlabel("step")
        ax.grid(alpha=0.3)
        ax.legend(loc="lower left" if ax is axes[1] else "best", frameon=False)
    figure.suptitle(title)
    path = workdir / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def draw_lengths(workdir: Path, results: Sequence[Mapping]) -> Path:
    """length.png: r1 and time a chunk against the length of the stream (see experiments.length)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    plot_lengths(left, results)
    left.set(title="r1 against length")
    tokens = [result["rows"]["mean"]["chunk_tokens"] for result in results]
    right.plot(tokens, [1e3 * result["seconds_a_chunk"] for result in results], "o-", color="gray")
    right.set(title="time", ylim=(0, None), xscale="log", ylabel="ms a chunk (all rows)")
    left.legend(frameon=False)
    right.grid(alpha=0.3)
    path = workdir / "length.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def plot_lengths(ax: plt.Axes, results: Sequence[Mapping]) -> None:
    """r1 of each source against the tokens of its stream; the mean where all sources were read."""
    sources = sorted({source for result in results for source in result["rows"]} - {"mean"})
    for source in sources:
        rows = [result["rows"][source] for result in results if source in result["rows"]]
        tokens, r1 = [row["chunk_tokens"] for row in rows], [row["r1"] for row in rows]
        ax.plot(tokens, r1, "o-", label=source.removeprefix("synthetic_"))
    whole = [result["rows"]["mean"] for result in results if result["rows"].keys() >= {*sources}]
    if len(sources) > 1:
        tokens, r1 = [row["chunk_tokens"] for row in whole], [row["r1"] for row in whole]
        ax.plot(tokens, r1, "o--", color="black", label="mean")
    lengths = sorted({round(result["rows"]["mean"]["chunk_tokens"]) for result in results})
    ax.set(ylim=(0, 1.05), xscale="log", xlabel="tokens of the stream")
    ax.set_xticks(lengths, [f"{tokens:,}" for tokens in lengths])
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3)


def draw_sweep(folder: Path, results: Sequence[Mapping]) -> Path:
    """sweep.png: r1 against top k, and against the tokens of the reader (experiments.sweep)."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    retrievers = dict.fromkeys(result["retriever"] for result in results)
    for retriever, form in zip(retrievers, itertools.cycle(("o-", "x--")), strict=False):
        points = sorted(
            (r["top_k"], i) for i, r in enumerate(results) if r["retriever"] == retriever
        )
        r1 = [(results[i]["r1"]["mean"] or [np.nan])[0] for _, i in points]
        read = [results[i]["reader_tokens"] for _, i in points]
        axes[0].plot(
            [k for k, _ in points], r1, form, label=retriever
        )  # other markers: curves may overlap
        axes[1].plot(read, r1, form, label=retriever)
    ks = sorted({result["top_k"] for result in results})
    axes[0].set(title="r1, mean over sources", xlabel="top k", ylim=(0, 1.05), xscale="log")
    axes[0].set_xticks(ks, ks)
    axes[0].set_xticks([], minor=True)
    axes[1].set(title="the same", xlabel="tokens given to the reader")
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    path = folder / "sweep.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def draw_matrix(folder: Path, result: Mapping) -> Path:
    """compare.png: r1 of each run (row) on each source (column), see experiments.compare."""
    columns, runs = [*result["sources"], "mean"], result["runs"]
    cells = [[(run["r1"][c] or [np.nan])[0] for c in columns] for run in runs.values()]
    size = (2.5 + 1.1 * len(columns), 1.6 + 0.5 * len(runs))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    ax.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (row, place), value in np.ndenumerate(np.array(cells)):
        text = "" if np.isnan(value) else f"{value:.2f}"
        ax.text(place, row, text, ha="center", va="center", color="k" if value > 0.6 else "w")
    ax.set_xticks(range(len(columns)), [c.removeprefix("synthetic_") for c in columns], rotation=30)
    ax.set_yticks(range(len(runs)), list(runs))
    ax.set_title("r1 of each run on each source")
    path = folder / "compare.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def column(lines: Sequence[Mapping], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; steps without it are skipped."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in points], [value for _, value in points]


def smooth(lines: Sequence[Mapping], name: str) -> tuple[list[int], np.ndarray]:
    """Steps and running means of one metric over the last WINDOW values, or fewer at the start."""
    steps, values = column(lines, name)
    values = np.asarray(values, float)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    first = np.maximum(np.arange(len(values)) - WINDOW + 1, 0)
    last = np.arange(len(values)) + 1
    return steps, (sums[last] - sums[first]) / (last - first)


def results_table(title: str, results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """One row per system: mean r1, r1 of each source, the other rewards, size of the memory."""
    sources = [name for name in next(iter(results.values())) if name != "mean"]
    table = Table(title=title)
    table.add_column("writer")
    short = [source.removeprefix("synthetic_") for source in sources]
    for name in ("r1", *short, "r2", "r3", "r4", "exact", "memory"):
        table.add_column(name, justify="right")
    for system, rows in results.items():
        mean = rows["mean"]
        cells = [mean["r1"], *(rows[source]["r1"] for source in sources)]
        cells += [mean.get(name, float("nan")) for name in ("r2", "r3", "r4", "exact")]
        memory_tokens = f"{mean['memory_tokens']:.0f}"
        table.add_row(system, *("" if np.isnan(c) else f"{c:.3f}" for c in cells), memory_tokens)
    return table


def describe_episode(title: str, episode: Episode) -> str:
    """One episode as plain text: chunks and responses, the final memory, and the questions."""
    parts = [f"{'=' * 20} {title} {'=' * 20}"]
    for step in episode.steps:
        parts.append(f"--- chunk {step.chunk}\n{episode.instance.chunks[step.chunk]}")
        parts.append(f"--- response (r2 {step.r2:.2f}, r4 {step.r4:.2f})\n{step.text.strip()}")
        marks = [
            f"  {outcome.name.lower()}{'' if fit else ', unfit'}: {call.error or call.arguments}"
            for call, outcome, fit in zip(step.calls, step.outcomes, step.fit, strict=True)
        ]
        parts.append("--- outcomes\n" + "\n".join(marks or ["  no call"]))
    view = episode.view
    parts.append(f"--- memory at the end ({view.tokens} of {episode.chunk_tokens} tokens)")
    parts.append(f"core: {view.core or '(empty)'}")
    for name in ("semantic", "episodic"):
        entries = [f"  [{e.id}] {e.text}  (chunk {e.written_at})" for e in getattr(view, name)]
        parts.append(f"{name}:\n" + "\n".join(entries or ["  (empty)"]))
    parts.append(f"--- questions (r1 {episode.r1:.2f})")
    for question, answer, score in zip(
        episode.instance.questions, episode.answers, episode.scores, strict=True
    ):
        gold = "; ".join(question.answers)
        parts.append(
            f"  {score:.2f}  {question.question!r}\n        {answer.text!r} (gold: {gold})"
        )
    return "\n".join(parts) + "\n"
