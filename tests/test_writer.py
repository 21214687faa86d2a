"""The policy as a writer: one prefix for all prompts, and no shape that was not there before."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.lib.compilations import compilations
from memalpha import sampler
from memalpha.batch import plan_micro_batches
from memalpha.data import synthetic
from memalpha.learner import init_state, make_update
from memalpha.lm.trained import trained_writer
from memalpha.memory import apply_batch
from memalpha.model import init_params
from memalpha.objective import LossConfig
from memalpha.optimizer import OptimizerConfig, make_optimizer
from memalpha.policy import Policy
from memalpha.prompts import load_template
from memalpha.rollout import run_episodes, scripted_writer, to_batch
from memalpha.tools import format_call
from memalpha.writer import common_prefix, policy_writer

ROWS = 4


@pytest.fixture(scope="module")
def env(micro):
    """With the instructions for a pretrained model: hundreds of tokens that are always the same."""
    return micro.env.replace(
        template=load_template("full"), prompt_tokens=4096, response_tokens=5, recent=2
    )


@pytest.fixture(scope="module")
def params(micro):
    return init_params(micro.model, jax.random.key(0))


def says_much(env):
    """A writer that fills all three memories."""

    def respond(turn):
        text = turn.instance.chunks[turn.chunk]
        insert = {"memory_type": "episodic", "content": text}
        core = {"memory_type": "core", "new_content": text}
        calls = ("new_memory_insert", insert), ("memory_update", core)
        return "\n".join(format_call(*call, env.prompt.dialect) for call in calls)

    return scripted_writer(env, respond, with_prompts=True)


@pytest.mark.parametrize("dialect", ["qwen3", "qwen_agent"])
@pytest.mark.parametrize("enabled", [(True, True, True), (True, False, False)])
def test_all_prompts_begin_with_the_common_prefix(env, dialect, enabled):
    env = env.replace(dialect=dialect, enabled=enabled)
    shared = common_prefix(env.prompt)
    assert len(shared) > 200
    instances = [synthetic.generate("events", "train", i, chunks=3) for i in range(3)]
    episodes = run_episodes(env, instances, says_much(env))
    prompts = [step.response.prompt.tolist() for episode in episodes for step in episode.steps]
    assert all(prompt[: len(shared)] == shared for prompt in prompts)
    assert any(episode.view.tokens for episode in episodes)


def sampled(env, micro, params, min_prefix):
    env = env.replace(prompt_tokens=3072)
    instances = [synthetic.generate("facts", "train", i, chunks=2) for i in range(3)]
    writer = policy_writer(params, micro.model, env, ROWS, jax.random.key(1), min_prefix=min_prefix)
    episodes = run_episodes(env, instances, writer)
    return [step.response for episode in episodes for step in episode.steps]


def test_the_prefix_is_computed_once_and_changes_nothing(env, micro, params, monkeypatch):
    made, given = [], []
    prefill, generate = sampler.prefill, sampler.generate

    def spy(*args):
        given.append((args[2].shape[1], args[10]))
        return generate(*args)

    monkeypatch.setattr(sampler, "prefill", lambda *args: made.append(args[2]) or prefill(*args))
    monkeypatch.setattr(sampler, "generate", spy)
    shared = common_prefix(env.prompt)
    one = sampled(env, micro, params, 64)
    assert made == [shared]  # for two chunks
    assert [width for width, _ in given] == [3072 - len(shared)] * 2
    for off in (0, len(shared) + 1):
        two = sampled(env, micro, params, off)
        assert given[-1] == (3072, None)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_allclose(a.logps, b.logps, atol=1e-4)
    assert len(made) == 1


def test_prompts_without_the_prefix_are_written_to_whole(env, micro, params, monkeypatch):
    want = sampled(env, micro, params, 0)
    monkeypatch.setattr("memalpha.writer.common_prefix", lambda spec: [1] * 100)
    got = sampled(env, micro, params, 64)
    assert [r.tokens.tolist() for r in got] == [r.tokens.tolist() for r in want]


def test_nothing_is_compiled_after_the_warm_up(micro):
    """Unequal episodes in any order, refilled and compacted, and the update of what they wrote."""
    env = micro.env.replace(response_tokens=8)
    optimizer = make_optimizer(OptimizerConfig(1e-3))
    update = make_update(micro.model, LossConfig(), optimizer)
    state = init_state(init_params(micro.model, jax.random.key(0)), optimizer)
    lengths = (1, 7, 2, 5, 2, 1)  # 4 rows of the first are refilled, then 2 go on, then 1
    pool = [synthetic.generate("facts", "train", i, chunks=n) for i, n in enumerate(lengths)]

    def counts():
        traces = sampler._generate._cache_size(), apply_batch._cache_size()
        return np.array([*traces, compilations()])

    def step(number):
        nonlocal state
        instances = [pool[i] for i in np.random.default_rng(number).permutation(len(pool))]
        writer = policy_writer(state.params, micro.model, env, ROWS, jax.random.key(number))
        episodes = run_episodes(env, instances, writer, seed=number, rows=ROWS)
        batch = to_batch(episodes, 1, 320, 8, 24)
        batch = batch.with_targets(advantages=np.linspace(-1, 1, 24, dtype=np.float32))
        state, metrics = update(state, batch, plan_micro_batches(batch, 8))
        assert np.isfinite(jax.device_get(metrics["loss"]))

    jax.clear_caches()  # of other tests with the same shapes
    before = counts()
    step(0)
    generate, apply, compiled = counts() - before
    assert (generate, apply) == (3, 3) and compiled >= 3 + 3 + 1
    before = counts()
    for number in (1, 2, 3):
        step(number)
        assert (counts() - before).tolist() == [0, 0, 0], number


def test_the_writer_for_use_says_what_the_writer_of_training_says(micro):
    """The engine that compiles in seconds, and `sampler.generate`."""
    params = init_params(micro.model, jax.random.key(0))
    params = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, params)  # says different things
    env = micro.env.replace(response_tokens=24)
    instances = synthetic.generate_many(["facts", "events"], "test", 1)
    used = trained_writer(params, micro.model, env)
    trained = policy_writer(params, micro.model, env, 2, jax.random.key(0), 0.0, draft_tokens=2)
    ours, theirs = (run_episodes(env, instances, writer, ask=False) for writer in (used, trained))
    for one, other in zip(ours, theirs, strict=True):
        for step, like in zip(one.steps, other.steps, strict=True):
            assert step.response.tokens.tolist() == like.response.tokens.tolist()
            for response in (step.response, like.response):
                assert 0 < response.passes <= len(response.tokens)
            assert step.response.prompt.tolist() == like.response.prompt.tolist()
            assert step.response.finished == like.response.finished
    sampled = trained_writer(params, micro.model, env, temperature=1.0, seed=3)
    together = run_episodes(env, instances, sampled, ask=False)[1].steps[0].response.tokens
    first = run_episodes(env, instances[:1] * 2, sampled, ask=False)
    assert first[0].steps[0].response.tokens.tolist() != first[1].steps[0].response.tokens.tolist()
    again = run_episodes(env, [instances[1], instances[1]], sampled, ask=False)
    assert again[1].steps[0].response.tokens.tolist() == together.tolist()


def test_a_deep_policy_is_used_on_the_engine(micro, monkeypatch):
    policy = Policy("deep", micro.model, init_params(micro.model, jax.random.key(0)), micro.env)
    monkeypatch.setattr("memalpha.policy.trained_writer", lambda *a: "engine")
    assert policy.writer() != "engine"
    assert replace(policy, model=replace(micro.model, num_layers=9)).writer() == "engine"
