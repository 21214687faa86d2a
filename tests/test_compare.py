"""Runs beside each other, one memory read in many ways, and the table of lengths."""

import json
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.compare import compare_table, matrix, parse_runs, wanted_rows
from experiments.length import length_table, measured
from experiments.lib.measure import by_source
from experiments.lib.pictures import draw_matrix, draw_sweep
from experiments.lib.results import Results
from experiments.lib.systems import Run, System, check_reading
from experiments.sweep import read_again, summarise, sweep, sweep_table
from memalpha.data import synthetic
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.tools import format_call

PNG = b"\x89PNG\r\n\x1a\n"
ABOUT = {"systems": {"w": {}}, "sources": {}}


def rows(source, r1, held=10):
    return [
        {"source": source, "instance": f"{source}{n}", "r1": value}
        | {"memory_tokens": held, "reader_tokens": held / 2}
        for n, value in enumerate(r1)
    ]


@pytest.fixture
def result():
    return matrix(
        {
            "first": rows("a", [0.0, 1.0]) + rows("b", [0.5, 0.5], 30),
            "second": rows("a", [0.25, 1.0]) + rows("b", [0.75, None], 50),
        }
    )


def test_the_matrix_by_hand(result):
    first, second = result["runs"]["first"], result["runs"]["second"]
    assert result["sources"] == ["a", "b"]
    assert first["r1"]["a"] == [0.5, 0.0, 1.0]
    assert first["r1"]["mean"][0] == 0.5 and first["difference"] is None
    assert second["r1"]["b"] == [0.75, None, None]  # one instance is judged: no interval
    assert second["r1"]["mean"][0] == (0.625 + 0.75) / 2
    # Instance by instance: 0.25 and 0 on a, 0.25 on b.
    assert second["difference"][0] == (0.125 + 0.25) / 2
    assert (first["memory_tokens"], second["memory_tokens"]) == (20, 30)
    assert (first["reader_tokens"], second["reader_tokens"]) == (10, 15)


def test_a_difference_is_of_the_same_instances():
    # The instances differ much, the runs always by as much: the interval knows it.
    made = matrix({"x": rows("a", [0.0, 0.5, 0.9]), "y": rows("a", [0.1, 0.6, 1.0])})
    low, high = made["runs"]["x"]["r1"]["a"][1:]
    assert high - low > 0.5
    assert made["runs"]["y"]["difference"] == pytest.approx([0.1, 0.1, 0.1])
    apart = matrix({"x": rows("a", [0.0]), "y": rows("b", [0.1, 0.2])})
    assert apart["runs"]["y"]["difference"] is None and apart["runs"]["y"]["r1"]["a"] is None


def test_the_matrix_as_a_table_and_a_picture(result, tmp_path):
    table = compare_table("t", result, {"first": "a, b", "second": "b"})
    assert table.heads == ("run", "a", "b", "Avg.", "difference to the first", "memory tokens")
    assert table.rows[0][:3] == ("first", "0.500 [0.000, 1.000]", "0.500 [0.500, 0.500]")
    assert table.rows[1][2] == "0.750" and table.rows[1][-2:] == ("0.188", "30")
    assert table.rows[0][-2] == "" and table.notes[1] == "second was trained on b."
    empty = matrix({"x": rows("a", [None]), "y": rows("b", [0.5])})
    for made in (result, empty):
        assert draw_matrix(tmp_path, made).read_bytes().startswith(PNG)


def test_runs_are_named():
    assert parse_runs(["a=runs/x", "b=runs/y=z"]) == {"a": "runs/x", "b": "runs/y=z"}
    for wrong in (["runs/x"], ["a="], ["=x"], ["a=x", "a=y"], ["a/b=x"], []):
        with pytest.raises(ValueError, match="--runs"):
            parse_runs(wrong)


def test_runs_are_read_alike(micro):
    one = Run(None, None, micro.env)
    other = replace(one, env=micro.env.replace(top_k=3))
    check_reading({"a": one, "b": one})
    with pytest.raises(ValueError, match="a and b are read in different ways .*top_k: 20 and 3"):
        check_reading({"a": one, "b": other})


@pytest.fixture(scope="module")
def episodes(micro):
    """Memories that hold every note."""
    instances = synthetic.generate_many(["facts", "events"], "test", 2, chunks=6)

    def respond(turn):
        notes = turn.instance.metadata["notes"][turn.chunk]
        calls = [{"memory_type": n["memory"], "content": n["content"]} for n in notes]
        return "\n".join(format_call("new_memory_insert", call, "qwen3") for call in calls)

    return run_episodes(micro.env, instances, scripted_writer(micro.env, respond))


