"""The evaluation command: what it measures, what it refuses, and that a kill costs nothing."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from configs import tiny
from experiments.evaluate import (
    describe,
    differences_overview,
    evaluate,
    list_work,
    results_overview,
)
from experiments.lib.failures import ReaderFailureError
from experiments.lib.results import INSTANCES, QUESTIONS, Results, ResultsError, read_lines
from experiments.lib.sources import describe_source, known_sources, load_sources
from experiments.lib.systems import (
    BASELINES,
    System,
    describe_reading,
    open_systems,
    open_workdir,
    trained_system,
)
from memalpha.reading import run_baseline
from memalpha.rollout import run_episodes, scripted_writer

ROOT = Path(__file__).parent.parent
SOURCES = ["synthetic_facts", "synthetic_updates"]
# Kills a command at the n-th time that it opens a file to append to.
KILLER = """
import os, runpy, signal, sys
ending, number, module = sys.argv[1], int(sys.argv[2]), sys.argv[3]
seen = 0
def hook(event, arguments):
    global seen
    if event == "open" and str(arguments[0]).endswith(ending) and arguments[1] == "a":
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.argv = [module, *sys.argv[4:]]
sys.path.insert(0, os.getcwd())
runpy.run_module(module, run_name="__main__")
"""


@pytest.fixture(scope="module")
def workdir(micro, tmp_path_factory):
    """What baselines need of a run: its config and tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.get_config(
        "prompt.tokens=320,prompt.response_tokens=128,rl.instances=2,rl.rollouts=1"
    )
    (folder / "config.json").write_text(config.to_json())
    micro.tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def run(workdir):
    return open_workdir(workdir)


def measure(run, out, systems, count, names=SOURCES, batch=2):
    sources = load_sources(run.config, names, "test", count)
    about = {name: describe_source(run.config, name, "test", 0) for name in names}
    with Results(out, describe(run, "test", systems, about)) as results:
        evaluate(run.config, systems, sources, results, batch)


