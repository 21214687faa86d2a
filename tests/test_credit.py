"""Credit for single calls: which tokens a call has, what it is paid, what it is compared with."""

import dataclasses

import numpy as np
import pytest

from memalpha import credit, losses, rollout
from memalpha.data.instance import Instance, Question
from memalpha.tokenizer import encode
from memalpha.tools import DELETE, INSERT, Call, format_call, format_response

ANNA, BERT = "The hobby of Anna Berg is chess.", "The town of Bert Lang is Basel."
DIARY = "2024/05/01: I painted the red fence."
WEIGHTS = {"r1": 1.0, "r2": 1.0, "r3": 0.05, "r4": 0.1}


def insert(content, memory="semantic"):
    return Call(INSERT, {"memory_type": memory, "content": content})


def episode(env, *responses):
    """An episode whose chunk n is answered with responses[n], a text or a list of calls."""
    asked = (Question("What is the hobby of Anna Berg?", ("chess",)),)
    chunks = tuple(f"chunk {n}" for n in range(len(responses)))
    texts = [r if isinstance(r, str) else format_response(r, env.dialect) for r in responses]
    writer = rollout.scripted_writer(env, lambda turn: texts[turn.chunk])
    of = Instance("synthetic_facts", "one", chunks, asked)
    return rollout.run_episodes(env, [of], writer)[0]


def batch_of(env, *responses):
    """A group of one-chunk episodes, and a row of filler."""
    episodes = [episode(env, response) for response in responses]
    batch = rollout.to_batch(episodes, len(episodes), 320, 96, len(episodes) + 1)
    return credit.add_credit(batch, episodes, env)


def values(batch, weights=WEIGHTS, groups=None):
    """Advantages by row and call: {(row, call): value}; every token of a call has the same."""
    groups = batch.group if groups is None else groups
    made = credit.call_advantages(batch, weights, groups)
    assert made.shape == batch.completion.shape and made.dtype == np.float32
    assert (made[~batch.completion_mask] == 0).all()
    found = {}
    for row, call in np.ndindex(len(made), 1 + int(batch.calls.max())):
        mine = made[row][batch.completion_mask[row] & (batch.part[row] == call)]
        if mine.size:
            assert (mine == mine[0]).all()
            found[row, call] = float(mine[0])
    return found


def test_terms_are_those_of_which_r2_and_r4_are_the_means(micro):
    # Fit and executed; executed, but a diary line in semantic memory; a duplicate.
    whole = episode(micro.env, [insert(ANNA), insert(DIARY), insert(ANNA)], "<tool_call>\n{", "")
    three, cut, silent = whole.steps
    assert credit.call_terms(three) == ([1, 1, 0], [1, 0, 0])
    assert credit.call_terms(cut) == ([0], [0]) and credit.call_terms(silent) == ([], [])
    for step in (three, cut):
        assert [np.mean(terms) for terms in credit.call_terms(step)] == pytest.approx(
            [step.r2, step.r4]
        )


def test_a_delete_is_fit_where_its_target_was_there(micro):
    env = dataclasses.replace(micro.env, first_ids=(7, 7))
    there, missing = (
        Call(DELETE, {"memory_type": "semantic", "memory_id": number}) for number in ("7", "8")
    )
    step = episode(env, [insert(ANNA), there, missing]).steps[0]
    assert credit.call_terms(step) == ([1, 1, 0], [1, 1, 0])


@pytest.mark.parametrize("dialect", ["qwen3", "qwen_agent"])
def test_every_token_belongs_to_the_call_it_writes(micro, dialect):
    env = dataclasses.replace(micro.env, dialect=dialect)
    calls = [insert("Zürich ❤ " + ANNA), insert(BERT), insert(DIARY, "episodic")]
    (step,) = episode(env, calls).steps
    parts = credit.token_parts(env, step)
    assert parts.tolist() == sorted(parts.tolist()) and parts[-1] == 3  # the end of the response
    for part, call in enumerate(calls):
        mine = [t for t, p in zip(step.response.tokens, parts, strict=True) if p == part]
        text = env.tokenizer.decode(mine).strip()
        assert text == format_call(call.name, call.arguments, dialect)


