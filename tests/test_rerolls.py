"""Steps that are taken again: from the memory before them, and as groups of their own."""

import numpy as np
import pytest

from configs import tiny
from experiments.lib.checks import check
from experiments.train import CHUNK, training_batch
from memalpha import losses
from memalpha.data.instance import Instance, Question
from memalpha.rerolls import reroll
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.tools import INSERT, format_call

FACTS = ("Ada lives in Graz.", "Bob lives in Pisa.", "Cy lives in Oslo.")
QUESTIONS = tuple(
    Question(f"Where does {fact.split()[0]} live?", (fact.split()[-1][:-1],)) for fact in FACTS
)
INSTANCE = Instance("squad", "facts", FACTS, QUESTIONS)


def store(text):
    return format_call(INSERT, {"memory_type": "semantic", "content": text}, "qwen3")


def rollouts(micro, keep_views=True):
    """Two rollouts of one instance; both store every chunk."""
    writer = scripted_writer(micro.env, lambda turn: store(turn.text))
    return run_episodes(micro.env, [INSTANCE] * 2, writer, keep_views=keep_views)


def test_a_step_is_taken_again_from_the_memory_before_it(micro):
    seen = []

    def respond(turn):
        seen.append(turn)
        return "" if turn.row % 2 else store(turn.text)

    again = reroll(micro.env, rollouts(micro), scripted_writer(micro.env, respond), 6, 2)
    assert len(again) == 12 and len({turn.episode for turn in seen}) == 12
    assert min(turn.episode for turn in seen) == 2  # new numbers, so that a policy samples anew
    for turn, episode in zip(seen, again, strict=True):
        (step,) = episode.steps
        held = [entry.text for entry in step.view.semantic]
        before = list(FACTS[: turn.chunk])
        assert [entry.text for entry in turn.view.semantic] == before[-2:]  # `recent` of the prompt
        assert held == before + ([] if turn.row % 2 else [FACTS[turn.chunk]])
        assert step.chunk == turn.chunk and (episode.r1, episode.r3) == (0, 0)
    chunks = [episode.steps[0].chunk for episode in again]
    assert sorted(chunks[::2]) == [0, 0, 1, 1, 2, 2] and chunks[::2] == chunks[1::2]


def test_the_draw_depends_on_the_seed_and_ends_with_the_steps(micro):
    silent = scripted_writer(micro.env, lambda turn: "")
    episodes = rollouts(micro)
    draw = lambda **how: [
        (e.steps[0].chunk, e.steps[0].view.semantic_total)
        for e in reroll(micro.env, episodes, silent, copies=1, **how)
    ]
    assert draw(groups=2, seed=3) == draw(groups=2, seed=3)
    assert len({tuple(draw(groups=2, seed=seed)) for seed in range(8)}) > 1
    assert len(draw(groups=50)) == 6 and draw(groups=0) == []
    with pytest.raises(ValueError, match="keep_views"):
        reroll(micro.env, rollouts(micro, keep_views=False), silent, 1, 1)


def test_the_copies_are_a_group_of_their_own(micro):
    config = tiny.get_config("data.chunks=3,rl.rollouts=2,rl.rerolls=2,rl.call_credit=False")
    config.reward.chunk_weight = 1.0
    config.prompt.tokens, config.prompt.response_tokens = 320, 128
    episodes = rollouts(micro)
    half = scripted_writer(micro.env, lambda turn: "" if turn.row % 2 else store(turn.text))
    again = reroll(micro.env, episodes, half, 2, 2)
    rows = training_batch(config, micro.env, episodes, again=again).rows
    assert rows.valid.tolist() == [True] * 10  # 2 x 3 steps, 2 groups of 2
    groups = losses.group_ids(rows.instance, rows.episode, rows.chunk, "chunk")
    assert len(set(groups[:6])) == 3 and len(set(groups[6:])) == 2
    assert not set(groups[:6]) & set(groups[6:])
    assert rows.rewards[CHUNK][6:].tolist() == [1, 0, 1, 0]
    assert rows.rewards["r1"][6:].tolist() == [0, 0, 0, 0]
    assert np.array_equal(rows.rewards["r2"][6:], [1, 0, 1, 0])


@pytest.mark.parametrize(
    "rerolls, weight, algorithm", [(1, 0.0, "grpo"), (1, 1.0, "ppo"), (-1, 1.0, "grpo")]
)
def test_rerolls_that_cannot_be_compared_are_refused(rerolls, weight, algorithm):
    config = tiny.get_config("rl.call_credit=False")
    config.rl.rerolls, config.reward.chunk_weight = rerolls, weight
    config.rl.algorithm = algorithm
    with pytest.raises(ValueError, match="rerolls"):
        check(config)
