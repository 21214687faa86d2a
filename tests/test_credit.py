"""Credit for single calls: which tokens a call has, what it is paid, what it is compared with."""

import dataclasses

import numpy as np
import pytest

from configs import tiny
from experiments import train
from memalpha import credit, losses, rollout
from memalpha.data.instance import Instance, Question
from memalpha.tokenizer import encode
from memalpha.tools import DELETE, INSERT, Call, format_call, format_response

ANNA, BERT = "The hobby of Anna Berg is chess.", "The town of Bert Lang is Basel."
DIARY = "2024/05/01: I painted the red fence."
NAN = float("nan")


def insert(content, memory="semantic"):
    return Call(INSERT, {"memory_type": memory, "content": content})


def episode(env, *responses):
    """An episode whose chunk n is answered with responses[n], a text or a list of calls."""
    asked = (Question("What is the hobby of Anna Berg?", ("chess",)),)
    chunks = tuple(f"chunk {n}" for n in range(len(responses)))
    texts = [r if isinstance(r, str) else format_response(r, env.prompt.dialect) for r in responses]
    writer = rollout.scripted_writer(env, lambda turn: texts[turn.chunk])
    of = Instance("synthetic_facts", "one", chunks, asked)
    return rollout.run_episodes(env, [of], writer)[0]


def batch_of(env, *responses):
    """A group of one-chunk episodes, and a row of filler."""
    episodes = [episode(env, response) for response in responses]
    batch = rollout.to_batch(episodes, len(episodes), 320, 96, len(episodes) + 1)
    return credit.add_credit(batch, episodes, env)


def values(batch, gamma=0.1, groups=None):
    """Advantages by row and call: {(row, call): value}; every token of a call has the same."""
    groups = batch.rows.instance if groups is None else groups
    paid = credit.call_advantages(batch, gamma, groups)
    assert paid.shape == batch.tokens.completion.shape and paid.dtype == np.float32
    assert (paid[~batch.tokens.completion_mask] == 0).all()
    of_call = {}
    for row, call in np.ndindex(len(paid), batch.rows.fit.shape[1]):
        mine = paid[row][batch.tokens.completion_mask[row] & (batch.rows.call[row] == call)]
        if mine.size:
            assert (mine == mine[0]).all()
            of_call[row, call] = float(mine[0])
    return of_call


def test_only_what_was_executed_is_judged(micro):
    # Fit and executed; executed, but a diary line in semantic memory; a duplicate.
    whole = episode(micro.env, [insert(ANNA), insert(DIARY), insert(ANNA)], "<tool_call>\n{", "")
    three, cut, silent = map(credit.call_fit, whole.steps)
    assert three == pytest.approx([1, 0, NAN], nan_ok=True)
    assert cut == pytest.approx([NAN], nan_ok=True) and silent == []
    assert np.nansum(three) / 3 == pytest.approx(whole.steps[0].r4)


def test_a_delete_is_fit_where_its_target_was_there(micro):
    env = micro.env.replace(first_ids=(7, 7))
    there, missing = (
        Call(DELETE, {"memory_type": "semantic", "memory_id": number}) for number in ("7", "8")
    )
    step = episode(env, [insert(ANNA), there, missing]).steps[0]
    assert credit.call_fit(step) == pytest.approx([1, 1, NAN], nan_ok=True)


@pytest.mark.parametrize("dialect", ["qwen3", "qwen_agent"])
def test_every_token_belongs_to_the_call_it_writes(micro, dialect):
    env = micro.env.replace(dialect=dialect)
    calls = [insert("Zürich ❤ " + ANNA), insert(BERT), insert(DIARY, "episodic")]
    (step,) = episode(env, calls).steps
    parts = credit.token_calls(env, step)
    assert parts.tolist() == sorted(parts.tolist()) and parts[-1] == 3  # the end of the response
    for part, call in enumerate(calls):
        mine = [t for t, p in zip(step.response.tokens, parts, strict=True) if p == part]
        text = env.prompt.tokenizer.decode(mine).strip()
        assert text == format_call(call.name, call.arguments, dialect)


def test_a_call_cut_off_has_the_end_of_its_response(micro):
    cut = format_call(INSERT, insert(BERT).arguments, "qwen3")[:-20]
    good = format_call(INSERT, insert(ANNA).arguments, "qwen3")
    (step,) = episode(micro.env, good + "\n" + cut).steps
    parts = credit.token_calls(micro.env, step)
    assert set(parts.tolist()) == {0, 1} and parts[-1] == 1
    (silent,) = episode(micro.env, "").steps
    assert credit.token_calls(micro.env, silent).tolist() == [0]


def test_borders_are_found_as_a_scan_finds_them(micro):
    text = "añb ❤ c" * 3
    tokens = encode(micro.tokenizer, text)
    step = rollout.Step(0, [], rollout.Response(tokens), text, [Call("x", {}, end=9)], [], [], 0, 0)
    parts = credit.token_calls(micro.env, step)
    lengths = [len(micro.tokenizer.decode(tokens[:n])) for n in range(len(tokens) + 1)]
    assert (parts == 0).sum() == next(n for n, size in enumerate(lengths) if size >= 9)


