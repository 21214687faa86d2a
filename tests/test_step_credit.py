"""Credit of single steps: by the entries that were retrieved, and by questions about a chunk."""

from dataclasses import replace

import numpy as np
import pytest

from configs import tiny
from experiments.lib.checks import check
from experiments.train import CHUNK, reward_weights, step_metrics, training_batch
from memalpha.data import synthetic
from memalpha.data.instance import Instance, Question
from memalpha.episode import Episode, Recall
from memalpha.memory import Entry
from memalpha.reader import Evidence, Request
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.step_credit import chunk_questions, chunk_scores, evidence_credit
from memalpha.tools import INSERT, format_call

FACTS = ("Ada lives in Graz.", "Bob lives in Pisa.", "Cy lives in Oslo.")


def episode(scores, written, steps=3):
    """An episode with these scores; `written`: the steps whose entries each question found."""
    requests = [
        Request("q", "squad", Evidence(semantic=tuple(Entry(i, "x", t) for i, t in enumerate(of))))
        for of in written
    ]
    known = [score for score in scores if not np.isnan(score)]
    r1 = float(np.mean(known)) if known else float("nan")
    instance = Instance("squad", "one", ("c",) * steps, ())
    return Episode(instance, Recall(requests, 0), [None] * steps, scores=scores, r1=r1)


def test_a_step_earns_what_its_entries_brought():
    # The first question found entries of steps 0 and 1, the second one of step 1, the third none.
    one = episode([1.0, 1.0, 0.0], [(0, 1), (1,), ()])
    assert np.allclose(evidence_credit(one, 1.0), [3 * 0.5 / 3, 3 * 1.5 / 3, 0.0])
    half = evidence_credit(one, 0.5)
    assert np.allclose(half, [0.5 * 2 / 3 + 0.25, 0.5 * 2 / 3 + 0.75, 0.5 * 2 / 3])
    assert half.dtype == np.float32


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_mean_over_the_steps_is_r1(share):
    nan = float("nan")
    for one in (
        episode([1.0, 0.5, 0.0], [(0, 1), (), (2,)]),
        episode([1.0, nan, 0.5], [(2,), (0,), (1, 1, 0)]),
        episode([0.0], [()]),
    ):
        credit = evidence_credit(one, share)
        assert np.isclose(credit.mean(), one.r1)
        assert share or np.allclose(credit, one.r1)
    assert np.isnan(evidence_credit(episode([nan], [(0,)]), share)).all()


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="share"):
        evidence_credit(episode([1.0], [(0,)]), share)


def of_facts(metadata=None):
    questions = [
        Question(f"Where does {fact.split()[0]} live?", (fact.split()[-1][:-1],)) for fact in FACTS
    ]
    return Instance("squad", "facts", (*FACTS, "lol"), tuple(questions), metadata or {})


def test_a_question_belongs_to_the_chunk_that_answers_it(micro):
    assert chunk_questions(micro.env, of_facts()) == [[0], [1], [2], []]
    note = lambda text, memory: {"memory": memory, "content": text, "replaces": None}
    notes = [
        [note(FACTS[1], "episodic")],
        [],
        [note(FACTS[0], "core")],
        [note(FACTS[2], "semantic")],
    ]
    assert chunk_questions(micro.env, of_facts({"notes": notes})) == [[1], [], [0], [2]]


@pytest.mark.parametrize("family", ["facts", "events", "labels", "updates", "chats"])
def test_most_synthetic_questions_belong_to_a_chunk(micro, family):
    found = asked = 0
    for instance in (synthetic.generate(family, "train", i, chunks=4) for i in range(3)):
        chosen = chunk_questions(micro.env, instance)
        assert len(chosen) == 4 and all(len(of_chunk) <= 5 for of_chunk in chosen)
        found += len({q for of_chunk in chosen for q in of_chunk})
        asked += len(instance.questions)
    assert found >= 0.6 * asked


def run(micro, texts, keep_views=True):
    """An episode of a writer that stores these texts, one a chunk; "" stores nothing."""
    store = lambda text: format_call(INSERT, {"memory_type": "semantic", "content": text}, "qwen3")
    respond = lambda turn: store(texts[turn.chunk]) if texts[turn.chunk] else ""
    writer = scripted_writer(micro.env, respond)
    return run_episodes(micro.env, [of_facts()], writer, keep_views=keep_views)


def test_chunk_questions_are_asked_right_after_the_step(micro):
    (both, late) = (*run(micro, (*FACTS, "")), *run(micro, (FACTS[1], FACTS[0], "", FACTS[2])))
    scores = chunk_scores(micro.env, [both, late])
    assert np.array_equal(scores[0], [1, 1, 1, np.nan], equal_nan=True)
    # Step 0 did not store its own fact, step 1 found its own in the memory, step 2 came too early.
    assert np.array_equal(scores[1], [0, 1, 0, np.nan], equal_nan=True)
    assert late.r1 == 1.0
    with pytest.raises(ValueError, match="keep_views"):
        chunk_scores(micro.env, run(micro, (*FACTS, ""), keep_views=False))


def test_the_options_change_the_rewards_of_steps_and_nothing_else(micro):
    episodes = [*run(micro, (*FACTS, "")), *run(micro, (FACTS[0], "", "", ""))]
    config = tiny.get_config("data.chunks=4,rl.rollouts=2,rl.call_credit=False")
    config.prompt.tokens, config.prompt.response_tokens = 320, 128
    paper = training_batch(config, micro.env, episodes)
    assert sorted(paper.rows.rewards) == sorted(reward_weights(config)) == ["r1", "r2", "r3", "r4"]
    assert step_metrics(config, paper) == {}
    config.reward.update(evidence_share=1.0, chunk_weight=0.5)
    ours = training_batch(config, micro.env, episodes)
    rewards = ours.rows.rewards
    assert np.allclose(rewards["r1"][:4].mean(), 1) and np.allclose(
        rewards["r1"][4:8].mean(), 1 / 3
    )
    # Every question finds all entries, so each step of the second episode but the first has 0.
    assert np.allclose(rewards["r1"][4:8], [4 / 3, 0, 0, 0])
    # The last chunk answers nothing: the mean of the six steps that were asked stands in.
    assert np.allclose(rewards[CHUNK], [1, 1, 1, 4 / 6, 1, 0, 0, 4 / 6])
    assert all(np.array_equal(rewards[k], paper.rows.rewards[k]) for k in ("r2", "r3", "r4"))
    assert sorted(reward_weights(config)) == sorted(rewards)
    metrics = step_metrics(config, ours)
    assert np.isclose(metrics["reward_chunk"], np.mean(rewards[CHUNK]))
    assert metrics["r1_spread"] >= 4 / 3 / 2


@pytest.mark.parametrize(
    "field, value", [("evidence_share", 1.5), ("evidence_share", -1.0), ("chunk_weight", -0.1)]
)
def test_weights_out_of_range_are_refused_before_a_run(field, value):
    config = tiny.get_config()
    config.reward[field] = value
    with pytest.raises(ValueError, match=field):
        check(config)


def test_whole_episodes_have_no_credit_of_steps():
    config = tiny.get_config()
    config.reward.chunk_weight, config.rl.groups = 0.5, "episodes"
    config.rl.call_credit = False
    with pytest.raises(ValueError, match="groups"):
        check(config)


def test_a_failed_writer_earns_nothing(micro):
    (one,) = run(micro, (*FACTS, ""))
    broken = replace(one, scores=[float("nan")] * 3, r1=float("nan"))
    assert np.isnan(evidence_credit(broken, 0.5)).all()
