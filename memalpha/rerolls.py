"""Further responses to steps of finished episodes: groups that start from the same memory.

The rollouts of an instance drift apart: at the second chunk each has its own memory, so a reward
says as much about that memory as about the response. Here some steps of a batch are taken again:
from the memory before the step, the same chunk is answered several times, and these responses are
compared among themselves, by format, content and chunk questions (`step_credit.chunk_scores`). No
episode goes on from them. After the local groups of Memory-R2 (arXiv:2605.21768).
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from memalpha import memory
from memalpha.episode import Clock, Environment, Episode, Recall, Writer, encode_text
from memalpha.memory import EMPTY_VIEW, MemoryState, MemoryView
from memalpha.rollout import make_turn, memorise, whole_view


def reroll(
    env: Environment,
    episodes: Sequence[Episode],
    writer: Writer,
    groups: int,
    copies: int,
    seed: int = 0,
    clock: Clock | None = None,
) -> list[Episode]:
    """`groups` steps, drawn among those of all episodes, each taken `copies` times more.

    Returns one episode a response, with its step alone (its `view` is the memory after it) and with
    r1 and r3 of 0: nobody can say what they would be. The copies of a step follow each other, as
    `rollout.to_batch` takes the rollouts of an instance. Fewer than `groups` where there are fewer
    steps, or where a memory cannot be built again from its text.

    Args:
        episodes: run with `keep_views`.
        writer: is given episode numbers that continue those of `episodes`, so that it samples anew.

    Raises:
        ValueError: a step without its view.
    """
    places = [(e, s) for e, episode in enumerate(episodes) for s in range(len(episode.steps))]
    if any(episodes[e].steps[s].view is None for e, s in places):
        raise ValueError("reroll: a step without its view; run with keep_views=True")
    order = np.random.default_rng([seed, 29]).permutation(len(places))
    chosen, states = [], []
    for episode, number in (places[i] for i in order):
        if len(chosen) == groups:
            break
        before = episodes[episode].steps[number - 1].view if number else EMPTY_VIEW
        try:
            states.append(_state_of(env, before))
        except ValueError:  # the text of an entry has more tokens than the entry had
            continue
        chosen.append((episodes[episode], number))
    if not chosen:
        return []
    repeated = [pair for pair in chosen for _ in range(copies)]
    state = _side_by_side([state for state in states for _ in range(copies)])
    host = jax.device_get(state)
    turns = [
        make_turn(env, host, len(episodes) + row, episode.steps[s].chunk, episode.instance, row)
        for row, (episode, s) in enumerate(repeated)
    ]
    state, steps = memorise(env, state, turns, writer, clock)
    host = jax.device_get(state)
    views = [whole_view(env, host, row) for row in range(len(steps))]
    return [
        Episode(
            episode.instance,
            Recall([], view.tokens, view),
            [replace(step, view=view)],
            r1=0.0,
            r3=0.0,
        )
        for (episode, _), step, view in zip(repeated, steps, views, strict=True)
    ]


def _state_of(env: Environment, view: MemoryView) -> MemoryState:
    ids = [entry.id for entry in (*view.semantic, *view.episodic)]
    next_id = max(ids, default=env.memory.first_ids[0] - 1) + 1
    sizes = env.memory.entry_tokens, env.memory.core_tokens
    return memory.from_view(view, lambda text: encode_text(env, text), *sizes, next_id)


def _side_by_side(states: Sequence[MemoryState]) -> MemoryState:
    """Memories of one row each as one batch on the device."""
    capacity = max(state.tokens.shape[2] for state in states)
    grown = [memory.grow(state, capacity) for state in states]
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *grown)
