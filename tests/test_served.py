"""The evaluation commands with reader, judge and a writing baseline on a server: from the command
line to the tables, and what a server that fails costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from chat_server import GREETING, fails

from configs import tiny
from experiments.evaluate import describe, evaluate
from experiments.lib.failures import ReaderFailureError
from experiments.lib.objects import open_trained
from experiments.lib.pool import read_pool
from experiments.lib.results import INSTANCES, QUESTIONS, Results, read_lines, read_results
from experiments.lib.sources import describe_source, load_sources
from experiments.lib.systems import open_systems, open_workdir
from experiments.tables import paper_tables
from memalpha.data import built_sets
from memalpha.data.instance import Instance, Question
from memalpha.lm.server import ServerModel
from memalpha.policy import Policy

ROOT = Path(__file__).parent.parent
PETS = (("Anna Berger", "parrot", "Zora"), ("Ida Mohr", "tortoise", "Bella"))
SYSTEMS = ["perfect", "rag_top2", "no_memory", "memagent"]
SOURCES = ["synthetic_facts", "longmemeval_s"]
EXTRA = '{"top_p": 0.5, "seed": 3}'


def language_model(url, name, **fields):
    fields = {"engine": "server", "url": url, "model": name, "retries": 0, "cache": ""} | fields
    return fields | {"concurrency": 1, "max_new_tokens": 64}


def judged(who, pet, name):
    """An instance of a source whose answers are judged."""
    chunks = (f"{who} has a {pet}.", f"Since May the {pet} of {who} is called {name}.")
    asked = (f"Which pet has {who}?", pet), (f"What does {who} call it?", name)
    questions = tuple(Question(question, (gold,)) for question, gold in asked)
    return Instance("longmemeval_s", who, chunks, questions)


@pytest.fixture
def workdir(micro, tmp_path, chat_server):
    """What a run leaves, with reader and judge on the server."""
    config = tiny.get_config("prompt.tokens=8000,prompt.response_tokens=256,rl.instances=2")
    config.reader.update(language_model(chat_server.url, "reads", extra=EXTRA))
    config.judge.update(language_model(chat_server.url, "judges"))
    config.rl.rollouts = 1
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    micro.tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def built(tmp_path):
    """Two instances of a source that is judged."""
    some = [judged(*pet) for pet in PETS]
    about = {"source": "longmemeval_s", "split": "test", "tokens": "words"}
    built_sets.write(
        tmp_path / "built" / "longmemeval_s" / "test", some, about, lambda t: len(t.split())
    )
    return tmp_path / "built"


def inside(tag, text):
    return text.split(f"<{tag}>")[-1].split(f"</{tag}>")[0].strip()


class Scripted:
    """A model that keeps all that it reads, answers what it finds, and judges by the words."""

    def __init__(self, instances):
        self.gold = {q.question: q.answers[0] for i in instances for q in i.questions}
        self.refused = ""  # questions with this in them are too long for it
        self.verdict = ""  # what the judge says in any case

    def __call__(self, body, number):
        text = body["messages"][-1]["content"]
        if "Respond with the word yes" in text:
            return "yes"
        if "VALID" in text:
            return '{"VALID": true, "ISSUES": []}'
        if "<expected>" in text:
            right = inside("expected", text) in inside("reply", text)
            return self.verdict or ("Yes." if right else "No.")
        if "<new_chunk>" in text:
            return inside("core_memory", text) + "\n" + inside("new_chunk", text)
        question = inside("question", text)
        if self.refused and self.refused in question:
            return fails(400, "maximum context length is 32 tokens")
        gold = next(gold for asked, gold in self.gold.items() if asked in question)
        known = gold in text.replace(question, "")
        return f"<think>{gold}?</think>{gold}" if known else "<think>hm</think>unknown"


@pytest.fixture
def model(workdir, chat_server):
    config = tiny.get_config()
    some = load_sources(config, ["synthetic_facts"], "test", 2)["synthetic_facts"]
    chat_server.behave = Scripted([*some, *(judged(*pet) for pet in PETS)])
    return chat_server.behave


def measure(workdir, built, out, systems, sources, changes=""):
    """What `experiments.evaluate` does, in this process."""
    run = open_workdir(workdir, ",".join(filter(None, [f"data.built={built}", changes])))
    some = load_sources(run.config, sources, "test", 2)
    about = {name: describe_source(run.config, name, "test", 0) for name in sources}
    opened = open_systems(systems, run, None, 2)
    with Results(out, describe(run, "test", opened, about)) as results:
        evaluate(run.config, opened, some, results, 2)


def test_from_a_server_to_the_tables(workdir, built, model, chat_server, tmp_path):
    out = tmp_path / "out"
    model.refused = "Which pet has"
    # Half of a judged source is too long for the server: what was measured before is kept.
    with pytest.raises(ReaderFailureError) as caught:
        measure(workdir, built, out, SYSTEMS, SOURCES)
    assert "rag_top2 on longmemeval_s: reader, judge or writer left 50%" in str(caught.value)
    assert "400: maximum context length is 32 tokens" in str(caught.value)
    kept = [(r["system"], r["source"]) for r in read_lines(out / INSTANCES)]
    assert set(kept) == {(s, "synthetic_facts") for s in SYSTEMS} and len(kept) == 8

    asked, model.refused = len(chat_server.bodies), ""
    command = [
        sys.executable, "-m", "experiments.evaluate",
        f"--workdir={workdir}", f"--data={built}", "--instances=2", f"--out={out}",
        f"--systems={','.join(SYSTEMS)}", f"--sources={','.join(SOURCES)}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    reads = [b for b in chat_server.bodies[asked:] if b["model"] == "reads"]
    # A word at the start; then three systems ask 2 x 2 questions, and one writes two chunks twice.
    assert len(reads) == 1 + 3 * 4 + 4
    assert {b["top_p"] for b in reads} == {0.5}
    judged = [b for b in chat_server.bodies[asked:] if b["model"] == "judges"]
    assert f"judges: {len(judged)} chats, 0 of them from the cache, 0 failed;" in done.stdout
    assert len(judged) == 1 + 3 * 4

    about, rows = read_results(out)
    assert about["reading"]["reader"].startswith(
        f"reads, extra {json.dumps(json.loads(EXTRA), sort_keys=True)}, at most 64"
    )
    assert about["reading"]["judge"] == "judges, at most 64 tokens, temperature 0.0"
    r1 = {(r["system"], r["source"]): r["r1"] for r in rows}
    for source in ("synthetic_facts", "longmemeval_s"):
        assert (r1["rag_top2", source], r1["no_memory", source]) == (1.0, 0.0)
        assert r1["memagent", source] == 1.0
    assert r1["perfect", "synthetic_facts"] == 1.0 and ("perfect", "longmemeval_s") not in r1
    said = {q["prediction"] for q in read_lines(out / QUESTIONS) if q["source"] == "longmemeval_s"}
    assert said == {
        "parrot",
        "Zora",
        "tortoise",
        "Bella",
        "unknown",
    }  # what was thought is not there

    for question in read_lines(out / QUESTIONS):  # in the judge's words
        right = "Yes." if question["score"] else "No."
        asked_one = question["source"] == "longmemeval_s"
        assert question["verdict"] == (right if asked_one else None)

    check = [
        sys.executable, "-m", "experiments.judge_check", f"--workdir={workdir}",
        f"--data={built}", "--sources=longmemeval_s", "--instances=2", f"--out={out}",
    ]  # fmt: skip
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    pool = read_pool([str(out)])
    (judged,) = [t for t in paper_tables(pool) if t.title.startswith("Table 2.")]
    place = judged.heads.index("longmemeval_s")
    cells = {row[0]: row for row in judged.rows}["MemAgent (ours)"]
    assert cells[place] == "1.000 [1.000, 1.000]"
    assert {cell for n, cell in enumerate(cells[2:-2], 2) if n != place} == {""}
    assert "The judge accepts 0.0% of planted wrong answers" in " ".join(judged.notes)
    assert any("extra {" in note and "judge: judges," in note for note in judged.notes)


def test_a_dead_server_is_said_before_any_work(workdir, chat_server):
    chat_server.behave = lambda body, number: fails(503, "no GPU left")
    with pytest.raises(ValueError, match="config.reader: reads.* not answer: 503: no GPU left"):
        open_workdir(workdir)
    assert len(chat_server.bodies) == 1


def test_commands_that_open_a_run_as_it_is_ask_first_too(workdir, chat_server, monkeypatch, micro):
    policy = Policy("p", micro.model, {}, micro.env)
    monkeypatch.setattr("experiments.lib.objects.load_policy", lambda workdir, stage: policy)
    assert open_trained(workdir)[1].env.reading.answerer.name.startswith("reads, ")
    chat_server.behave = lambda body, number: fails(401, "who are you?")
    with pytest.raises(SystemExit, match="401: who are you"):
        open_trained(workdir)


def test_a_judge_that_says_neither_yes_nor_no_stops_with_its_words(workdir, built, model, tmp_path):
    model.verdict = "Well, perhaps."
    out = tmp_path / "out"
    only = (["rag_top2"], ["longmemeval_s"])
    with pytest.raises(ReaderFailureError) as caught:
        measure(workdir, built, out, *only)
    assert "left 100% of the questions unanswered" in str(caught.value)
    assert "the judge said neither yes nor no: 'Well, perhaps.'" in str(caught.value)
    assert read_lines(out / INSTANCES) == []
    measure(workdir, built, out, *only, "max_failed_share=1.0")
    rows = read_lines(out / INSTANCES)
    assert [(r["r1"], r["failed"], r["questions"]) for r in rows] == [(None, 2, 2)] * 2


def test_readers_asked_in_other_ways_are_other_readers(chat_server, tmp_path):
    def name(extra):
        return ServerModel(chat_server.url, "m", extra=extra).name

    assert name(None) == name({}) == "m"
    assert name({"b": 1, "a": None}) == name({"a": None, "b": 1}) == 'm, extra {"a": null, "b": 1}'
    ServerModel(chat_server.url, "m", extra={"b": 1}).generate([[GREETING]], 5)
    assert chat_server.bodies[0]["model"] == "m"
