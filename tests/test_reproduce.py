"""A small reproduction in one command: from published files to tables, and what stops it."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import pytest
from chat_server import fails
from jax.flatten_util import ravel_pytree
from test_evaluate import KILLER, rows, same_rows
from trec_files import write_trec

from configs import tiny
from configs.reproduce import get_config
from experiments.evaluate import name_checkpoints, open_run
from experiments.lib import estimate
from experiments.lib.estimate import Calls, Needed, Streams, Window
from experiments.lib.planned import Plan, full_bill
from experiments.lib.provenance import prompt_hashes
from experiments.lib.results import INSTANCES, QUESTIONS
from experiments.lib.streams import Asked, build_streams, read_size, size_name
from experiments.lib.systems import BESIDE, Run, open_config, open_systems
from experiments.reproduce import reproduce, settings
from memalpha import adapters, lora
from memalpha.data import built_sets
from memalpha.episode import MemorySpec
from memalpha.lora import LoraConfig
from memalpha.memory import MEMORY_NAMES
from memalpha.model import init_params
from memalpha.policy_spec import EnvironmentSpec, PolicySpec, PromptSettings, RetrievalSettings
from memalpha.tools import CONTENT_KEY, INSERT, Call, format_response
from memalpha.weights import export

ROOT = Path(__file__).parent.parent
LORA = LoraConfig(rank=2, alpha=4.0)
FREE = ["long_context", "rag_top2", "rag_matched", "no_memory", "store_everything"]
DRIVEN = ["memagent", "mem1", "memgpt", "mem0", "prompted"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Published files: sentences of TREC, and questions of LongMemEval with what answers them."""
    folder = tmp_path_factory.mktemp("raw")
    write_trec(folder, 99, 40)
    path = folder / "longmemeval" / "longmemeval_oracle.json"
    path.parent.mkdir()
    path.write_text(json.dumps([memory_item(number) for number in range(20)]))
    return folder


def memory_item(number):
    said = (("user", f"My number {number} is value{number}."), ("assistant", "Noted. " * 9))
    return {
        "question_id": f"q{number}",
        "question_type": "single-session-user",
        "question": f"What is my number {number}?",
        "question_date": "2023/07/01 (Sat) 10:00",
        "answer": f"value{number}",
        "answer_session_ids": [f"s{number}"],
        "haystack_session_ids": [f"s{number}"],
        "haystack_dates": [f"2023/05/{1 + number:02} (Sat) 02:21"],
        "haystack_sessions": [[{"role": role, "content": text} for role, text in said]],
    }


@pytest.fixture(scope="module")
def writer(micro, tmp_path_factory):
    """Adapters in a folder, as a shipped writer is."""
    folder = tmp_path_factory.mktemp("models")
    base = init_params(micro.model, jax.random.key(0))
    export(base, micro.model, folder / "base", micro.tokenizer)
    flat, unravel = ravel_pytree(lora.init(base, LORA, jax.random.key(1)))
    ours = unravel(0.3 * jax.random.normal(jax.random.key(2), flat.shape))
    prompt = PromptSettings("compact", "qwen3", (True, True, True), 2, 160, 16)
    env = EnvironmentSpec(prompt, MemorySpec(64, 64, 16), RetrievalSettings("scann", 512, 20))
    base_folder = str(folder / "base")
    spec = PolicySpec("a writer", base_folder, base_folder, micro.model, LORA, env)
    return adapters.write(folder / "ours", ours, base, spec)


def answers(body, number):
    """A model that stores what it reads and answers with a word of its evidence."""
    text = body["messages"][-1]["content"]
    if "<new_chunk>" in text and "memory" in text:
        call = Call(INSERT, {"memory_type": f"{MEMORY_NAMES[1]}_memory", CONTENT_KEY[INSERT]: "A"})
        return format_response([call], "qwen3")
    numbers = re.findall(r"my number (\d+)\?", text)
    return f"value{numbers[-1]}" if numbers else "\\boxed{1}"


@pytest.fixture
def args(raw, writer, micro, tmp_path):
    """A function of changes to the flags: those of a command on tiny streams, without a model."""
    tokenizer = writer.parent / "base"
    flags = {
        "out": str(tmp_path / "out"), "raw_dir": str(raw), "sizes": ["200", "400"], "sources": [],
        "systems": [], "checkpoints": [], "flat": "", "reader": "", "url": "", "model": "",
        "writer": "", "instances": 2, "slow_instances": 1, "questions": 3, "chunk_tokens": 96,
        "batch": 2, "list": False, "set": f"tokenizer.path={tokenizer}",
    }  # fmt: skip
    return lambda **changes: SimpleNamespace(**(flags | changes))


