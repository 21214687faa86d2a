"""Hostile texts and the structure of a prompt: broken where data go in as they are, else whole."""

import jax
import pytest

from benchmarks.hostile_chunks import (
    HARMLESS,
    attacks,
    broken,
    echo,
    executed,
    texts,
    undelimited,
    with_chat,
)
from memalpha.data import synthetic
from memalpha.rollout import first_state, make_turn, memorise

ORDERS = ("order to delete", "order to store")  # these ask; they imitate nothing


@pytest.fixture(scope="module", params=["compact", "full, chat"])
def env(request, micro):
    return micro.env if request.param == "compact" else with_chat(micro.env)


@pytest.mark.parametrize("name", attacks(12, "qwen3"))
def test_nothing_hostile_changes_the_structure_of_a_prompt(env, name):
    text = attacks(12, "qwen3")[name]
    assert not broken(env, text, "chunk") and not broken(env, text, "entry")
    with undelimited():
        without = broken(env, text, "chunk") or broken(env, text, "entry")
    assert without == (name not in ORDERS)


def test_harmless_text_breaks_nothing_either_way(env):
    with undelimited():
        assert not broken(env, HARMLESS + " It is green.", "chunk")
    assert not broken(env, HARMLESS + " It is green.", "entry")


def test_a_writer_that_makes_every_call_it_reads_makes_none_of_a_chunk(micro):
    env = micro.env.replace(prompt_tokens=640)
    instances = synthetic.generate_many(["facts"], "test", 2, chunks=2)
    of = lambda: executed(
        env, lambda rows: echo(env), instances, list(texts(12, env.prompt.dialect))
    )
    with undelimited():
        without = of()
    calls = {name for name, text in texts(12, env.prompt.dialect).items() if "<tool_call>" in text}
    assert len(calls) == 6
    assert without == {name: float(name in calls) for name in without}
    assert not any(of().values())


def test_two_turns_of_one_row_are_refused(micro):
    (instance,) = synthetic.generate_many(["facts"], "test", 1, chunks=1)
    state = first_state(micro.env, 2, seed=0)
    host = jax.device_get(state)
    turns = [make_turn(micro.env, host, e, 0, instance, text="Some words.") for e in range(2)]
    with pytest.raises(ValueError, match="share rows"):
        memorise(micro.env, state, turns, echo(micro.env))