def test_a_call_cut_off_has_the_end_of_its_response(micro):
    cut = format_call(INSERT, insert(BERT).arguments, "qwen3")[:-20]
    good = format_call(INSERT, insert(ANNA).arguments, "qwen3")
    (step,) = episode(micro.env, good + "\n" + cut).steps
    parts = credit.token_parts(micro.env, step)
    assert set(parts.tolist()) == {0, 1} and parts[-1] == 1
    (silent,) = episode(micro.env, "").steps
    assert credit.token_parts(micro.env, silent).tolist() == [0]


def test_borders_are_found_as_a_scan_finds_them(micro):
    text = "añb ❤ c" * 3
    tokens = encode(micro.tokenizer, text)
    step = rollout.Step(0, [], rollout.Response(tokens), text, [Call("x", {}, end=9)], [], [], 0, 0)
    parts = credit.token_parts(micro.env, step)
    lengths = [len(micro.tokenizer.decode(tokens[:n])) for n in range(len(tokens) + 1)]
    assert (parts == 0).sum() == next(n for n, size in enumerate(lengths) if size >= 9)


def test_calls_of_another_parser_are_refused_unless_they_keep_their_place(micro):
    env = dataclasses.replace(micro.env, parse=lambda text, dialect: [insert(ANNA)])
    with pytest.raises(ValueError, match=r"to keep Call\.end.*rl\.call_credit=False"):
        batch_of(env, "remember Anna")
    keeping = lambda text, dialect: [dataclasses.replace(insert(ANNA), end=8)]
    batch = batch_of(dataclasses.replace(env, parse=keeping), "remember Anna")
    assert set(batch.part[0].tolist()) == {0, 1}


def test_advantages_by_hand(micro):
    bad = [insert(ANNA), insert(DIARY), insert(ANNA)]  # fit; not fit; a duplicate
    found = values(batch_of(micro.env, [insert(ANNA)], bad, [insert(ANNA), insert(BERT)], ""))
    # First calls: three were paid 1 + 0.1, the silent one 0. Later ones: ok 1, 0, 1; fit 0, 0, 1.
    for row in range(3):
        assert found[row, 0] == pytest.approx(1.1 / 4)
    assert found[3, 0] == pytest.approx(-1.1 * 3 / 4)
    assert found[1, 1] == pytest.approx(1 - 2 / 3 + 0.1 * (0 - 1 / 3))
    assert found[1, 2] == pytest.approx(0 - 2 / 3 + 0.1 * (0 - 1 / 3))
    assert found[2, 1] == pytest.approx(1 - 2 / 3 + 0.1 * (1 - 1 / 3))
    assert found[0, 1] == found[1, 3] == found[2, 2] == 0  # to stop is neither paid nor charged


def test_groups_are_apart_and_masked_rows_take_no_part(micro):
    batch = batch_of(micro.env, [insert(ANNA)], "", [insert(ANNA)], "")
    apart = values(batch, groups=np.array([0, 0, 1, 2, 3]))
    assert apart == pytest.approx(
        {(0, 0): 0.55, (1, 0): -0.55, (2, 0): 0, (3, 0): 0} | {(0, 1): 0, (2, 1): 0}
    )
    masked = batch.replace(valid=batch.valid & np.array([1, 0, 1, 1, 1], bool))
    made = credit.call_advantages(masked, WEIGHTS, np.zeros(5, int))
    assert (made[1] == 0).all() and made[0].max() == pytest.approx(1.1 / 3)


def test_one_call_each_reduces_to_the_advantage_of_the_response(micro):
    batch = batch_of(micro.env, [insert(ANNA)], [insert(DIARY)], "")
    parts = {name: WEIGHTS[name] if name in credit.OF_CALLS else 0.0 for name in WEIGHTS}
    whole, _ = losses.combined_advantages(
        batch.rewards, parts, batch.group, batch.valid, divide_by_std=False
    )
    found = values(batch)
    assert [found[row, 0] for row in range(3)] == pytest.approx(np.asarray(whole)[:3].tolist())


def test_rows_of_filler_and_of_masked_episodes_have_no_calls(micro):
    whole = episode(micro.env, [insert(ANNA)])
    whole.r1 = float("nan")
    batch = credit.add_credit(rollout.to_batch([whole], 1, 320, 96, 2), [whole], micro.env)
    assert batch.calls.tolist() == [0, 0]
    assert (credit.call_advantages(batch, WEIGHTS, batch.group) == 0).all()
