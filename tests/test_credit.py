"""Credit for single calls: what each changed, which tokens it has, what it is compared with."""

import dataclasses

import numpy as np
import pytest

from memalpha import credit, losses, rollout
from memalpha.data.instance import Instance, Question
from memalpha.passages import stems
from memalpha.tokenizer import encode
from memalpha.tools import DELETE, INSERT, UPDATE, Call, format_call, format_response

ANNA, BERT = "The hobby of Anna Berg is chess.", "The town of Bert Lang is Basel."
DIARY = "2024/05/01: I painted the red fence."


def instance(*chunks, source="synthetic_facts"):
    questions = (
        Question("What is the hobby of Anna Berg?", ("chess",)),
        Question("What is the town of Bert Lang?", ("Basel",)),
    )
    return Instance(source, "one", chunks, questions)


def insert(content, memory="semantic"):
    return Call(INSERT, {"memory_type": memory, "content": content})


def episode(env, *responses, of=None):
    """An episode whose chunk n is answered with responses[n], a text or a list of calls."""
    of = of or instance(*[f"chunk {n}" for n in range(len(responses))])
    texts = [r if isinstance(r, str) else format_response(r, env.dialect) for r in responses]
    writer = rollout.scripted_writer(env, lambda turn: texts[turn.chunk])
    return rollout.run_episodes(env, [of], writer)[0]


def gains(env, *responses, **more):
    return credit.call_gains(episode(env, *responses, **more))


def test_a_question_pays_the_call_that_wrote_what_it_was_answered_from(micro):
    first, second = gains(micro.env, [insert(ANNA), insert("Nothing of note.")], [insert(BERT)])
    assert first["r1"] == pytest.approx([0.5, 0.0], abs=0.01)
    assert second["r1"] == pytest.approx([0.5], abs=0.01)


def test_parts_of_r1_to_r4_add_up_to_the_rewards(micro):
    calls = [[insert(ANNA), insert(DIARY), insert(ANNA)], "<tool_call>\n{", [insert(BERT)]]
    whole = episode(micro.env, *calls)
    found = credit.call_gains(whole)
    assert sum(step["r1"].sum() for step in found) == pytest.approx(whole.r1)
    assert 1 + sum(step["r3"].sum() for step in found) == pytest.approx(whole.r3)
    for step, of_step in zip(whole.steps, found, strict=True):
        assert of_step["r2"].sum() == pytest.approx(step.r2, abs=1e-6)
        assert of_step["r4"].sum() == pytest.approx(step.r4, abs=1e-6)


def test_shares_of_executed_and_of_fit_calls_by_hand(micro):
    # Fit and executed; executed, but a diary line in semantic memory; a duplicate.
    (step,) = gains(micro.env, [insert(ANNA), insert(DIARY), insert(ANNA)])
    assert step["r2"] == pytest.approx([1, 0, 2 / 3 - 1])
    assert step["r4"] == pytest.approx([1, 1 / 2 - 1, 1 / 3 - 1 / 2])


def test_an_entry_pays_who_wrote_it_last_and_nobody_once_it_is_gone(micro):
    env = dataclasses.replace(micro.env, first_ids=(7, 7))
    wrong = "The hobby of Anna Berg is golf."
    update = Call(UPDATE, {"memory_type": "semantic", "memory_id": "7", "new_content": ANNA})
    first, second = gains(env, [insert(wrong)], [update])
    assert first["r1"].sum() == 0 and second["r1"] == pytest.approx([0.5])
    delete = Call(DELETE, {"memory_type": "semantic", "memory_id": "7"})
    first, second = gains(env, [insert(ANNA)], [delete, insert(BERT)])
    assert first["r1"].sum() == 0 and second["r1"] == pytest.approx([0, 0.5])
    assert first["r3"].sum() == -second["r3"][0] < 0  # the delete gives back what the insert took


def test_what_is_read_from_the_core_is_shared_by_all_who_wrote_it(micro):
    story = instance("a", "b", "c", source="synthetic_story")
    story = dataclasses.replace(story, questions=(Question("Summary?", ("chess", "Basel")),))
    core = [[Call(UPDATE, {"memory_type": "core", "new_content": t})] for t in (ANNA, ANNA + BERT)]
    first, second, third = gains(micro.env, *core, [insert(DIARY, "episodic")], of=story)
    assert first["r1"] == pytest.approx([0.5]) and second["r1"] == pytest.approx([0.5])
    assert third["r1"] == pytest.approx([0])


def test_unanswered_and_masked_questions_pay_nobody(micro):
    whole = episode(micro.env, [insert(ANNA), insert(BERT)])
    whole.scores = [1.0, float("nan")]
    (step,) = credit.call_gains(whole)
    assert step["r1"] == pytest.approx([1, 0], abs=0.01)
    whole.scores = [0.0, float("nan")]
    assert credit.call_gains(whole)[0]["r1"].sum() == 0


def test_an_episode_without_scores_is_refused(micro):
    whole = episode(micro.env, [insert(ANNA)])
    whole.scores = []
    with pytest.raises(ValueError, match="no scores yet"):
        credit.call_gains(whole)