def test_calls_of_another_parser_are_refused_unless_they_keep_their_place(micro):
    env = micro.env.replace(parse=lambda text, dialect: [insert(ANNA)])
    with pytest.raises(ValueError, match=r"to keep Call\.end.*rl\.call_credit=False"):
        batch_of(env, "remember Anna")
    keeping = lambda text, dialect: [dataclasses.replace(insert(ANNA), end=8)]
    batch = batch_of(env.replace(parse=keeping), "remember Anna")
    assert set(batch.rows.call[0].tolist()) == {0, 1}


def test_advantages_by_hand(micro):
    bad = [insert(ANNA), insert(DIARY), insert(ANNA)]  # fit; not fit; a duplicate
    good = [insert(DIARY, "episodic"), insert(BERT)]
    paid = values(batch_of(micro.env, [insert(DIARY)], bad, good, ""))
    # Of three first calls two were fit, of two second ones one.
    assert paid[0, 0] == pytest.approx(-0.1 * 2 / 3)
    assert paid[1, 0] == paid[2, 0] == pytest.approx(0.1 / 3)
    assert paid[1, 1] == pytest.approx(-0.05) and paid[2, 1] == pytest.approx(0.05)
    # The duplicate, the silent response, and what follows the last call.
    assert paid[1, 2] == paid[3, 0] == paid[0, 1] == paid[1, 3] == paid[2, 2] == 0


def test_calls_in_one_place_gain_nothing_on_average(micro):
    """Else a place that is filed worse than others would be unlearned as such."""
    batch = batch_of(micro.env, [insert(ANNA)], [insert(BERT), insert(DIARY)], [insert(DIARY)])
    paid = values(batch)
    assert sum(paid[row, 0] for row in range(3)) == pytest.approx(0) and paid[2, 0] < 0
    assert paid[1, 1] == 0  # not fit, but nobody else made a second call


def test_groups_are_apart(micro):
    batch = batch_of(micro.env, [insert(ANNA)], [insert(DIARY)], [insert(ANNA)], "")
    apart = values(batch, 1.0, np.array([7, 7, 3, 3, 7]))
    assert (apart[0, 0], apart[1, 0], apart[2, 0], apart[3, 0]) == (0.5, -0.5, 0, 0)


def test_rows_of_filler_and_of_masked_episodes_take_no_part(micro):
    masked, whole = (episode(micro.env, [insert(text)]) for text in (DIARY, ANNA))
    masked.r1 = NAN
    episodes = [masked, whole]
    batch = credit.add_credit(rollout.to_batch(episodes, 2, 320, 96, 3), episodes, micro.env)
    assert np.isnan(batch.rows.fit[[0, 2]]).all()
    assert (credit.call_advantages(batch, 1.0, np.zeros(3, int)) == 0).all()


def test_arrays_of_other_shapes_are_refused(micro):
    batch = batch_of(micro.env, [insert(ANNA)])
    call, fit, valid = batch.rows.call, batch.rows.fit, batch.rows.valid
    rows = len(call)
    for wrong in (np.zeros((rows, 1), int), np.zeros(rows + 1, int), np.zeros(rows)):
        with pytest.raises(AssertionError):
            credit.call_advantages(batch, 1.0, wrong)
    for fields in (
        {"fit": fit[0]},
        {"call": call[:, :-1]},
        {"fit": fit[1:]},
        {"fit": fit > 0},
        {"call": call + 0.5},
    ):
        with pytest.raises(AssertionError):
            credit.call_advantages(batch.with_rows(**fields), 1.0, batch.rows.instance)
    with pytest.raises(AssertionError):
        credit.add_credit(batch.with_rows(valid=valid[:-1]), [], micro.env)


@pytest.mark.parametrize("credited", [False, True])
def test_the_learner_is_given_the_sum_of_both(micro, credited):
    """r1 + r2 + beta r3 of the response, and r4 of the response or of the call."""
    config = tiny.get_config(f"rl.call_credit={credited},rl.kl=none")
    batch = batch_of(micro.env, [insert(ANNA), insert(DIARY)], [insert(DIARY)], "")
    given = np.asarray(train.group_advantages(config, batch)[0].targets.advantages)
    weights = {"r1": 1.0, "r2": 1.0, "r3": config.reward.beta, "r4": config.reward.gamma}
    of_response = weights | ({"r4": 0.0} if credited else {})
    whole, _ = losses.combined_advantages(
        batch.rows.rewards, of_response, batch.rows.instance, batch.rows.valid, divide_by_std=False
    )
    if credited:
        own = credit.call_advantages(batch, config.reward.gamma, batch.rows.instance)
        assert given == pytest.approx(np.asarray(whole)[:, None] + own) and own.any()
    else:
        assert given == pytest.approx(np.asarray(whole))
