"""Drafts: what is looked up, what is kept, and that they change only the number of passes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha import sampler
from memalpha.drafts import NOTHING, accepted, close_holes, keep, look_up, make_drafts
from memalpha.model import Cache
from memalpha.sampler import generate, pad_prompts, prefill, row_keys
from tests.test_model import strong_params
from tests.test_sampler import CONFIG, PARAMS, T

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5], [8, 9, 7, 9, 3], [], [2, 7]]
LIMITS = [T, T, T, 7, 0, T]


def looked_up(text, size=4, **padding):
    """The draft after a text, which is padded with `left` and `right` empty slots."""
    left, right = padding.get("left", 0), padding.get("right", 3)
    row = [NOTHING] * left + text + [NOTHING] * right
    return look_up(jnp.array([row]), jnp.array([left + len(text)]), size)[0].tolist()


def test_what_followed_the_same_tokens_is_the_draft():
    assert looked_up([1, 2, 3, 4, 5, 9, 2, 3]) == [4, 5, 9, 2]
    assert looked_up([7, 3, 8, 1, 2, 3, 4, 5, 6, 3, 0, 2, 3]) == [4, 5, 6, 3]  # two before one
    assert looked_up([2, 3, 1, 2, 3, 5, 2, 3]) == [5, 2, 3, NOTHING]  # of these the latest
    # Three tokens count, four do not, so the latest again.
    assert looked_up([1, 2, 3, 4, 8, 0, 2, 3, 4, 9, 0, 1, 2, 3, 4], size=2) == [9, 0]
    assert looked_up([4, 4]) == [4, NOTHING, NOTHING, NOTHING]


def test_where_nothing_matches_there_is_no_draft():
    for text in ([1, 2, 3], [1], []):
        for left in (0, 2):  # padding matches nothing, and is in no draft
            assert looked_up(text, left=left) == [NOTHING] * 4
    assert look_up(jnp.ones((2, 5), int), jnp.array([5, 3]), 0).shape == (2, 0)


def test_each_row_looks_into_its_own_text():
    rows = jnp.array([[1, 2, 1, NOTHING], [2, 5, 7, 2]])
    assert look_up(rows, jnp.array([3, 4]), 2).tolist() == [[2, 1], [5, 7]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=12), st.integers(1, 4))
def test_a_draft_is_that_of_a_plain_search(text, size):
    best = (0, 0)
    for start in range(1, len(text)):
        same = [n for n in (1, 2, 3) if n <= start and text[start - n : start] == text[-n:]]
        best = max(best, (len(same), start))
    want = text[best[1] : best[1] + size] if best[0] else []
    assert looked_up(text, size) == want + [NOTHING] * (size - len(want))


def test_tokens_are_kept_as_far_as_the_draft_is_what_was_chosen():
    never = [False] * 4
    for draft, chosen, ends, room, want in (
        ([5, 6, 7], [5, 6, 7, 8], never, 9, 4),  # all of it, and the token after it
        ([5, 6, 7], [5, 9, 7, 8], never, 9, 2),  # the token that disagrees is the model's
        ([5, 6, 7], [1, 6, 7, 8], never, 9, 1),
        ([NOTHING] * 3, [1, 6, 7, 8], never, 9, 1),
        ([5, 6, 7], [5, 6, 7, 8], never, 3, 3),
        ([5, 6, 7], [5, 6, 7, 8], never, 0, 0),  # a row that is done
        ([5, 6, 7], [5, 6, 7, 8], [False, True, False, False], 9, 2),  # the end of a row counts
        ([5, 6, 7], [5, 6, 7, 8], [True] * 4, 9, 1),
    ):
        given = (jnp.array([x]) for x in (draft, chosen, ends, room))
        assert accepted(*given).tolist() == [want], (draft, chosen, ends, room)


def numbered_cache(valid, index) -> Cache:
    """One layer whose key and value in slot n are n."""
    valid = jnp.array(valid, bool)
    b, n = valid.shape
    v = jnp.broadcast_to(jnp.arange(n)[:, None], (b, 1, n, 1))
    return Cache(k=(v.swapaxes(2, 3),), v=(v,), valid=valid, index=jnp.int32(index))


def test_a_pass_keeps_what_is_accepted_and_the_next_one_writes_behind_the_longest():
    cache = keep(numbered_cache([[1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 0]], 4), 3,
                 jnp.array([1, 2, 0]))  # fmt: skip
    assert cache.valid.astype(int).tolist() == [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert cache.index == 3


@pytest.mark.parametrize("start", [0, 2])
def test_holes_are_closed_in_the_order_of_slots(start):
    live = jnp.array([True, True, False])
    before = numbered_cache([[1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], 6)
    cache = close_holes(before, live, start)
    assert cache.valid[2].sum() == 0 and cache.index == 4
    for row in range(2):
        slots = np.flatnonzero(before.valid[row])
        for x in (cache.k[0][row, 0, 0], cache.v[0][row, 0, :, 0]):
            assert x[np.asarray(cache.valid[row])].tolist() == slots.tolist()
        assert cache.valid[row, start:].tolist() == sorted(cache.valid[row, start:], reverse=True)


def sample(size, text=(), prompts=PROMPTS, width=8, config=CONFIG, params=PARAMS, **changes):
    """`text` is filled up, because each length is compiled."""
    how = dict(temperature=0.5, top_p=1.0, limits=LIMITS, stop_ids=[-1] * 3, steps=T, prefix=None)
    ids = changes.pop("ids", range(len(prompts)))
    how |= changes
    tokens, mask = pad_prompts(prompts, [width])
    out = generate(
        params, config, tokens, mask, row_keys(jax.random.key(7), np.array(ids)),
        how["temperature"], how["top_p"], np.array(how["limits"]), how["stop_ids"], how["steps"],
        how["prefix"], make_drafts(size, [NOTHING] * (T - len(text)) + list(text)),
    )  # fmt: skip
    return jax.device_get(out)


def assert_same(out, base):
    np.testing.assert_array_equal(out.mask, base.mask)
    np.testing.assert_array_equal(out.tokens, base.tokens)
    np.testing.assert_array_equal(out.finished, base.finished)
    np.testing.assert_allclose(out.logps, base.logps, atol=2e-5)
    lengths = base.mask.sum(1)
    assert (base.passes == lengths).all() and (out.passes <= lengths).all()


@pytest.mark.parametrize("size", [1, 7, 60])  # the last is longer than any response
def test_samples_are_those_without_drafts(size):
    """Rows of one prompt token, without a prompt, of a lower limit, and of none."""
    for temperature, top_p in ((0.0, 1.0), (0.5, 1.0), (1.0, 0.8)):
        for stop_ids in ([-1] * 3, [0, 11, 17]):
            how = dict(temperature=temperature, top_p=top_p, stop_ids=stop_ids)
            base = sample(0, **how)
            out = sample(size, base.tokens[1, :9], **how)
            assert_same(out, base)
            assert out.passes[1] < max(base.passes[1], 2)
            assert_same(sample(size, (base.tokens[0] + 1) % 41, **how), base)


def test_what_stands_in_the_text_is_written_in_few_passes():
    base = sample(0, temperature=1.5)
    for size, passes in ((7, T // 8 + 5), (60, 5)):
        out = sample(size, base.tokens[0], temperature=1.5)
        assert_same(out, base)
        assert 1 < out.passes[0] <= passes < base.passes[0] == T


def test_a_row_alone_has_the_samples_it_has_in_company():
    base = sample(0)
    for i in range(4):
        out = sample(7, base.tokens[3], [PROMPTS[i]], 11, ids=[i], limits=[LIMITS[i]], steps=T + 6)
        np.testing.assert_array_equal(out.tokens[0, :T], base.tokens[i])
        np.testing.assert_allclose(out.logps[0, :T], base.logps[i], atol=2e-5)


def test_holes_of_many_passes_are_closed(monkeypatch):
    """One row is written in few passes, the others in many, each in its turn."""
    monkeypatch.setattr(sampler, "SPARE_PASSES", 1)
    limits = [19, 5, T, 30, 12, T]
    base = sample(0, limits=limits)
    for row in (0, 3, 5):
        out = sample(5, base.tokens[row], limits=limits)
        assert_same(out, base)
        assert out.passes[row] < out.passes[2]


def test_a_prefix_and_a_window_of_attention_change_nothing():
    config = replace(CONFIG, window=5, window_layers=(0,))
    prefix = [9, 8, 7, 6, 5, 4, 3, 2]
    given = dict(config=config, prefix=prefill(PARAMS, config, prefix))
    base = sample(0, **given)
    out = sample(4, [*prefix, *base.tokens[2, :20]], **given)
    assert_same(out, base)
    assert out.passes[2] < T - 5


def test_a_vocabulary_of_two():
    config = replace(CONFIG, vocab_size=2)
    how = dict(prompts=[[0, 1], [1]], config=config, params=strong_params(config), limits=[T, T])
    for temperature in (0.0, 1.0):
        for stop_ids in ([-1] * 3, [1] * 3):
            how |= dict(temperature=temperature, stop_ids=stop_ids)
            assert_same(sample(6, [0, 1, 1], **how), sample(0, **how))


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="drafts of -1 tokens"):
        make_drafts(-1)