def test_evidence_shares_by_hand():
    words = stems("hobby anna berg chess").content
    found = credit.evidence_shares(words, [ANNA, "", "The town of Anna Berg is Bern."])
    assert found == pytest.approx([16 / 17, 0, 1 / 17])
    assert credit.evidence_shares(words, ["", BERT]).tolist() == [0, 0]
    assert credit.evidence_shares(words, []).tolist() == []


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


def test_calls_of_another_parser_have_no_parts(micro):
    env = dataclasses.replace(micro.env, parse=lambda text, dialect: [insert(ANNA)])
    whole = episode(env, "remember Anna")
    assert credit.token_parts(env, whole.steps[0]) is None
    batch = credit.add_credit(rollout.to_batch([whole], 1, 320, 32, 2), [whole], env)
    assert (batch.part == -1).all()
    parts = credit.part_advantages(batch, WEIGHTS, batch.group)
    mixed = credit.mix(np.array([2.0, 0.0], np.float32), parts, batch, 0.7)
    assert (np.asarray(mixed)[0] == 2).all()


WEIGHTS = {"r1": 1.0, "r2": 1.0, "r3": 0.0, "r4": 0.1}


def batch_of(env, *responses):
    episodes = [episode(env, r) for r in responses]
    rows = len(episodes) + 1  # one of filler
    batch = rollout.to_batch(episodes, len(episodes), 320, 96, rows)
    return credit.add_credit(batch, episodes, env)


def test_a_part_is_compared_with_the_same_part_of_its_group_by_hand(micro):
    good, twice = insert(ANNA), [insert(ANNA), insert(ANNA)]
    batch = batch_of(micro.env, [good], twice, "")
    values = credit.part_advantages(batch, WEIGHTS, np.zeros(4, int), divide_by_std=False)
    # Part 0: two were paid 0.5 + 1 + 0.1, the silent one 0. Part 1: one stopped, and was paid 0,
    # the other wrote a duplicate, which halves r2 and r4.
    first = np.array([1.6, 1.6, 0.0]) - 3.2 / 3
    second = np.array([0.0, -0.55]) + 0.55 / 2
    for row, (of_part, value) in enumerate(zip((0, 0, 0), first, strict=True)):
        assert np.asarray(values)[row][batch.part[row] == of_part] == pytest.approx(value, abs=0.02)
    for row, value in enumerate(second):
        mine = (batch.part[row] == 1) & batch.completion_mask[row]
        assert mine.any() and np.asarray(values)[row][mine] == pytest.approx(value, abs=0.02)
    assert (np.asarray(values)[~batch.completion_mask] == 0).all()  # padding, and the filler row
    last = np.asarray(values)[1][(batch.part[1] == 2) & batch.completion_mask[1]]
    assert last.tolist() == [0]  # nobody to compare with


def test_one_call_each_reduces_to_the_advantage_of_the_response(micro):
    """Where all write one call from which all is answered, part 0 is the whole response."""
    both = ANNA + " " + BERT
    batch = batch_of(micro.env, [insert(both)], [insert(ANNA)], [insert(BERT)])
    groups = np.zeros(4, int)
    options = dict(divide_by_std=True)
    whole, _ = losses.combined_advantages(batch.rewards, WEIGHTS, groups, batch.valid, **options)
    parts = np.asarray(credit.part_advantages(batch, WEIGHTS, groups, **options))
    for row in range(3):
        assert parts[row][batch.part[row] == 0] == pytest.approx(float(whole[row]), rel=1e-4)


def test_mixing(micro):
    batch = batch_of(micro.env, [insert(ANNA)], "")
    whole = np.array([1.0, -1.0, 0.0], np.float32)
    parts = np.full(batch.completion.shape, 3.0, np.float32)
    mixed = np.asarray(credit.mix(whole, parts, batch, 0.25))
    assert mixed[0][batch.part[0] >= 0] == pytest.approx(0.75 + 0.75)
    assert mixed[1][batch.part[1] >= 0] == pytest.approx(-0.75 + 0.75)
    assert credit.mix(whole, parts, batch, 0.0)[1] == pytest.approx(-1)


def test_more_calls_than_the_memory_takes_share_the_last_part(micro):
    env = dataclasses.replace(micro.env, max_calls=1)
    batch = batch_of(env, [insert(ANNA), insert(BERT), insert(DIARY)])
    assert batch.gains["r2"].shape == (2, 2) and set(batch.part[0].tolist()) == {-1, 0, 1}
    assert batch.gains["r2"][0] == pytest.approx([1, 1 / 3 - 1])


def test_a_masked_row_gets_no_part(micro):
    whole = episode(micro.env, [insert(ANNA)])
    whole.r1 = float("nan")
    batch = credit.add_credit(rollout.to_batch([whole], 1, 320, 96, 1), [whole], micro.env)
    assert (batch.part == -1).all()


def test_tokens_are_found_as_a_scan_finds_them(micro):
    text = "añb ❤ c" * 3
    tokens = encode(micro.tokenizer, text)
    step = rollout.Step(
        0, [], rollout.Response(tokens), text, [Call("x", {}, end=9)], [], [], 0.0, 0.0
    )
    parts = credit.token_parts(micro.env, step)
    lengths = [len(micro.tokenizer.decode(tokens[:n])) for n in range(len(tokens) + 1)]
    assert (parts == 0).sum() == next(n for n, size in enumerate(lengths) if size >= 9)