def rows(folder, name):
    """Without what a clock says."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_lines(folder / name)]


def same_rows(left, right, name):
    a, b = (sorted(map(json.dumps, rows(folder, name))) for folder in (left, right))
    return a == b


def test_a_killed_command_continues_and_nothing_is_lost_or_doubled(workdir, run, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    names = ["store_everything", "no_memory"]
    measure(run, whole, open_systems(names, run, None, 2), 5)
    command = [
        f"--workdir={workdir}", f"--systems={','.join(names)}", f"--sources={','.join(SOURCES)}",
        "--instances=5", f"--out={killed}",
    ]  # fmt: skip
    # The second batch has its question rows, but no row of its instances.
    result = subprocess.run(
        [sys.executable, "-c", KILLER, INSTANCES, "2", "experiments.evaluate", *command],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    finished = [r["instance"] for r in rows(killed, INSTANCES)]
    assert len(finished) == 2 and len({r["instance"] for r in rows(killed, QUESTIONS)}) == 4
    with (killed / QUESTIONS).open("a") as file:
        file.write('{"system": "store_ev')  # and half a line
    result = subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", *command],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "store_everything" in result.stdout and "facts" in result.stdout
    assert [r["instance"] for r in rows(killed, INSTANCES)][:2] == finished
    assert len(rows(killed, INSTANCES)) == 5 * 2 * 2
    for name in (INSTANCES, QUESTIONS):
        assert same_rows(whole, killed, name), name


def test_rows_agree_with_the_episodes(run, tmp_path):
    system = open_systems(["rag_top2"], run, None, 2)["rag_top2"]
    measure(run, tmp_path, {"rag_top2": system}, 3)
    instances = load_sources(run.config, SOURCES, "test", 3)
    of = {i.instance_id: i for some in instances.values() for i in some}
    expected = {e.instance.instance_id: e for e in run_baseline(
        run.env, list(of.values()), BASELINES["rag_top2"])}  # fmt: skip
    made = rows(tmp_path, INSTANCES)
    assert [r["instance"] for r in made] == list(of)
    for row in made:
        episode = expected[row["instance"]]
        assert row["r1"] == pytest.approx(episode.r1) and row["r2"] is None
        assert row["memory_tokens"] == episode.memory_tokens > 0
        asked = [q for q in rows(tmp_path, QUESTIONS) if q["instance"] == row["instance"]]
        assert [q["prediction"] for q in asked] == [a.text for a in episode.answers]
        assert [q["score"] for q in asked] == episode.scores
        assert [q["gold"] for q in asked] == [list(q.answers) for q in episode.instance.questions]


def test_a_batch_is_made_of_the_same_instances_however_often_it_was_stopped(run, tmp_path):
    seen = []

    def respond(turn):
        seen.append(turn.instance.instance_id)
        return ""

    def read(instances, clock, report):
        return run_episodes(run.env, instances, scripted_writer(run.env, respond), on_chunk=report)

    system = {"perfect": System(read, {})}
    measure(run, tmp_path, system, 3, SOURCES[:1])
    lines = (tmp_path / INSTANCES).read_bytes().splitlines(keepends=True)
    assert Counter(seen) == dict.fromkeys([json.loads(line)["instance"] for line in lines], 2)
    (tmp_path / INSTANCES).write_bytes(lines[0] + lines[2])  # one of the first batch is missing
    seen.clear()
    measure(run, tmp_path, system, 3, SOURCES[:1])
    assert set(seen) == {json.loads(line)["instance"] for line in lines[:2]}
    assert sorted((tmp_path / INSTANCES).read_bytes().splitlines()) != []
    assert Counter(r["instance"] for r in rows(tmp_path, INSTANCES)).most_common(1)[0][1] == 1
    assert len(rows(tmp_path, INSTANCES)) == 3


def test_batches_can_hold_several_sources(run, tmp_path):
    systems = open_systems(["no_memory", "perfect"], run, None, 4)
    of = {name: load_sources(run.config, [name], "test", 3)[name] for name in SOURCES}
    of["squad"] = [replace(of[SOURCES[0]][0], source="squad")]  # not one for "perfect"
    with Results(tmp_path, describe(run, "test", systems, {name: {} for name in of})) as results:
        each = list_work(systems, of, results, 4)
        mixed = list_work(systems, of, results, 4, mixed=True)
    batches = [(one.name, one.source, len(one.part)) for one in mixed]
    both = ", ".join(SOURCES)
    assert batches == [
        ("no_memory", both, 4), ("no_memory", f"{SOURCES[1]}, squad", 3),
        ("perfect", both, 4), ("perfect", SOURCES[1], 2),
    ]  # fmt: skip
    assert sum(one.size for one in mixed) == sum(one.size for one in each)


def test_failed_answers_are_masked_up_to_a_share(run, tmp_path):
    def some_fail(requests):
        return [None if n % 10 == 3 else "?" for n, _ in enumerate(requests)]

    instances = load_sources(run.config, SOURCES[:1], "test", 4)
    questions = sum(len(i.questions) for i in instances["synthetic_facts"])
    env = run.env.replace(answerer=some_fail)
    system = open_systems(["no_memory"], replace(run, env=env), None, 4)
    config = tiny.get_config("max_failed_share=0.5")
    measure(replace(run, config=config, env=env), tmp_path / "some", system, 4, SOURCES[:1], 4)
    asked = rows(tmp_path / "some", QUESTIONS)
    assert len(asked) == questions
    failed = [n for n, q in enumerate(asked) if q["failed"]]
    assert failed == [n for n in range(questions) if n % 10 == 3] and failed
    assert all(q["score"] is None for q in asked if q["failed"])
    made = rows(tmp_path / "some", INSTANCES)
    assert sum(r["failed"] for r in made) == len(failed) and {r["r1"] for r in made} == {0.0}
    strict = tiny.get_config("max_failed_share=0.01")
    with pytest.raises(ReaderFailureError, match="no_memory on synthetic_facts: .* unanswered"):
        measure(replace(run, config=strict, env=env), tmp_path / "none", system, 4, SOURCES[:1], 4)
    assert rows(tmp_path / "none", INSTANCES) == []


def test_a_reader_of_another_kind_is_another_config(run, tmp_path):
    measure(run, tmp_path, open_systems(["no_memory"], run, None, 2), 1)
    env = run.env.replace(top_k=3)
    with pytest.raises(ResultsError, match="reading.top_k: was 20, is 3"):
        measure(replace(run, env=env), tmp_path, open_systems(["no_memory"], run, None, 2), 1)


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ["trianed"],
            "unknown system 'trianed'; known: trained, untrained, perfect, flat, prompted",
        ),
        (["flat"], "second run"),
        (["trained"], "no checkpoint of stage 'rl' yet"),
    ],
)
def test_systems_that_are_not_there(run, names, message):
    with pytest.raises(ValueError, match=message):
        open_systems(names, run, None, 2)


def test_sources_and_workdirs_that_are_not_there(run, workdir, tmp_path):
    with pytest.raises(ValueError, match="unknown source 'sqaud'; known: synthetic_facts,.* squad"):
        load_sources(run.config, ["sqaud"], "test", 1)
    with pytest.raises(ValueError, match="no config.json"):
        open_workdir(tmp_path)
    with pytest.raises(ValueError, match="setps"):
        open_workdir(workdir, "rl.setps=3")


def test_changes_reach_the_environment_and_old_configs_are_read(workdir, tmp_path, chat_server):
    changed = open_workdir(workdir, "reward.top_k=3,data.max_questions=2")
    assert changed.env.reading.top_k == 3
    (instance,) = load_sources(changed.config, SOURCES[:1], "test", 1)["synthetic_facts"]
    assert len(instance.questions) == 2
    settings = json.loads((workdir / "config.json").read_text())
    del settings["data"]["built"], settings["reader"], settings["judge"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer").symlink_to(workdir / "tokenizer")
    old = open_workdir(tmp_path)
    assert "squad" in known_sources(old.config, "test") and old.model is None
    assert describe_reading(old.env) == describe_reading(open_workdir(workdir).env)
    asking = f"reader.engine=server,reader.model=m,reader.cache=,reader.url={chat_server.url}"
    assert open_workdir(tmp_path, asking).model.name == "m"
    with pytest.raises(ValueError, match="config.reader.engine='fast'"):
        open_workdir(workdir, "reader.engine=fast")


def test_rows_of_a_writing_baseline_belong_to_its_window(workdir, chat_server):
    asking = f"reader.engine=server,reader.model=m,reader.cache=,reader.url={chat_server.url}"
    windows = ("prompt.tokens=320", "prompt.tokens=640")
    runs = [open_workdir(workdir, f"{asking},{size}") for size in windows]
    for name, differs in (("memagent", True), ("rag_top2", False), ("perfect", True)):
        before, after = (open_systems([name], run, None, 2)[name].about for run in runs)
        assert (before != after) == differs, name


def test_a_run_without_warm_start_is_untrained_as_it_began(run):
    config = tiny.get_config("warm_start.steps=0,model.hidden_size=32,model.num_layers=1")
    system = trained_system(replace(run, config=config), "warm_start", 2)
    assert "as it was" in system.about["checkpoint"]
    assert system.about["temperature"] == config.eval.temperature == 0.7


def test_the_perfect_writer_is_measured_on_synthetic_text_alone(run, tmp_path, micro):
    systems = open_systems(["perfect", "no_memory"], run, None, 2)
    measure(run, tmp_path, systems, 1)
    made = {(r["system"], r["source"]): r for r in rows(tmp_path, INSTANCES)}
    assert len(made) == 4
    perfect = made["perfect", "synthetic_facts"]
    assert perfect["r1"] == 1.0 and perfect["ok_calls"] == perfect["calls"] > 0
    table = results_overview(tmp_path)
    assert [str(c.header) for c in table.columns] == ["system", "facts", "updates"]


def test_a_chunk_too_long_for_the_prompt_is_measured_whole(run, tmp_path, long_instance, capsys):
    systems = open_systems(["perfect", "no_memory"], run, None, 2)
    sources = {SOURCES[0]: [long_instance]}
    about = {SOURCES[0]: describe_source(run.config, SOURCES[0], "test", 0)}
    for _ in range(2):  # the second time nothing is left to measure
        with Results(tmp_path, describe(run, "test", systems, about)) as results:
            evaluate(run.config, systems, sources, results, 2)
    said = capsys.readouterr().out
    assert said.count("perfect on synthetic_facts: 1 long chunks were read in pieces") == 1
    perfect, nothing = rows(tmp_path, INSTANCES)
    assert perfect["chunks"] == 2 and perfect["chunk_tokens"] == nothing["chunk_tokens"]
    assert perfect["digest"] == nothing["digest"]
    assert perfect["ok_calls"] == sum(map(len, long_instance.metadata["notes"]))


def test_differences_are_between_systems_on_the_same_instances(run, tmp_path):
    systems = open_systems(["no_memory", "store_everything", "perfect"], run, None, 2)
    measure(run, tmp_path, {"no_memory": systems["no_memory"]}, 3)
    measure(run, tmp_path, systems, 2)
    table = differences_overview(tmp_path, "no_memory")
    names, counts, r1, r2, *_ = ([*column.cells] for column in table.columns)
    assert names == ["store_everything", "perfect"] and counts == ["4", "4"]  # not those of 3
    assert r1[1].startswith("+1.000 [+1.000") and r2 == ["", ""]  # no_memory makes no call
    assert table.caption is None and not r1[1].endswith("of 4")
    lines = [
        row | {"r1": None} if n == 0 else row for n, row in enumerate(rows(tmp_path, INSTANCES))
    ]
    lines = [row for row in lines if row["system"] != "perfect" or row["source"] == SOURCES[0]]
    (tmp_path / INSTANCES).write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert [*differences_overview(tmp_path, "no_memory").columns[2].cells][0].endswith(" of 3")
    table = differences_overview(tmp_path, "flat")
    others = "no_memory, store_everything, perfect"
    assert not table.rows and table.caption == f"no instance that flat read too: {others}"
