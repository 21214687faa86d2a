"""The helper of the benchmarks, and our side of them at miniature sizes; nothing is timed here."""

import json
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import (
    accelerator,
    drafts,
    episode,
    memory_ops,
    ours,
    overlap,
    reading,
    retrieval,
    small_models,
    three_facts,
    timing,
    train_peers,
)
from benchmarks.shapes import QUICK, Shape, check_count, settings
from benchmarks.timing import Contender, Timing
from memalpha.agent.memory_agent import MemoryAgent
from memalpha.agent.store import Store
from memalpha.data import synthetic
from memalpha.judge import Verdict
from memalpha.judge_rules import judge_contents
from memalpha.model import init_params
from memalpha.policy import Policy
from memalpha.reader_rules import extractive_answers
from memalpha.rollout import scripted_writer
from memalpha.tools import INSERT, format_call

MINI = {
    "vocab": 67, "hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 24,
    "batch": 4, "prompt": 5, "new": 3, "group": 2,
}  # fmt: skip


class Rounds:
    """As the worker's, for so many rounds in this process."""

    def __init__(self, count: int):
        self.left, self.told = count, []
        self.prepare, self.share = lambda: None, 1.0

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.prepare()

    def note(self, **facts):
        self.told.append(facts)


def here(function: str, **more) -> Contender:
    return Contender(function, f"tests.contenders:{function}", **more)


def test_contenders_take_turns_and_the_absent_are_named():
    said = []
    contenders = [
        here("counts", settings={"share": 0.5}),
        here("owns_its_loop"),
        here("breaks"),
        here("counts", packages=("jax", "no-such-package")),
    ]
    timings = timing.alternate(
        contenders,
        {"given": 7},
        3,
        2,
        timing.environment(1),
        lambda *words, **_: said.extend(words),
    )
    first, trainer, broken, absent = timings
    assert [note["number"] for note in first.notes] == [2, 3, 4]  # after two to warm up
    assert all(note["given"] == 7 for note in first.notes)
    for whole in (first, trainer):
        assert len(whole.seconds) == len(whole.cpu_seconds) == 3 and len(whole.warmup) == 2
        assert not whole.absent
    assert not broken.seconds and "RuntimeError: no such thing" in broken.absent
    assert absent.absent == "not installed: no-such-package" and not absent.seconds
    assert any("no-such-package" in words for words in said)
    lines = timing.table(timings, 10, "items/s").splitlines()
    assert len(lines) == 2 + 4 and "no-such-package" in lines[-1]


def test_the_setting_is_the_same_for_all_and_a_users_own_wins(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    shared = timing.environment(2)
    assert shared["GLIBC_TUNABLES"] == timing.ALLOCATOR
    assert {shared[f"{name}_NUM_THREADS"] for name in timing.THREAD_VARIABLES} == {"2"}
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert timing.environment(2)["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"


def test_readers_are_asked_new_questions_every_round(monkeypatch):
    asked = [SimpleNamespace(question=str(n)) for n in range(9)]
    monkeypatch.setattr(reading, "questions", lambda given: ((one, ("x",)) for one in asked))
    replies = lambda requests: ["x" if one.question in "24" else "" for one in requests]
    monkeypatch.setattr(reading, "lm_reader", lambda engine, max_new_tokens: replies)
    rounds = Rounds(3)
    reading.read(SimpleNamespace(name="m"), {"questions": 2, "tokens": 4}, rounds)
    assert [note["score"] for note in rounds.told] == [0.0, 0.5, 0.5]
    assert "| a | 0 | 0 | 0.33 |" in reading.work([Timing("a", notes=rounds.told)])


def test_both_trainers_draw_the_same_step():
    step = train_peers.Step("m", True, rows=4, prompt=5, new=3, micro_batch=2)
    tokens, given, advantages = step.draw(1000)
    assert tokens.shape == (4, 8) and given.shape == (4, 3) and len(set(advantages)) == 4
    assert all(
        (a == b).all() for a, b in zip(step.draw(1000), (tokens, given, advantages), strict=True)
    )
    assert 0 < train_peers.peak() < 1000


def test_ratios_are_taken_round_by_round():
    assert timing.ratios([1.0, 2.0, 4.0], [3.0, 4.0, 4.0]) == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="2 rounds of ours, 1"):
        timing.ratios([1.0, 1.0], [1.0])


def test_table_golden():
    timings = [
        Timing("a", [1.0, 2.0, 4.0]),
        Timing("b", [3.0, 4.0, 4.0]),
        Timing("c", absent="not installed: c"),
    ]
    assert timing.table(timings, 8, "tokens/s").splitlines()[2:] == [
        "| a | 1.000 / 2.000 / 4.000 | 2 / 4 / 8 |  |",
        "| b | 3.000 / 4.000 / 4.000 | 2 / 2 / 3 | 1.00 / 2.00 / 3.00 |",
        "| c | not installed: c |  |  |",
    ]


def test_only_keeps_ours_and_what_is_named():
    contenders = [Contender(name, "") for name in ("ours", "torch a", "torch b", "tunix")]
    assert [c.name for c in timing.chosen(contenders, "b,tun")] == ["ours", "torch b", "tunix"]
    assert timing.chosen(contenders, "") == contenders


def test_the_record_has_seconds_versions_and_circumstances(tmp_path, capsys):
    args = Namespace(out=tmp_path / "deep" / "x.json", threads=2)
    contenders = [Contender("a", "", ("jax", "no-such-package"))]
    path = timing.write(args, "x", {"n": 1}, {"part": [Timing("a", [0.5])]}, contenders)
    record = json.loads(path.read_text())
    assert record["results"]["part"][0]["seconds"] == [0.5]
    assert record["versions"]["jax"] and record["versions"]["no-such-package"] is None
    assert record["threads"] == 2 and record["allocator"] and str(path) in capsys.readouterr().out


def test_parameters_of_a_shape():
    # 8192 x 256, four layers of 3 x 65,536 + 64 + 589,824 + 512, a last norm
    assert Shape().parameters == 2_097_152 + 4 * 787_008 + 256
    config, params = ours.build(Shape(**MINI))
    assert config.tie_embeddings
    with pytest.raises(ValueError, match="1 parameters"):
        check_count(QUICK, 1)
    assert settings(True)["batch"] == QUICK.batch != settings(False)["batch"]


def test_our_rollout_gives_every_token_asked_for():
    shape = Shape(**MINI)
    config, params = ours.build(shape)
    prompts = ours.draw_prompts(shape, np.random.default_rng(0))
    assert (prompts[0] == prompts[1]).all() and (prompts[1] != prompts[2]).any()
    samples = ours.rollout(shape, config, params, prompts, 0)
    assert samples.tokens.shape == (4, 3) and samples.mask.all()
    rounds = Rounds(1)
    ours.generate(dict(MINI), rounds)
    assert rounds.left == 0


def test_our_step_is_the_same_in_micro_batches():
    losses = []
    for micro_batch in (None, 2):
        rounds = Rounds(2)
        ours.step(MINI | {"micro_batch": micro_batch}, rounds)
        losses.append([note["loss"] for note in rounds.told])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][0] != losses[0][1]  # the first one moved the parameters


