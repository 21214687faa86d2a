"""Parts of the loop that the end-to-end run on the default config does not reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from experiments.lib.checks import check
from experiments.lib.instances import training_batches
from experiments.lib.objects import build_optimizer
from experiments.lib.warm_start import ahead, quote_batch, trace_batch
from experiments.train import make_learner
from memalpha.batch import plan_micro_batches
from memalpha.credit import add_credit
from memalpha.data.instance import Instance, Question
from memalpha.learner import init_state
from memalpha.model import ModelConfig, init_params
from memalpha.rollout import run_episodes, scripted_writer, to_batch
from memalpha.tools import Call, parse_calls

SMALL = "warm_start.rows=6,warm_start.micro_batch=0,rl.instances=2,rl.rollouts=2,rl.micro_batch=0"


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
    for number, episode in enumerate(episodes):
        episode.r1 = 0.3 * number  # rewards that differ within every group
    batch = to_batch(episodes, 2, 600, 64, 8)
    batch = batch.with_targets(sample_logps=None)
    if config.rl.call_credit:
        batch = add_credit(batch, episodes, micro.env)
    learner = make_learner(config, model, optimizer, params)
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