def with_server(args, server, **changes):
    """The flags with a server as reader, and windows that its prompts need."""
    more = ",prompt.tokens=9000,reader.retries=0,reader.cache=,reader.max_new_tokens=64"
    return args(url=server.url, model="m", set=args().set + more, **changes)


def table_text(folder):
    """The tables without what a clock says."""
    return re.sub(r"[\d.e-]+ s an instance", "", (folder / "tables.md").read_text())


def test_every_system_from_files_to_tables(args, writer, chat_server):
    chat_server.behave = answers
    some = {"sizes": ["200"], "sources": ["trec_coarse", "lme_train"]}
    given = with_server(args, chat_server, checkpoints=[f"ours={writer}"], **some)
    reproduce(given)
    out = Path(given.out)
    for split, sources in (("validation", ["trec_coarse"]), ("test", ["trec_coarse", "lme_train"])):
        done = [(r["system"], r["source"]) for r in rows(out / "200" / split, INSTANCES)]
        assert {source for _, source in done} == set(sources)
        for source in sources:
            count = {name: done.count((name, source)) for name in (*FREE, *DRIVEN, "ours")}
            assert count == dict.fromkeys(FREE, 2) | dict.fromkeys((*DRIVEN, "ours"), 1)
        stored = [r for r in rows(out / "200" / split, INSTANCES) if r["system"] == "prompted"]
        assert all(
            r["calls"] == r["chunks"] > 1 == r["ok_calls"] for r in stored
        )  # it repeats itself
    text = table_text(out)
    for title in ("Small version of tables 1 and 2", "lme_train by the kind"):
        assert f"### {title}" in text
    assert all(f"### Table {number}." in text for number in (1, 2, 3, 4, 6, 7, 8, 9))
    effect = text.partition("### Small version of table 3")[2].partition("###")[0]
    assert "| prompted writer, untrained | Perf. |" in effect and "| ours | Perf. |" in effect
    told = "memagent, mem1, memgpt, mem0, prompted, ours read the first 1 of 2 instances"
    assert told in text and "planted wrong answers" in text
    assert "streams of about 200 tokens" in text and "m, at most 64 tokens" in text


def test_a_kill_costs_nothing_and_the_same_command_gives_the_same_tables(
    args, chat_server, tmp_path
):
    chat_server.behave = answers
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    systems = ["no_memory", "rag_top2", "memagent"]
    given = vars(with_server(args, chat_server, sources=["trec_coarse"], systems=systems))
    reproduce(SimpleNamespace(**given | {"out": str(whole)}))
    texts = {k: ",".join(v) if isinstance(v, list) else v for k, v in given.items()}
    texts |= {"out": killed, "list": "false"}
    result = subprocess.run(
        [sys.executable, "-c", KILLER, INSTANCES, "8", "experiments.reproduce",
         *(f"--{name}={text}" for name, text in texts.items())],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    assert "streams of about 400" not in table_text(killed)  # those of the first size are there
    again = SimpleNamespace(**given | {"out": str(killed)})
    reproduce(again)
    text, asked = table_text(whole), len(chat_server.bodies)
    assert "streams of about 400" in text and table_text(killed) == text
    for part in [f"{size}/{split}" for size in (200, 400) for split in ("validation", "test")]:
        for name in (INSTANCES, QUESTIONS):
            assert same_rows(whole / part, killed / part, name) and rows(whole / part, name)
    reproduce(again)
    assert len(chat_server.bodies) == asked + 1  # a word at the start
    assert table_text(killed) == text
    assert "Score against length" in (killed / "tables.html").read_text()


def test_tables_are_of_all_rows_whatever_this_call_asks_for(args):
    some = {"sources": ["trec_coarse"], "systems": ["no_memory"]}
    reproduce(args(**some))
    reproduce(args(**some | {"sizes": ["200"], "systems": ["rag_top2"]}))
    text = table_text(Path(args().out))
    longer = text.partition("streams of about 400 tokens")[2].partition("###")[0]
    assert "no memory" in longer and "Not run: long_context, rag_top2, rag_matched," in longer
    shorter = text.partition("streams of about 200 tokens")[2].partition("###")[0]
    assert "RAG-Top2" in shorter and "Not run: long_context, rag_matched," in shorter


def test_a_plan_is_said_and_nothing_is_run(args, writer, capsys):
    reproduce(args(list=True, checkpoints=[f"ours={writer}"]))
    said = capsys.readouterr().out
    assert "| trec_coarse, validation, 200 | 2 | 1 | 3 | 3 |" in said
    assert "no model was named for them: memagent, mem1, memgpt, mem0, prompted." in said
    assert re.search(r"\| ours \| [1-9]\d* \|", said) and "| memagent |" not in said
    assert "left out: perltqa: " in said
    assert not list(Path(args().out).glob(f"*/*/{INSTANCES}"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"systems": ["rag"]}, "unknown system 'rag'; known: long_context"),
        ({"sources": ["sqaud"]}, "unknown source 'sqaud'; known: banking77"),
        ({"sizes": ["2kk"]}, "--sizes: '2kk' is no number of tokens"),
        ({"raw_dir": "/nowhere"}, "no stream can be built from --raw_dir=/nowhere.*docs/data.md"),
        ({"sources": ["perltqa"]}, "no stream can be built .*perltqa: .*no perltmem_en"),
        ({"url": "http://127.0.0.1:9"}, "give --reader=MODEL, or --url=ADDRESS with --model=NAME"),
        ({"out": "README.md/out"}, "--out=README.md/out cannot be written"),
        ({"checkpoints": ["a=x", "a=y"]}, "'a=y' needs a name of its own"),
        ({"checkpoints": ["no_memory"]}, "'no_memory' needs a name of its own"),
        ({"systems": ["mem0"]}, "mem0: give --reader, --url or --writer, their model"),
        ({"flat": "/nowhere"}, "no .*nowhere|/nowhere"),
    ],
)
def test_what_cannot_be_is_said(args, changes, message):
    with pytest.raises(ValueError, match=message):
        reproduce(args(**changes))


