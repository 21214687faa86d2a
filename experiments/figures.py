"""The pictures of docs/results.md, from the files of finished runs; or `curves.png` of a run again.

    python -m experiments.figures --workdir=runs/tiny,runs/s1,runs/s2 --length=runs/tiny --out=docs/figures
    python -m experiments.figures --workdir=runs/tiny --curves

The first command writes seeds.png (r1 against steps, a line a run), systems.png (r1 of each system
as bars, a dot a run) and, with `--length`, length.png (r1 against the length of the stream, from
the length.json of `experiments.length`). It reads metrics.jsonl and summary.json. The second one
needs only config.json and metrics.jsonl, so it also works during a run.
"""  # noqa: E501 (a command is one line)

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from experiments.lib.command import command
from experiments.lib.pictures import column, draw_curves, plot_lengths, plt, smooth
from experiments.lib.progress import progress
from experiments.lib.workdir import read_metrics

PAPER = {"dpi": 110, "facecolor": "white"}  # opaque: readable on a light and on a dark page
TRAINED = ("after RL", "after RL, greedy")  # systems whose bars are highlighted


def draw_seeds(runs: Mapping[str, Sequence[Mapping]], path: Path) -> Path:
    """r1 against steps: `runs` maps the label of a run to the lines of its metrics.jsonl."""
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, lines in runs.items():
        (curve,) = ax.plot(*smooth(lines, "r1"), label=label)
        ax.plot(*column(lines, "validation_r1"), "o", color=curve.get_color(), markersize=5)
    ax.set(title="r1 (lines: training, mean of 10 steps; dots: validation)", xlabel="step")
    ax.set(ylabel="r1", ylim=(0, 1.02))
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", frameon=False)
    return save(figure, path)


def draw_systems(summaries: Sequence[Mapping], path: Path) -> Path:
    """r1 of each system on the test instances: a bar for the mean over the runs, a dot a run."""
    scores = system_scores(summaries)
    means = {system: float(np.mean(values)) for system, values in scores.items()}
    order = sorted(means, key=means.get)
    height = 1.2 + 0.4 * len(order)
    figure, ax = plt.subplots(figsize=(7, height), layout="constrained")
    colors = ["tab:blue" if system in TRAINED else "lightsteelblue" for system in order]
    ax.barh(range(len(order)), [means[system] for system in order], color=colors)
    for place, system in enumerate(order):
        values = scores[system]
        ax.plot(values, [place] * len(values), "o", color="black", markersize=3)
        ax.text(max(values) + 0.015, place, f"{means[system]:.2f}", va="center")
    ax.set_yticks(range(len(order)), order)
    ax.set(title="r1 on test instances (bar: mean, dots: runs)", xlabel="r1", xlim=(0, 1.1))
    ax.grid(alpha=0.3, axis="x")
    ax.set_axisbelow(True)
    return save(figure, path)


def system_scores(summaries: Sequence[Mapping]) -> dict[str, list[float]]:
    """System -> r1 of each run that measured it, the mean over its sources."""
    scores: dict[str, list[float]] = {}
    for summary in summaries:
        for system, rows in summary["results"].items():
            r1 = rows["mean"]["r1"]
            if math.isfinite(r1):
                scores.setdefault(system, []).append(r1)
    return scores


def draw_length(results: Sequence[Mapping], path: Path) -> Path:
    """r1 of each source, and their mean, against the length of the stream."""
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    plot_lengths(ax, results)
    ax.set(title="r1 against the length of the stream", ylabel="r1")
    ax.legend(frameon=False, ncols=2)
    return save(figure, path)


def save(figure: plt.Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **PAPER)
    plt.close(figure)
    return path


def run_labels(folders: Sequence[Path], summaries: Sequence[Mapping]) -> list[str]:
    """ "seed N" for each run, or the name of its folder where two runs have the same seed."""
    seeds = [summary["seed"] for summary in summaries]
    if max(Counter(seeds).values(), default=0) > 1:
        return [str(folder) for folder in folders]
    return [f"seed {seed}" for seed in seeds]


def read_json(path: Path, advice: str, keys: Sequence[str] = ()) -> Any:
    """The JSON of one file. Raises ValueError where it is missing, is no JSON, or lacks a key."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {advice}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {advice}") from None
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{path} has no {key!r}: {advice}")
    return value


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. Raises ValueError where the file is missing."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: give the workdir of a run that has begun to train"
        )
    return read_metrics(path)


def read_lengths(place: Path) -> list[dict[str, Any]]:
    """The results of `experiments.length`: of its length.json, or of the one in a workdir.

    Raises ValueError where the file is missing or is not one that the command wrote.
    """
    path = place / "length.json" if place.is_dir() else place
    advice = "run python -m experiments.length --workdir=... first"
    results = read_json(path, advice)
    try:
        complete = all(r["rows"]["mean"]["chunk_tokens"] > 0 for r in results)
    except (TypeError, KeyError, IndexError):
        complete = False
    if not complete or not results:
        raise ValueError(f"{path} holds no results of experiments.length: {advice}")
    return results


def redraw_curves(folder: Path) -> Path:
    """curves.png in the folder of a run, from its config.json and metrics.jsonl."""
    config = read_json(folder / "config.json", "give the workdir of a run")
    read_steps(folder)
    return draw_curves(folder, str(config.get("title", folder.name)))


def draw_all(folders: Sequence[Path], length: str, out: Path) -> list[Path]:
    """Reads all files before it draws anything; returns the pictures."""
    advice = "the run has to finish first (run_experiment.py writes it at the end)"
    summaries = [
        read_json(folder / "summary.json", advice, ("seed", "results")) for folder in folders
    ]
    steps = [read_steps(folder) for folder in folders]
    runs = dict(zip(run_labels(folders, summaries), steps, strict=True))
    results = read_lengths(Path(length)) if length else []
    pictures = [
        lambda: draw_seeds(runs, out / "seeds.png"),
        lambda: draw_systems(summaries, out / "systems.png"),
    ]
    if results:
        pictures.append(lambda: draw_length(results, out / "length.png"))
    paths = []
    with progress("figures", len(pictures)) as report:
        for draw in pictures:
            paths.append(draw())
            report(len(paths), str(paths[-1]))
    return paths


def main(argv: list[str]) -> None:
    args = flags.FLAGS
    folders = [Path(name) for name in args.workdir]
    with command(argv):
        if args.curves:
            with progress("curves", len(folders)) as report:
                for number, folder in enumerate(folders, start=1):
                    report(number, str(redraw_curves(folder)))
        else:
            draw_all(folders, args.length, Path(args.out))


def define_flags() -> None:
    flags.DEFINE_list("workdir", None, "Folders of runs, separated by commas.", required=True)
    flags.DEFINE_string("length", "", "Workdir or length.json of experiments.length; empty: none.")
    flags.DEFINE_string("out", "docs/figures", "Folder for the pictures.")
    flags.DEFINE_bool("curves", False, "Draw curves.png of each run again, and nothing else.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