def test_our_iteration_runs():
    rounds = Rounds(2)
    ours.iteration(MINI | {"micro_batch": 2}, rounds)
    assert rounds.left == 0


def test_our_retrieval_ranks_like_the_library_and_a_difference_ends_the_program():
    pytest.importorskip("rank_bm25")
    given = {"entries": 60, "questions": 7}
    timings = []
    for contender in retrieval.CONTENDERS[:4]:
        rounds = Rounds(1)
        function = getattr(retrieval, contender.target.split(":")[1])
        function(given | dict(contender.settings), rounds)
        timings.append(Timing(contender.name, [1.0], notes=rounds.told))
    assert len(timings[0].notes[0]["ranking"]) == 7
    wrong = [Timing(t.name, notes=[dict(note) for note in t.notes]) for t in timings]
    assert retrieval.agreement(timings).count("the same") == 2
    wrong[1].notes[0]["ranking"][0] = wrong[1].notes[0]["ranking"][0][::-1]
    with pytest.raises(SystemExit, match="index kept does not rank"):
        retrieval.agreement(wrong)


def test_memories_are_full_and_their_operations_succeed():
    host = memory_ops.filled(2, memory_ops.SMALLEST, np.random.default_rng(0))
    assert (host.count == memory_ops.SMALLEST).all() and (host.id[:, :, :100] > 0).all()
    steps = memory_ops.draw_steps(host, np.random.default_rng(0))
    named = np.concatenate([step.id[0] for step in steps])
    assert len(set(named.tolist())) == memory_ops.STEPS * memory_ops.OPERATIONS
    rounds = Rounds(1)
    memory_ops.operate({"rows": 2, "entries": 100, "view": True}, rounds)
    assert rounds.left == 0


def test_stages_add_up_and_both_parts_are_named():
    clock = {"render": 1.0, "write": 5.0, "apply": 2.0, "update": 9.0}
    inner = {"generate": 4.0, "apply_batch": 0.25, "newest": 0.25, "take_micro_batch": 1.0}
    found = episode.shares(clock, inner)
    assert found["apply, device"] == 0.5 and found["apply, host"] == 1.5
    assert found["write, device"] == 4.0 and found["write, host"] == 1.0
    assert found["update, device"] == 8.0 and found["update, host"] == 1.0
    assert sum(found.values()) == 17.0


TINY = (  # arguments of configs/tiny.py
    "model.num_layers=1,model.hidden_size=32,model.num_heads=2,model.num_kv_heads=1,"
    "model.head_dim=8,model.mlp_size=32,tokenizer.vocab_size=600,prompt.tokens=320,"
    "rl.instances=1,rl.rollouts=2,rl.micro_batch=0"
)


def test_a_training_step_runs_stage_by_stage():
    rounds = Rounds(1)
    episode.training_step({"workdir": "", "arguments": TINY}, rounds)
    assert rounds.left == 0
    stages = rounds.told[0]["stages"]
    assert min(stages.values()) >= 0 and stages["update, device"] > 0