def test_a_model_without_room_is_refused_before_the_run(args, writer, micro):
    base = str(writer.parent / "base")
    cramped = args().set + ",reader.max_new_tokens=8,prompt.tokens=64,prompt.response_tokens=8"
    with pytest.raises(ValueError, match="as reader: its context of .* no room for what memgpt"):
        reproduce(args(reader=base, set=cramped + ",reader.context=900", chunk_tokens=200))
    with pytest.raises(ValueError, match="as writer: its context of .* no room for prompt and rep"):
        reproduce(
            args(reader=base, set=args().set + ",reader.max_new_tokens=8,reader.context=3000")
        )
    config = settings(args(reader=base, set=cramped + ",reader.context=900"))
    assert Plan(config, ["rag_top2"], {}, 1).room == 900 - 8 - BESIDE  # what long_context is billed
    fitted = open_systems(
        ["long_context", "store_everything"], Run(None, config, micro.env), None, 2
    )
    assert [system.about for system in fitted.values()] == [{"budget": 380}] * 2
    config = settings(args(reader=base))
    assert config.reader.one_line and config.tokenizer.path == str(writer.parent / "base")


def test_a_dead_server_and_other_settings_are_said(args, chat_server):
    chat_server.behave = lambda body, number: fails(503, "no GPU left")
    some = {"sources": ["trec_coarse"], "sizes": ["200"], "systems": ["no_memory"]}
    with pytest.raises(ValueError, match="config.reader: m .*not answer: 503: no GPU left"):
        reproduce(with_server(args, chat_server, **some))
    with pytest.raises(ValueError, match="other settings .instances was 2, is 3.: give another"):
        reproduce(args(**some, instances=3))
    reproduce(args(**some))
    for size in ("200", "400"):  # the tables would show both
        with pytest.raises(ValueError, match="reading.top_k: was 10, is 3"):
            reproduce(args(**some | {"sizes": [size]}, set=args().set + ",reward.top_k=3"))


def test_streams_have_about_the_size_asked_for_or_are_left_out(raw, tmp_path):
    asked = Asked(instances=2, questions=3, chunk_tokens=96)
    left_out = build_streams(raw, tmp_path, [200, 9000], asked, ["trec_coarse", "lme_train"])
    sets = built_sets.list_sets(tmp_path / "200")
    assert {split: set(of) for split, of in sets.items()} == {
        "validation": {"trec_coarse"}, "test": {"trec_coarse", "lme_train"},
    }  # fmt: skip
    for path in [path for of in sets.values() for path in of.values()]:
        numbers = built_sets.Built(path).manifest["statistics"]
        tokens = numbers["chunks_per_instance"] * numbers["tokens_per_chunk"]
        assert 100 <= tokens <= 300 and numbers["questions_per_instance"] <= 3
    assert "its streams have" in left_out["lme_train test 9k"]
    before = (tmp_path / "200" / "trec_coarse" / "test" / "manifest.json").stat().st_mtime_ns
    again = build_streams(raw, tmp_path, [200, 9000], asked, ["trec_coarse"])
    assert again == {k: v for k, v in left_out.items() if k.startswith("trec_coarse ")}
    after = (tmp_path / "200" / "trec_coarse" / "test" / "manifest.json").stat().st_mtime_ns
    assert before == after
    assert (read_size("32k"), read_size("500"), size_name(32_000), size_name(500)) == (
        32_000, 500, "32k", "500",
    )  # fmt: skip


