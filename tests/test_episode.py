"""Types of an episode: fields of an environment by name, and times of stages inside stages."""

import pytest

from memalpha import episode
from memalpha.episode import Clock


def test_fields_of_all_parts_are_replaced_by_name(micro):
    env = micro.env.replace(recent=7, core_tokens=9, top_k=11)
    assert (env.prompt.recent, env.memory.core_tokens, env.reading.top_k) == (7, 9, 11)
    assert env.replace(recent=micro.env.prompt.recent).prompt == micro.env.prompt
    assert env.memory.entry_tokens == micro.env.memory.entry_tokens
    assert micro.env.reading.top_k != 11


def test_a_field_that_no_part_has_is_named(micro):
    with pytest.raises(TypeError, match="Environment has no fields prompt, resent"):
        micro.env.replace(resent=7, prompt=micro.env.prompt, top_k=3)


def test_a_stage_inside_another_counts_for_itself_alone(monkeypatch):
    """By hand: 1 s of writing, 2 of rendering (0.5 of it decoding), 4 of writing, 8 of reading."""
    now = 0.0
    monkeypatch.setattr(episode.time, "perf_counter", lambda: now)
    clock = Clock()

    def work(seconds):
        nonlocal now
        now += seconds

    with clock("write"):
        work(1)
        with clock("render"):
            work(1.5)
            with clock("decode"):
                work(0.5)
        with clock("write"):  # of its own name
            work(4)
    work(16)  # in no stage
    with clock("read"):
        work(8)
    assert dict(clock) == {"write": 5, "render": 1.5, "decode": 0.5, "read": 8}
    assert sum(clock.values()) == 15
