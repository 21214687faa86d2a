"""The pictures of the docs, from small hand-written files of runs."""

import json
import sys

import pytest
from absl import flags

from experiments import figures
from experiments.lib.pictures import plot_lengths, plt

PNG = b"\x89PNG\r\n\x1a\n"


def write_run(folder, seed, after=0.8):
    folder.mkdir()
    names = ("r1", "r2", "r3", "r4", "calls", "ok_calls", "response_tokens")
    names += ("entropy", "grad_norm", "logp_gap_mean")
    lines = [{"step": n} | dict.fromkeys(names, 0.5) | {"validation_r1": 0.25} for n in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {
        "no memory": {"mean": {"r1": 0.0}},
        "after RL": {"mean": {"r1": after}},
        "failed": {"mean": {"r1": float("nan")}},
    }
    summary = {"seed": seed, "results": results}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.json").write_text(json.dumps({"title": "a title"}))
    return folder


def length(tokens, **r1):
    mean = {"chunk_tokens": tokens, "r1": sum(r1.values()) / len(r1)}
    rows = {f"synthetic_{k}": {"chunk_tokens": tokens, "r1": v} for k, v in r1.items()}
    return {"name": f"{tokens}", "rows": rows | {"mean": mean}}


LENGTHS = [length(100, facts=1.0, story=0.5), length(900, facts=0.8, story=0.25)]


def test_the_three_pictures(tmp_path):
    runs = [write_run(tmp_path / name, seed) for seed, name in enumerate("ab")]
    (runs[0] / "length.json").write_text(json.dumps(LENGTHS))
    paths = figures.draw_all(runs, str(runs[0]), tmp_path / "out" / "figures")
    assert [path.name for path in paths] == ["seeds.png", "systems.png", "length.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths)
    assert len(figures.draw_all(runs, "", tmp_path / "out")) == 2


def test_scores_of_the_systems_by_hand(tmp_path):
    runs = [write_run(tmp_path / "a", 0, 0.75), write_run(tmp_path / "b", 1, 0.5)]
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    scores = figures.system_scores(summaries)
    assert scores == {"no memory": [0.0, 0.0], "after RL": [0.75, 0.5]}  # a failed one has no bar


def test_runs_of_one_seed_are_told_apart_by_their_folders(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    assert figures.run_labels(folders, [{"seed": 0}, {"seed": 1}]) == ["seed 0", "seed 1"]
    assert figures.run_labels(folders, [{"seed": 0}, {"seed": 0}]) == [str(f) for f in folders]


def test_a_mean_over_fewer_sources_is_not_part_of_the_curve_of_means():
    figure, ax = plt.subplots()
    plot_lengths(ax, [*LENGTHS, length(5000, facts=0.9)])
    curves = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    plt.close(figure)
    assert curves["facts"] == [[100, 1.0], [900, 0.8], [5000, 0.9]]
    assert curves["mean"] == [[100, 0.75], [900, pytest.approx(0.525)]]


def test_curves_of_a_run_are_drawn_again(tmp_path):
    run = write_run(tmp_path / "a", 0)
    (run / "summary.json").unlink()  # not needed: the run may still be going
    assert figures.redraw_curves(run).read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("metrics.jsonl", None, r"a/metrics\.jsonl does not exist: give the workdir"),
        ("summary.json", None, r"a/summary\.json does not exist: the run has to finish"),
        ("summary.json", "{", r"a/summary\.json is not JSON"),
        ("summary.json", '{"seed": 0}', r"a/summary\.json has no 'results'"),
        ("length.json", None, r"a/length\.json does not exist: run python -m experiments\.length"),
        ("length.json", "[]", r"a/length\.json holds no results of experiments\.length"),
        ("length.json", '[{"rows": 3}]', r"a/length\.json holds no results"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, text, message):
    run = write_run(tmp_path / "a", 0)
    (run / "length.json").write_text(json.dumps(LENGTHS))
    (run / name).unlink() if text is None else (run / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        figures.draw_all([run], str(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    flags.DEFINE_list("workdir", None, "", flag_values=flags.FLAGS)
    flags.DEFINE_bool("curves", False, "", flag_values=flags.FLAGS)
    flags.FLAGS(["figures", f"--workdir={tmp_path}", "--curves"])
    with pytest.raises(SystemExit, match=r"config\.json does not exist: give the workdir of a run"):
        figures.main(sys.argv)