def test_a_folder_keeps_its_settings_from_the_start_and_takes_new_files(raw, tmp_path, monkeypatch):
    asked, few = Asked(2, 3, 96), tmp_path / "few"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("experiments.lib.streams._build", Mock(side_effect=KeyboardInterrupt))
        build_streams(raw, tmp_path, [200], asked, ["lme_train"])
    with pytest.raises(ValueError, match="other settings .chunk_tokens was 96, is 64."):
        build_streams(raw, tmp_path, [200], replace(asked, chunk_tokens=64), ["lme_train"])
    path = few / "longmemeval" / "longmemeval_oracle.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([memory_item(0)]))
    assert "lme_train test 200" in build_streams(few, tmp_path, [200], asked, ["lme_train"])
    assert build_streams(raw, tmp_path, [200], asked, ["lme_train"]) == {}


def test_calls_by_hand():
    of, window = Streams(2, 10, 1000, 5), Window(prompt=4000, reply=200, core=100, top_k=3)
    assert estimate.writing("memagent", of, window) == [Calls(20, 530 + 100 + 1000, 100)]
    assert estimate.writing("rag_top2", of, window) == []
    # Half of a prompt of 500 tokens is for text: four pieces a chunk.
    narrow = Window(prompt=500, reply=200)
    assert estimate.writing("any writer", of, narrow) == [Calls(2 * 10 * 4, 500, 100)]
    assert estimate.reading("long_context", of, window)[:2] == (10, 150 + 10_000)
    assert estimate.reading("store_everything", of, window)[:2] == (10, 150 + 3 * 48)
    rates = estimate.cost.Rates(1e12, 1e12)
    needed = {"memagent": Needed([Calls(20, 1300, 100)], [Calls(10, 150, 32)], None, None)}
    (row, total) = estimate.bill("", needed, rates, ()).rows
    assert row == ("MemAgent", "20", "26,000", "2,000", "10", "1,500", "320", "0 + ?")
    assert total[1:] == row[1:]


def test_the_paper_costs_more_on_slower_devices():
    fast, slow = full_bill("H200"), full_bill("TPU v5e")
    hours = [[float(row[-1].replace(",", "")) for row in table.rows] for table in (fast, slow)]
    assert all(0 < one < other for one, other in zip(*hours, strict=True))
    assert not [row for row in slow.rows if "e+" in row[-1]]
    names = [row[0] for row in fast.rows]
    assert names[-1] == "all" and "trained writer" in names and len(names) == 12
    with pytest.raises(ValueError, match="--hardware='abacus': give one of H100 80 GB"):
        full_bill("abacus")


def test_a_writer_from_adapters_needs_no_run(writer):
    run = open_config(get_config(f"tokenizer.path={writer.parent / 'base'},reward.top_k=3"))
    (system,) = open_systems([], run, None, 2, checkpoints={"ours": str(writer)}).values()
    about = system.about
    assert len(about["weights"]) == 64 and about["prompt"]["prompt_tokens"] == 160
    assert about["prompts"] != prompt_hashes(run.env.prompt, run.config)["writer"]
    assert (run.env.reading.retriever, run.env.reading.top_k) == ("bm25", 3)
    with pytest.raises(ValueError, match="'trained' is of a workdir: give --workdir"):
        open_systems(["trained"], run, None, 2)
    with pytest.raises(ValueError, match="'prompted' writes with the language model that reads"):
        open_systems(["prompted"], run, None, 2)
    for flags in ({"workdir": "", "config": None}, {"workdir": "x", "config": run.config}):
        with pytest.raises(ValueError, match="give --workdir or --config, one"):
            open_run(SimpleNamespace(**flags))


def test_a_config_that_only_trains_says_how_memories_are_read(writer, monkeypatch, chat_server):
    monkeypatch.setattr("experiments.lib.sources.changes", lambda: given)
    given, base = "", writer.parent / "base"
    args = SimpleNamespace(workdir="", config=tiny.get_config())
    with pytest.raises(ValueError, match="tokenizer.path and config.model.path are empty: --set=t"):
        open_run(args)
    given = f"tokenizer.path={base},writer.engine=server,writer.model=w,writer.cache="
    given += f",writer.url={chat_server.url},prompt.response_tokens=99,memory.entry_tokens=33"
    run = open_run(args)
    assert run.model.name == "w" and run.config.judge.engine == "offline"
    about = open_systems(["prompted"], run, None, 2)["prompted"].about
    # Its own prompt and dialect, not those of the config, which has compact ones.
    assert about["prompts"] != prompt_hashes(run.env.prompt, run.config)["writer"]
    assert (about["prompt"]["response_tokens"], about["memory"]["entry_tokens"]) == (99, 33)


def test_checkpoints_are_named_by_their_path_or_by_hand():
    named = name_checkpoints(["memalpha-smollm2", "runs/tiny", "other=runs/x", ""])
    assert named == {"memalpha-smollm2": "memalpha-smollm2", "tiny": "runs/tiny", "other": "runs/x"}
