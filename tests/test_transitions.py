"""What a step keeps, covers and makes up: values worked by hand."""

import math

import numpy as np
import pytest

from configs import tiny
from experiments.lib.checks import check
from experiments.lib.writers import perfect_writer
from experiments.train import TRANSITION, reward_weights, step_metrics, training_batch
from memalpha.data import synthetic
from memalpha.data.instance import Instance, Question
from memalpha.memory import Entry, MemoryView
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.tools import INSERT, UPDATE, format_call
from memalpha.transitions import coverage, preservation, transition, transition_rewards

ADA, BOB = "Ada Lind lives in Graz.", "Bob Orr plays the tuba."
MOVED = "Ada Lind lives in Pisa."


def memory(*entries, core=""):
    facts = tuple(Entry(i, text, 0) for i, text in enumerate(entries))
    return MemoryView(core, facts, (), len(facts), 0, 0)


def note(content, replaces=None):
    return {"memory": "semantic", "content": content, "replaces": replaces}


def test_what_is_gone_counts_against_a_step():
    before = memory(ADA, core=f"{BOB} Cy Poe sails.")
    kept = memory(f"{ADA} {BOB}", core="Cy Poe sails.")
    assert preservation(before, kept, "lol") == 1.0  # moved, and still there
    assert preservation(before, memory(ADA, core="Cy Poe sails."), "lol") == pytest.approx(2 / 3)
    assert preservation(before, memory(), "lol") == 0.0
    assert math.isnan(preservation(memory(), kept, "lol"))
    # A word of a long sentence may go, and no more.
    long = "On 3 May 2021 Dora Finch sold nine old brass clocks to a museum in Turin."
    assert preservation(memory(long), memory(long.replace(" old", "")), "lol") == 1.0
    assert preservation(memory(long), memory("Dora Finch sold clocks in Turin."), "lol") == 0.0


def test_what_the_chunk_corrects_may_go():
    before, after = memory(ADA, BOB), memory(MOVED, BOB)
    assert preservation(before, after, "Ada Lind lives in Pisa now.") == 1.0  # by its words
    assert preservation(before, after, "Ada Lind lives in Graz.") == 0.5  # it says the same
    assert preservation(before, after, "lol", [note(MOVED, ADA)]) == 1.0  # by the notes
    assert preservation(before, after, "Ada Lind lives in Pisa now.", [note(MOVED)]) == 0.5
    assert preservation(before, after, "lol", []) == 0.5
    assert math.isnan(preservation(memory(ADA), memory(), "lol", [note(MOVED, ADA)]))


def test_coverage_is_the_share_of_the_notes_that_stand_in_the_memory():
    notes = [note(ADA), note(BOB)]
    assert coverage(memory(ADA, core=BOB), notes) == 1.0
    assert coverage(memory(f"- {ADA} And more."), notes) == 0.5
    assert coverage(memory("Ada Lind lives somewhere."), notes) == 0.0
    assert math.isnan(coverage(memory(ADA), []))


def run(micro, chunks, notes, texts):
    """An episode whose responses are `texts`, in chunks with these notes."""
    instance = Instance("squad", "one", chunks, (Question("Who?", ("Ada",)),), {"notes": notes})
    writer = scripted_writer(micro.env, lambda turn: texts[turn.chunk])
    (episode,) = run_episodes(micro.env, [instance], writer, keep_views=True)
    return episode


def call(name, **arguments):
    return format_call(name, {"memory_type": "semantic", **arguments}, "qwen3")


def test_the_reward_of_a_step_is_the_mean_of_what_can_be_judged(micro):
    chunks = ("lol", ADA, "ok", "Ada Lind moved to Pisa.", BOB)
    notes = [[], [note(ADA)], [], [note(MOVED, ADA)], [note(BOB)]]
    texts = [
        "",
        call(INSERT, content=ADA),
        "",
        call(UPDATE, new_content="Eve Moss lives in Pisa.", memory_id="1"),
        "",
    ]
    episode = run(micro, chunks, notes, texts)
    # Nothing to judge; all right; kept; the update lost the note and made up Eve; Bob is missing.
    assert np.allclose(transition_rewards(episode), [1, 1, 1, 0, 0.5])
    before, step = episode.steps[2].view, episode.steps[3]
    shares = transition(episode, step, before)
    assert math.isnan(shares.pop("preservation"))  # its only sentence is corrected
    assert shares == {"coverage": 0.0, "faithfulness": 0.0}


def test_the_perfect_writer_earns_nearly_everything(micro):
    instances = [synthetic.generate(f, "train", 1, chunks=4) for f in ("facts", "updates", "chats")]
    writer = perfect_writer(micro.env)
    for episode in run_episodes(micro.env, instances, writer, keep_views=True):
        assert transition_rewards(episode).mean() >= 0.9, episode.instance.source
    silent = scripted_writer(micro.env, lambda turn: "")
    for episode in run_episodes(micro.env, instances, silent, keep_views=True):
        assert transition_rewards(episode).mean() <= 0.6, episode.instance.source


def test_it_is_a_reward_of_its_own(micro):
    episode = run(micro, (ADA, BOB), [[note(ADA)], [note(BOB)]], [call(INSERT, content=ADA), ""])
    config = tiny.get_config("data.chunks=2,rl.rollouts=1,rl.call_credit=False")
    config.prompt.tokens, config.prompt.response_tokens = 320, 128
    paper = training_batch(config, micro.env, [episode])
    config.reward.transition_weight = 0.5
    ours = training_batch(config, micro.env, [episode])
    assert ours.rows.rewards[TRANSITION].tolist() == [1.0, 0.5]
    assert all(np.array_equal(ours.rows.rewards[k], v) for k, v in paper.rows.rewards.items())
    assert reward_weights(config)[TRANSITION] == 0.5
    assert step_metrics(config, ours) == {"reward_transition": 0.75}
    with pytest.raises(ValueError, match="keep_views"):
        writer = scripted_writer(micro.env, lambda turn: "")
        transition_rewards(*run_episodes(micro.env, [episode.instance], writer))


def test_a_negative_weight_is_refused():
    config = tiny.get_config()
    config.reward.transition_weight = -0.5
    with pytest.raises(ValueError, match="transition_weight"):
        check(config)
