"""Parts of the loop that the end-to-end run on the default config does not reach."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from experiments.lib.checks import check
from experiments.lib.instances import rollout_batches, training_batches
from experiments.lib.measure import summarise
from experiments.lib.objects import build_optimizer
from experiments.lib.warm_start import ahead, quote_batch, trace_batch
from experiments.lib.writers import teacher
from experiments.train import make_learner, reward_silence, sample, score
from memalpha.baselines.scripted import careful
from memalpha.batch import plan_micro_batches
from memalpha.credit import add_credit
from memalpha.data.instance import Instance, Question
from memalpha.episode import Clock
from memalpha.learner import init_state
from memalpha.memory import MemoryView
from memalpha.model import ModelConfig, init_params
from memalpha.pieces import cut_chunks
from memalpha.rollout import run_episodes, scripted_writer, to_batch
from memalpha.tools import INSERT, Call, format_call, parse_calls

SMALL = "warm_start.rows=6,warm_start.micro_batch=0,rl.instances=2,rl.rollouts=2,rl.micro_batch=0"

EMPTY = MemoryView("", (), (), 0, 0, 0)


def real_instance() -> Instance:
    """A labelled instance in the published form, blank lines included."""
    chunk = (
        "[Dialogue between User and Assistant on 2024-01-01 00:00]\n<User>Examples:\n\n"
        "Sentence: wake me at six\nLabel: 3\n\nSentence: play a song\nLabel: 7\n"
        "<Assistant>Thank you."
    )
    return Instance("nlu", "one", (chunk,), (Question("play it", ("7",)),), {"label_names": {}})


LINES = [line for line in real_instance().chunks[0].split("\n") if line]


def quoted(micro, env) -> list[list[Call]]:
    config = tiny.get_config(SMALL + ",data.chunks=1")
    batch = quote_batch(config, env, lambda step, size: [real_instance()] * size, 0)
    assert batch.tokens.completion.shape[0] == 6
    rows = (batch.tokens.completion[row][batch.tokens.completion_mask[row]] for row in range(6))
    return [
        parse_calls(micro.tokenizer.decode(ids, skip_special_tokens=True), env.prompt.dialect)
        for ids in rows
    ]


def test_quotes_are_calls_that_store_pieces_of_the_chunk(micro, monkeypatch):
    monkeypatch.setattr("experiments.lib.warm_start.QUOTE_CORE", 0.0)
    for calls in quoted(micro, micro.env):
        assert calls and all(c.arguments["memory_type"] in ("semantic", "episodic") for c in calls)
        pieces = [call.arguments["content"] for call in calls]
        lines = [[n for n, line in enumerate(LINES) if piece in line] for piece in pieces]
        assert all(lines)
        clear = [found[0] for found in lines if len(found) == 1]
        assert clear == sorted(set(clear))  # no line twice, and in reading order


@pytest.mark.parametrize("flat", [False, True])
def test_quotes_in_the_core_join_pieces_in_reading_order(micro, monkeypatch, flat):
    monkeypatch.setattr("experiments.lib.warm_start.QUOTE_CORE", 0.0 if flat else 1.0)
    env = micro.env.replace(enabled=(True, False, False)) if flat else micro.env
    for calls in quoted(micro, env):
        (call,) = calls
        assert call.arguments["memory_type"] == "core"
        letters = iter("".join("".join(LINES).split()))
        content = "".join(call.arguments["new_content"].split())
        assert content and all(letter in letters for letter in content)


@pytest.mark.parametrize("chunks", [1, 4])
def test_warm_start_batches_have_the_rows_of_the_config(micro, chunks):
    config = tiny.get_config(f"{SMALL},data.chunks={chunks},prompt.tokens=600")
    batches = training_batches(config)
    for make in (quote_batch, trace_batch):
        assert make(config, micro.env, batches, 3).tokens.prompt.shape[0] == 6


def test_a_chunk_too_long_for_the_prompt_is_cut_in_the_warm_start(micro, long_instance):
    config = tiny.get_config(f"{SMALL},data.chunks=2,prompt.tokens=320")
    for make in (quote_batch, trace_batch):
        cut = Counter()
        batch = make(config, micro.env, lambda step, size: [long_instance] * size, 3, cut)
        assert batch.tokens.prompt.shape == (6, 320) and batch.rows.valid.all()
        assert cut == {3: 1}


def test_a_chunk_too_long_for_the_prompt_is_cut_in_a_training_step(micro, long_instance):
    config = tiny.get_config(
        f"{SMALL},data.chunks=2,prompt.tokens=320,prompt.response_tokens=8,rl.rerolls=1,rl.kl=none,"
        "reward.chunk_weight=0.5,reward.silence=True,rl.call_credit=False,rl.groups=chunk"
    )
    env = micro.env.replace(response_tokens=8)
    params, clock = init_params(micro.model, jax.random.key(0)), Clock()
    short = replace(long_instance, chunks=long_instance.chunks[:1], instance_id="short")
    short = replace(short, metadata={"notes": long_instance.metadata["notes"][:1]})
    draw = lambda step, size: [long_instance, short]
    sampled = sample(config, env, micro.model, params, draw, 0, clock)
    episodes, batch = score(config, env, sampled, 0, clock)
    read = [len(e.instance.chunks) for e in episodes]
    assert read[0] == read[1] > 3 and read[2:] == [1, 1] and cut_chunks(episodes) == 1
    steps = sum(read) + 2
    assert len(batch.rows.valid) % 10 == 0  # 2 x 2 x 2 rows and 2 again: what can be divided
    assert steps <= len(batch.rows.valid) < steps + 10 and batch.rows.valid.sum() == steps
    assert batch.rows.chunk[: read[0]].tolist() == list(range(read[0]))
    learner = make_learner(config, micro.model, build_optimizer(config), params, params)
    state = init_state(jax.tree.map(jnp.copy, params), build_optimizer(config))
    plan = plan_micro_batches(batch, None)
    batch, _ = learner.advantages(state, batch, plan)
    _, metrics = learner.update(state, batch, plan, 0)
    assert metrics["nonfinite"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        "rl.groups=rows,rl.aggregation=sequence",
        "rl.groups=episodes,rl.aggregation=token,reward.normalise_each=True,rl.call_credit=False",
        "rl.call_credit=False",
        "rl.groups=chunk,rl.kl=k3,rl.kl_coef=0.1",
        "ppo",
        "ppo,rl.epochs=2,rl.minibatches=2",
    ],
)
def test_every_learner_takes_a_step(micro, arguments):
    config = tiny.get_config(f"{SMALL},prompt.tokens=600,prompt.response_tokens=64,{arguments}")
    check(config)
    fields = micro.model.__dict__ | {"value_head": config.rl.algorithm == "ppo"}
    model = ModelConfig(**fields)
    params = init_params(model, jax.random.key(0))
    optimizer = build_optimizer(config)
    state = init_state(jax.tree.map(jnp.copy, params), optimizer)
    instances = [i for i in training_batches(config)(0, 2) for _ in range(2)]
    texts = iter(["nothing", '<tool_call>\n{"name": "memory_delete"}\n</tool_call>'] * 8)
    episodes = run_episodes(micro.env, instances, scripted_writer(micro.env, lambda t: next(texts)))
    # Rewards that differ within every group.
    episodes = [replace(episode, r1=0.3 * number) for number, episode in enumerate(episodes)]
    batch = to_batch(episodes, 2, 600, 64, 8)
    batch = batch.with_targets(sample_logps=None)
    if config.rl.call_credit:
        batch = add_credit(batch, episodes, micro.env)
    learner = make_learner(config, model, optimizer, params, params)
    plan = plan_micro_batches(batch, config.rl.micro_batch or None)
    batch, _ = learner.advantages(state, batch, plan)
    state, metrics = learner.update(state, batch, plan, 0)
    assert metrics["nonfinite"] == 0
    assert int(state.step) == config.rl.epochs * config.rl.minibatches
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, params)
    assert max(jax.tree.leaves(moved)) > 0
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("rl.micro_batch=7", "rl.micro_batch=7 does not divide its 80 rows"),
        ("ppo,rl.minibatches=3", "rl.minibatches=3 does not divide the 80 rows"),
        ("reward.retriever=bm52", "bm25"),
        ("rl.groups=row", "rows"),
        ("rl.schedule=linear", "cosine"),
        ("rl.optimizer=sgd", "choose 'adamw' or 'muon'"),
        ("eval.every=0", "eval.every=0: give at least 1"),
        ("rl.call_credit=True,rl.divide_by_std=True", "rl.call_credit goes with"),
        ("ppo,rl.call_credit=True", "rl.call_credit goes with"),
    ],
)
def test_settings_that_would_fail_late_fail_at_once(arguments, said):
    with pytest.raises(ValueError, match=said):
        check(tiny.get_config(arguments))


def test_a_misspelt_argument_suggests_the_field():
    with pytest.raises(ValueError, match="steps"):
        tiny.get_config("rl.setps=3")


def test_batches_are_made_one_ahead_in_order_and_their_errors_are_seen():
    made = []

    def make(step):
        made.append(step)
        if step == 7:
            raise ValueError("no batch 7")
        return 10 * step

    assert list(ahead(make, range(3, 6))) == [(3, 30), (4, 40), (5, 50)] and made == [3, 4, 5]
    assert list(ahead(make, range(2, 2))) == []
    with pytest.raises(ValueError, match="no batch 7"):
        list(ahead(make, range(6, 9)))
    assert made[3:] == [6, 7]


def steps_of(micro, source, chunks, notes, texts):
    """One episode whose responses are `texts`, in chunks with these notes."""
    instance = Instance(source, "one", chunks, (Question("Who?", ("Ada",)),), {"notes": notes})
    said = iter(texts)
    return run_episodes(micro.env, [instance], scripted_writer(micro.env, lambda turn: next(said)))


def test_silence_where_nothing_is_to_note_is_no_failure_and_a_call_is_one(micro):
    note = {"memory": "semantic", "content": "Ada came.", "replaces": None}
    call = format_call(INSERT, {"memory_type": "semantic", "content": "Ada came."}, "qwen3")
    episodes = steps_of(
        micro, "squad", ("Ada came.", "lol", "Ada left.", "ok"), [[note], [], [note], []],
        [call, "", "", call.replace("came", "saw it")],
    )  # fmt: skip
    batch = to_batch(episodes, 1, 320, 128, 6)
    paper = batch.rows.rewards["r2"]
    assert paper.tolist() == [1, 0, 0, 1, 0, 0]
    ours = reward_silence(batch, episodes).rows.rewards
    assert ours["r2"].tolist() == [1, 1, 0, 0, 0, 0] and ours["r4"].tolist() == [1, 1, 0, 0, 0, 0]
    means = summarise(episodes)
    assert (means["r2"], means["r2_silence"]) == (0.5, 0.75)


def test_streams_of_several_lengths_take_turns():
    config = tiny.get_config("data.chunks=4")
    config.data.lengths = (1, 4)
    config.data.sources = ("synthetic_facts", "synthetic_events")
    batches = training_batches(config)
    assert [len(instance.chunks) for instance in batches(0, 6)] == [1, 1, 4, 4, 1, 1]
    assert [len(i.chunks) for i in training_batches(config, (2,))(0, 3)] == [2, 2, 2]
    assert batches(3, 2)[0] == batches(0, 8)[6]


def test_a_curriculum_takes_one_length_after_the_other():
    config = tiny.get_config("data.chunks=4,rl.steps=7,rl.curriculum=True")
    with pytest.raises(ValueError, match="at least two lengths"):
        check(config)
    config.rl.lengths = (1, 2, 4)
    check(config)
    batches = rollout_batches(config)
    lengths = [{len(instance.chunks) for instance in batches(step, 5)} for step in range(7)]
    assert lengths == [{1}, {1}, {1}, {2}, {2}, {4}, {4}]
    config.rl.curriculum = False
    assert {len(instance.chunks) for instance in rollout_batches(config)(0, 15)} == {1, 2, 4}


def test_a_careful_teacher_keeps_what_names_something_and_its_room(micro):
    notes = [
        {"memory": "semantic", "content": content, "replaces": None}
        for content in ("The work was hard.", "In the end Ada won.", "It took 3 days.", "I saw it.")
    ]
    long = {"memory": "semantic", "content": "It took 99 days. " * 20, "replaces": None}
    (chosen,) = [
        careful(Instance("squad", "one", ("x",), (), {"notes": [notes]}), 0, EMPTY),
    ]
    assert [call.arguments["content"] for call in chosen] == [
        "In the end Ada won.", "It took 3 days.",
    ]  # fmt: skip
    config = tiny.get_config("prompt.response_tokens=40,warm_start.teacher=careful")
    questions = (Question("Who?", ("Ada",)),)
    (episode,) = run_episodes(
        micro.env,
        [Instance("synthetic_facts", "one", ("x",), questions, {"notes": [[long, *notes]]})],
        teacher(config, micro.env, None),
    )
    (step,) = episode.steps
    assert 0 < len(step.calls) < 4 and len(step.response.tokens) <= 40
    assert not any(call.error for call in step.calls)


def test_an_unknown_teacher_is_refused():
    with pytest.raises(ValueError, match="warm_start.teacher='kind'.*poor.*careful"):
        check(tiny.get_config("warm_start.teacher=kind"))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data.lengths": (2, 9)}, r"data.lengths=\(2, 9\).*from 1 to.*data.chunks=2"),
        ({"rl.lengths": (0,)}, "rl.lengths"),
        ({"data.sources": ("lme_train",)}, "lme_train, longmemeval_s and single messages have"),
        ({"data.sources": ()}, "name at least one"),
        ({"lora.path": "nowhere"}, "lora.path='nowhere' needs config.lora.rank"),
    ],
)
def test_fields_of_streams_and_adapters_are_checked_at_the_start(changes, said):
    config = tiny.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=said):
        check(config)


def test_a_pool_of_several_lengths_leaves_out_what_is_longer(monkeypatch):
    made = {n: [Instance("lme_train", f"{n}-{m}", ("x",) * m, ()) for m in (n, 5)] for n in (2, 3)}
    given = []

    def build(config, source, split, count, chunks):
        given.append((count, chunks))
        return made[chunks]

    monkeypatch.setattr("experiments.lib.instances.build_instances", build)
    config = tiny.get_config("data.chunks=8,data.instances=5")
    config.data.sources = ("lme_train",)
    pool = {instance.instance_id for instance in training_batches(config, (2, 3))(0, 40)}
    assert pool == {"2-2", "3-3"} and given == [(3, 2), (3, 3)]
    with pytest.raises(ValueError, match="lme_train: 5 instances .* at most 2 .* longest of 5"):
        training_batches(config, (2,))
    monkeypatch.setattr("experiments.lib.instances.build_instances", lambda *a, **k: [])
    with pytest.raises(ValueError, match="there are 0"):
        training_batches(config, (2, 3))
