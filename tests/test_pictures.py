"""What a person looks at: curves, the table, an episode as text."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from experiments.lib.measure import by_source, summarise, table_rows
from experiments.lib.pictures import WINDOW, describe_episode, draw_curves, results_table, smooth
from experiments.main_job import which_example, widest_first
from memalpha.baselines import no_memory
from memalpha.data import synthetic
from memalpha.reading import run_baseline
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.tools import format_call

PNG = b"\x89PNG\r\n\x1a\n"


def line(step, **values):
    names = ("r1", "r2", "r3", "r4", "calls", "ok_calls", "response_tokens")
    names += ("entropy", "grad_norm", "logp_gap_mean")
    return {"step": step} | {name: 0.5 for name in names} | values


@pytest.fixture(scope="module")
def episodes(micro):
    instances = synthetic.generate_many(["facts", "events"], "train", 2, chunks=2)

    def respond(turn):
        content = turn.instance.metadata["notes"][turn.chunk][0]["content"]
        calls = [
            format_call("new_memory_insert", {"memory_type": m, "content": content}, "qwen3")
            for m in ("semantic", "diary")
        ]
        return "\n".join(calls) if turn.chunk == 0 else ""

    return run_episodes(micro.env, instances, scripted_writer(micro.env, respond))


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_curves_of_any_run_even_an_empty_one(tmp_path, steps):
    lines = [line(n, **({"validation_r1": 0.2} if n % 10 == 9 else {})) for n in range(steps)]
    text = "".join(json.dumps(x) + "\n" for x in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    path = draw_curves(tmp_path, "a title")
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(PNG)


def test_the_running_mean_by_hand():
    lines = [{"step": 2 * n, "r1": float(n)} for n in range(15)]
    steps, values = smooth(lines, "r1")
    assert steps == [2 * n for n in range(15)]
    assert values[:3] == pytest.approx([0.0, 0.5, 1.0])  # of what there is so far
    assert values[14] == pytest.approx(np.mean(range(15 - WINDOW, 15)))
    assert smooth(lines, "r9") == ([], pytest.approx(np.zeros(0)))


def rows(**systems):
    return {
        name: {
            "synthetic_facts": {"r1": r1, "memory_tokens": 9.0},
            "mean": {"r1": r1, "r3": 0.25, "memory_tokens": 12.6} | more,
        }
        for name, (r1, more) in systems.items()
    }


def test_the_table_has_a_row_a_system_and_blanks_where_nothing_is_said():
    results = rows(writer=(0.125, {"r2": 0.5, "r4": 0.75, "exact": 0.9}), silent=(float("nan"), {}))
    console = Console(width=120, file=io.StringIO())
    console.print(results_table("a title", results))
    text = console.file.getvalue()
    cells = [_cells(row) for row in text.splitlines()]
    assert ["writer", "r1", "facts", "r2", "r3", "r4", "exact", "memory"] in cells
    assert ["writer", "0.125", "0.125", "0.500", "0.250", "0.750", "0.900", "13"] in cells
    assert ["silent", "", "", "", "0.250", "", "", "13"] in cells
    assert "nan" not in text and "a title" in text


def _cells(row):
    return [cell.strip() for cell in row.strip("│┃ ").replace("┃", "│").split("│")]


def test_an_episode_as_text_shows_all_that_happened(episodes):
    episode = episodes[0]
    text = describe_episode("after training", episode)
    assert "after training" in text
    for chunk in episode.instance.chunks:
        assert chunk in text
    assert "  ok: " in text and "wrong_type" in text and "no call" in text
    (entry,) = episode.view.semantic
    assert f"[{entry.id}] {entry.text}  (chunk 0)" in text
    assert "core: (empty)" in text and "episodic:\n  (empty)" in text
    for question, answer in zip(episode.instance.questions, episode.answers, strict=True):
        assert repr(question.question) in text
        assert f"{answer.text!r} (gold: {question.answers[0]})" in text


def test_summary_of_episodes_by_hand(episodes):
    made = summarise(episodes)
    assert made["r1"] == pytest.approx(np.mean([e.r1 for e in episodes]))
    assert made["failed"] == 0
    assert made["calls"] == 1.0 and made["ok_calls"] == 0.5  # two, then none
    assert made["r2"] == 0.25  # one of two, then no call
    assert made["memory_tokens"] == np.mean([e.memory_tokens for e in episodes])
    assert made["unfinished"] == 0.0
    assert {k: len(v) for k, v in by_source(episodes).items()} == {
        "synthetic_facts": 2,
        "synthetic_events": 2,
    }
    table = table_rows(episodes)
    sources = [table["synthetic_facts"]["r1"], table["synthetic_events"]["r1"]]
    assert table["mean"]["r1"] == pytest.approx(np.mean(sources))
    assert summarise(by_source(episodes)["synthetic_facts"]) == table["synthetic_facts"]


def test_an_unjudged_episode_enters_no_mean_of_r1(episodes):
    lost = replace(episodes[0], r1=float("nan"))
    made = summarise([lost, *episodes[1:]])
    assert made["failed"] == 1
    assert made["r1"] == pytest.approx(np.mean([e.r1 for e in episodes[1:]]))
    assert math.isnan(summarise([lost])["r1"])


def test_a_baseline_has_no_row_for_steps(micro, episodes):
    made = summarise(run_baseline(micro.env, [e.instance for e in episodes], no_memory.recall))
    assert "r2" not in made and "calls" not in made
    assert made["r1"] == made["memory_tokens"] == made["reader_tokens"] == 0


def test_the_example_is_the_one_that_gained_most_and_says_so(episodes):
    one, two = episodes[0], episodes[-1]
    assert one.instance.source != two.instance.source
    shown = {
        "before": [replace(one, r1=0.5), replace(two, r1=0.25)],
        "after": [replace(one, r1=0.5), replace(two, r1=0.75)],
    }
    sorted_ = widest_first(shown)
    assert {name: [e.r1 for e in some] for name, some in sorted_.items()} == {
        "before": [0.25, 0.5],
        "after": [0.75, 0.5],
    }
    said = which_example(sorted_)
    assert "Of 2 test instances" in said and f"({two.instance.source})" in said
    shown["after"][1] = replace(two, r1=math.nan)  # nobody judged it
    assert [e.r1 for e in widest_first(shown)["before"]] == [0.5, 0.25]