def test_a_memory_read_again_in_the_same_way_says_the_same(micro, episodes):
    before = [e.r1 for e in episodes]
    again = read_again(micro.env, episodes)
    assert [e.answers for e in again] == [e.answers for e in episodes]
    fewer = read_again(micro.env.replace(top_k=1), episodes)
    assert [e.r1 for e in again] == before == [e.r1 for e in episodes]  # which stay as they are
    assert [e.memory_tokens for e in fewer] == [e.memory_tokens for e in episodes]
    assert sum(a.tokens for e in fewer for a in e.answers) < sum(
        a.tokens for e in again for a in e.answers
    )


@pytest.fixture
def swept(micro, episodes, tmp_path):
    """A function (readings) -> how often the writer wrote; rows go to tmp_path."""
    run, written = Run(None, ConfigDict({"max_failed_share": 0.1}), micro.env), []
    sources = by_source(episodes)
    instances = {source: [e.instance for e in some] for source, some in sources.items()}

    def write(some, clock, on_chunk):
        written.append(some)
        return [e for e in episodes if e.instance in some]

    def sweep_once(*readings, batch=1):
        written.clear()
        with ExitStack() as stack:
            held = {
                (name, k): stack.enter_context(Results(tmp_path / f"{name}-{k}", {"k": k} | ABOUT))
                for name, k in readings
            }
            sweep(run, "w", System(write, {}), instances, held, batch)
        rows = {r: wanted_rows(tmp_path / f"{r[0]}-{r[1]}", "w", instances) for r in readings}
        return len(written), rows

    return sweep_once


def test_the_sweep_has_a_row_a_reading(micro, episodes, swept, tmp_path):
    wrote, rows = swept(("bm25", 1), ("bm25", 20))
    assert wrote == len(episodes)  # once each, whatever the number of readings
    results = summarise(rows)
    assert [(r["retriever"], r["top_k"]) for r in results] == [("bm25", 1), ("bm25", 20)]
    assert results[1]["r1"]["mean"][0] == pytest.approx(np.mean([e.r1 for e in episodes]))
    assert results[0]["memory_tokens"] == results[1]["memory_tokens"]
    assert results[0]["reader_tokens"] < results[1]["reader_tokens"]
    assert results[0]["difference"] is None and results[1]["difference"] is not None
    table = sweep_table("t", results)
    last = ("Avg.", "difference to the first", "reader tokens")
    assert table.heads == ("retriever", "top k", "facts", "events", *last)
    assert table.rows[1][:2] == ("bm25", "20")
    assert table.rows[1][4].startswith(f"{results[1]['r1']['mean'][0]:.3f} [")
    assert draw_sweep(tmp_path, results).read_bytes().startswith(PNG)
    with pytest.raises(ValueError, match="top_k"):
        swept(("bm25", 0))


def test_a_sweep_goes_on_where_it_was_stopped(episodes, swept, tmp_path):
    _, whole = swept(("bm25", 1), ("bm25", 5))
    assert swept(("bm25", 1), ("bm25", 5)) == (0, whole)
    path = tmp_path / "bm25-5" / "instances.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed in the midst of its last row
    wrote, again = swept(("bm25", 1), ("bm25", 5))
    assert wrote == 1

    def lasting(rows):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert {r: lasting(x) for r, x in again.items()} == {r: lasting(x) for r, x in whole.items()}
    wrote, more = swept(("bm25", 1), ("bm25", 5), ("bm25", 2))  # another k: written once more
    assert wrote == len(episodes) and len(more["bm25", 2]) == len(episodes)


def test_the_table_of_lengths():
    mean = {"chunk_tokens": 200.0, "memory_tokens": 50.0, "r1": 0.5, "r2": 0.75}
    both = {"synthetic_facts": {"r1": 0.25}, "synthetic_story": {"r1": 0.75}, "mean": mean}
    one = {"synthetic_facts": {"r1": 1.0}, "mean": mean | {"r1": 1.0, "chunk_tokens": 4e5}}
    table = length_table(
        [
            {"name": "1 x", "chunks": 2, "seconds_a_chunk": 0.0123, "rows": both},
            {"name": "400000 tokens", "chunks": 7000, "seconds_a_chunk": 0.02, "rows": one},
        ]
    )
    assert table.rows == (
        ("1 x", "2", "200", "0.250", "0.750", "0.500", "0.750", "0.25", "12"),
        ("400000 tokens", "7000", "400000", "1.000", "", "1.000", "0.750", "0.00", "20"),
    )


def test_lengths_of_the_same_writer_and_settings_are_not_measured_twice(tmp_path, capsys):
    path, of = tmp_path / "length.json", {"writer": "a", "questions": 3}
    assert measured(path, of) == {}
    rows = [{"name": "1 x", "of": of}, {"name": "13 x", "of": of | {"writer": "b"}}, {"name": "2"}]
    path.write_text(json.dumps(rows))
    assert measured(path, of) == {"1 x": rows[0]}
    path.write_text(json.dumps(rows)[:-9])
    assert measured(path, of) == {} and "made anew" in capsys.readouterr().out