def test_the_overlap_benchmark_waits_in_the_reader_and_prints_both_ways(monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(overlap, "waiting", partial(overlap.waiting, sleep=waits.append))
    monkeypatch.setattr("experiments.train.validate", lambda *args: {})
    monkeypatch.setattr("sys.argv", ["overlap", "--steps=5", f"--arguments={TINY}"])
    overlap.main()
    printed = capsys.readouterr().out
    assert "without: " in printed and "with overlap: " in printed
    assert waits.count(0.0) == 5 and len(waits) == 15 and max(waits) > 0
    with pytest.raises(SystemExit):
        monkeypatch.setattr("sys.argv", ["overlap", "--steps=4"])
        overlap.main()


def test_the_accelerator_benchmark_counts_every_weight_and_fills_its_tables(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["accelerator", "--quick", "--rounds=1"])
    config, params = accelerator.build(accelerator.parse())
    matrices = [x for x in jax.tree.leaves(params) if x.ndim > 1]  # the embedding is the head
    assert accelerator.kernels(config) == sum(x.size for x in matrices)
    accelerator.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.count("|") for row in rows] == [7, 7, 8, 8]  # two headers, a row of each
    with pytest.raises(SystemExit):
        monkeypatch.setattr("sys.argv", ["accelerator", "--model=gpt"])
        accelerator.parse()


def test_writers_with_drafts_say_the_same_in_fewer_passes(micro, monkeypatch):
    params = init_params(micro.model, jax.random.key(0))
    params = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, params)
    env = micro.env.replace(response_tokens=40)
    policy = Policy("micro", micro.model, params, env)
    monkeypatch.setattr(drafts, "load_policy", lambda name: policy)
    given = {"checkpoint": "micro", "family": "chats", "rows": 2}
    notes = []
    for loop, size in (("use", 0), ("use", 5), ("rollout", 5)):
        rounds = Rounds(1)
        drafts.respond(given | {"loop": loop, "draft_tokens": size}, rounds)
        notes += rounds.told
    assert len({note["digest"] for note in notes}) == 1
    whole, *fewer = (note["passes"] for note in notes)
    assert whole == notes[0]["tokens"] > max(fewer)


@pytest.mark.parametrize("count, interval", [(1, "0.00 to 1.00"), (2, "0.50 to 0.50")])
def test_questions_of_several_instances_are_drawn_together(
    count, interval, micro, monkeypatch, capsys
):
    of = [synthetic.generate("facts", "test", number) for number in range(count)]
    monkeypatch.setattr(small_models.built_sets, "Built", lambda folder: of)
    said = [SimpleNamespace(text="")] * 2
    half = SimpleNamespace(scores=[0.0, 1.0], answers=said)
    monkeypatch.setattr(small_models, "run_baseline", lambda *given: [half] * count)
    options = SimpleNamespace(questions=2 * count, tokens=8, show=0)
    of[:] = [replace(instance, questions=instance.questions[:2]) for instance in of]
    small_models.read(SimpleNamespace(name="m"), micro.env, Path("facts/test"), options)
    assert f"| facts | {2 * count} | 0.50 ({interval}) |" in capsys.readouterr().out


def test_half_of_the_contents_for_the_judge_fit_their_memory():
    contents = small_models.load_contents()
    assert len({(content.memory, content.content) for content in contents}) == 200
    for memory in ("core", "semantic", "episodic"):
        fits = [content.fits for content in contents if content.memory == memory]
        assert 0.4 < np.mean(fits) < 0.6
    assert sum(content.fits for content in contents) == 100
    assert not [v for v in judge_contents([content.call for content in contents]) if v.failed]


def test_a_judge_without_a_verdict_is_not_right(capsys):
    contents = [c for c in small_models.load_contents() if c.fits][::25]
    verdicts = [Verdict(True), Verdict(True), Verdict(False), Verdict(False, failed=True)]
    small_models.judge("some", lambda calls: verdicts, contents, show=0)
    assert "| some | 0.50 (" in (line := capsys.readouterr().out)
    assert "| 0 of 0 | 1 of 4 | 1 |" in line


def test_three_facts_counts_what_comes_back_from_a_store_opened_anew(micro, tmp_path, capsys):
    def respond(turn):
        said = turn.text.partition("<User> ")[2].partition("\n")[0]
        if "cashews" in said:
            return ""  # this one is lost
        call = {"memory_type": "semantic", "content": said}
        return format_call(INSERT, call, micro.env.prompt.dialect)

    env = micro.env.replace(answerer=extractive_answers)
    agent = lambda store: MemoryAgent(env, scripted_writer(env, respond), Store(store))
    options = SimpleNamespace(agent=agent, show=True)
    right, seconds = three_facts.attempt(options, three_facts.read_tries("known")[0], tmp_path)
    assert right == [True, False, True] and len(seconds) == 3
    assert 'NO  "I\'m allergic to cashews."' in capsys.readouterr().out
    (folder := tmp_path / "again").mkdir()
    options.agent = lambda store: MemoryAgent(env, three_facts.verbatim_writer(env), Store(store))
    right, _ = three_facts.attempt(options, three_facts.read_tries("known")[0], folder)
    assert right == [True, True, True]
