"""Sampling: what is drawn, what is recorded, and what must not depend on the batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha import decoding, sampler
from memalpha.decoding import choose
from memalpha.model import ModelConfig, head_logps, logits
from memalpha.sampler import generate, pad_prompts, row_keys
from tests.test_model import forward, strong_params

CONFIG = ModelConfig(
    vocab_size=41,
    hidden_size=24,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=29,
)
PARAMS = strong_params(CONFIG)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5], [8, 9, 7, 9, 3]]
T = 35  # more than one segment of the decoding loop
NEVER = [-1]


def sample(
    prompts=PROMPTS,
    ids=None,
    width=8,
    temperature=0.5,
    top_p=1.0,
    limits=T,
    stop_ids=NEVER,
    steps=T,
    rows=None,
):
    tokens, mask = pad_prompts(prompts, [width], rows)
    ids = np.arange(len(tokens)) if ids is None else ids
    keys = row_keys(jax.random.key(7), ids)
    out = generate(PARAMS, CONFIG, tokens, mask, keys, temperature, top_p, limits, stop_ids, steps)
    return jax.device_get(out)


def full_hidden(rows):
    """Hidden states [B, S, D] and tokens [B, S] of one right-padded pass without a cache."""
    width = 50
    tokens = np.array([r + [7] * (width - len(r)) for r in rows])
    mask = np.array([[True] * len(r) + [False] * (width - len(r)) for r in rows])
    positions = np.broadcast_to(np.arange(width), tokens.shape)
    return forward(PARAMS, tokens, positions, mask, None, CONFIG, None)[0], tokens


def full_logps(prompts, out, temperature):
    """The responses' log-probs from one forward pass over prompt and response."""
    responses = [t[m].tolist() for t, m in zip(out.tokens, out.mask, strict=True)]
    rows = [p + r for p, r in zip(prompts, responses, strict=True)]
    hidden, tokens = full_hidden(rows)
    logps, _ = head_logps(PARAMS, hidden[:, :-1], tokens[:, 1:], CONFIG, temperature)
    return [
        np.asarray(x)[len(p) - 1 : len(r) - 1] for x, p, r in zip(logps, prompts, rows, strict=True)
    ]


@pytest.mark.parametrize("temperature, top_p", [(0.6, 1.0), (0.8, 0.7), (0.0, 1.0)])
def test_logps_equal_a_full_forward_pass(temperature, top_p):
    out = sample(temperature=temperature, top_p=top_p, stop_ids=[0, 11])
    for i, expected in enumerate(full_logps(PROMPTS, out, temperature)):
        np.testing.assert_allclose(out.logps[i][out.mask[i]], expected, atol=1e-4)
    assert (out.logps[~out.mask] == 0).all() and (out.tokens[~out.mask] == 0).all()


def test_greedy_takes_the_likeliest_token_of_an_uncached_pass():
    out = sample(temperature=0.0)
    tokens = list(PROMPTS[1])
    for step in range(6):
        hidden, _ = full_hidden([tokens])
        tokens.append(int(jnp.argmax(logits(PARAMS, hidden[0, len(tokens) - 1], CONFIG))))
        assert out.tokens[1, step] == tokens[-1]


def test_a_row_does_not_depend_on_its_company_its_place_or_its_padding():
    ids = [10, 11, 12, 13]
    together = sample(ids=ids)
    for i in range(4):
        alone = sample([PROMPTS[i]], ids=[ids[i]], width=13, steps=20)  # nor on the buffer
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i, :20])
        np.testing.assert_allclose(alone.logps[0], together.logps[i, :20], atol=1e-5)
    turned = sample(PROMPTS[::-1], ids=ids[::-1])
    np.testing.assert_array_equal(turned.tokens[::-1], together.tokens)
    filled = sample(PROMPTS[:2], ids=ids, rows=4, limits=[T, T, 0, 0])  # empty rows
    np.testing.assert_array_equal(filled.tokens[:2], together.tokens[:2])
    assert np.isfinite(filled.logps).all() and not filled.mask[2:].any()


def test_rows_with_one_prompt_and_different_keys_differ():
    out = sample([PROMPTS[0]] * 4, temperature=1.0)
    assert len({tuple(t) for t in out.tokens.tolist()}) == 4


def test_stop_ids_end_a_row_and_the_stop_token_is_part_of_it():
    free = sample()
    assert free.mask.all() and not free.finished.any()
    stops = [int(free.tokens[0, 4]), int(free.tokens[1, 30])]
    out = sample(stop_ids=stops)
    for i in range(4):
        hits = np.flatnonzero(np.isin(free.tokens[i], stops))
        length = hits[0] + 1 if len(hits) else T
        np.testing.assert_array_equal(out.mask[i], np.arange(T) < length)
        np.testing.assert_array_equal(out.tokens[i, :length], free.tokens[i, :length])
        assert out.finished[i] == bool(len(hits))
    assert out.finished[0] and out.tokens[0][out.mask[0]][-1] in stops


def test_limits_cut_each_row_alone():
    free = sample()
    limits = np.array([0, 1, 17, 900])
    out = sample(limits=limits)
    np.testing.assert_array_equal(out.mask.sum(1), [0, 1, 17, T])
    np.testing.assert_array_equal(out.tokens, np.where(out.mask, free.tokens, 0))
    assert not out.finished.any()
    last = int(free.tokens[2, 16])  # a stop token at the very limit counts as finished
    first = int(np.flatnonzero(free.tokens[2] == last)[0])
    out = sample(limits=[0, 0, first + 1, 0], stop_ids=[last])
    assert out.finished.tolist() == [False, False, True, False]


def test_settings_take_effect_without_a_second_trace(monkeypatch):
    traces = []
    monkeypatch.setattr(decoding, "choose", lambda *a: (traces.append(1), choose(*a))[1])
    size = {"prompts": PROMPTS[:3], "steps": 9, "width": 11}  # shapes of no other test
    base = sample(**size, limits=9)
    count = len(traces)
    assert count > 0
    stop = int(base.tokens[0, 2])
    others = [
        sample(**size, limits=9, temperature=0),
        sample(**size, limits=9, temperature=2.0),
        sample(**size, limits=9, top_p=0.05),
        sample(**size, limits=np.array([9, 4, 2])),
        sample(**size, limits=9, stop_ids=[stop]),
        sample(**size, limits=9, ids=[5, 6, 7]),
    ]
    assert len(traces) == count
    for out in others:
        assert (out.mask != base.mask).any() or (out.tokens != base.tokens).any()


def draw(probabilities, uniforms, temperature=1.0, top_p=1.0):
    scores = np.log(np.maximum(probabilities, 1e-38), dtype=np.float32)  # 1e-38: never drawn
    scores = np.broadcast_to(scores, (len(uniforms), len(probabilities)))
    settings = np.float32(temperature), np.float32(top_p)
    token, logp = jitted_choose(scores, np.asarray(uniforms, np.float32), *settings)
    return np.asarray(token), np.asarray(logp)


jitted_choose = jax.jit(choose)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (2.0, 0.5)])
def test_frequencies_follow_the_distribution(temperature, top_p):
    p = np.array([0.05, 0.3, 0.0, 0.22, 0.4, 0.03])
    n = 20_000
    u = jax.random.uniform(jax.random.key(3), (n,))
    token, logp = draw(p, u, temperature, top_p)
    scaled = p ** (1 / temperature)
    scaled /= scaled.sum()
    np.testing.assert_allclose(np.exp(logp), scaled[token], rtol=1e-5)
    order = np.argsort(-scaled)
    keep = order[: np.searchsorted(np.cumsum(scaled[order]), top_p - 1e-9) + 1]
    expected = np.zeros_like(p)
    expected[keep] = scaled[keep] / scaled[keep].sum() * n
    seen = np.bincount(token, minlength=len(p))
    assert (seen[expected == 0] == 0).all()
    likely = expected > 0
    chi2 = ((seen - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi2 < 20.5  # the 0.999 quantile at 5 degrees of freedom


def test_top_p_golden():
    p = [0.1, 0.5, 0.15, 0.25]  # ranked: token 1 (0.5), 3 (0.75), 2 (0.9), 0 (1.0)
    grid = np.linspace(0, 0.999, 200)
    for top_p, nucleus in (
        (0.3, {1}),
        (0.49, {1}),
        (0.51, {1, 3}),
        (0.76, {1, 2, 3}),
        (0.95, {0, 1, 2, 3}),
    ):
        assert set(draw(p, grid, top_p=top_p)[0].tolist()) == nucleus
    assert set(draw([0.4, 0.2, 0.2, 0.2], grid, top_p=0.5)[0].tolist()) == {0, 1, 2, 3}  # ties


@pytest.mark.parametrize("size", [3, 128, 300])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_random_number_is_a_place_in_the_cumulative_distribution(size, top_p):
    weights = np.random.default_rng(size).random(size) * (np.arange(size) % 3 != 1)
    p = (weights / weights.sum()).astype(np.float32)
    grid = np.append(np.linspace(0, 0.9999, 301, dtype=np.float32), np.float32(1 - 2**-23))
    token, _ = draw(p, grid, top_p=top_p)
    assert (p[token] > 0).all()  # at either end too
    if top_p < 1:
        ranked = np.sort(p.astype(np.float64))[::-1]
        least = ranked[np.searchsorted(np.cumsum(ranked), top_p)]
        p = np.where(p >= least, p, 0)
    cdf = np.cumsum(p.astype(np.float64)) / p.astype(np.float64).sum()
    before = np.append(0, cdf)[token]
    assert (before <= grid + 1e-5).all() and (grid <= cdf[token] + 1e-5).all()


def test_greedy_ignores_the_random_number_and_reports_raw_logps():
    token, logp = draw([0.2, 0.5, 0.3], [0.0, 0.5, 0.99], temperature=0.0, top_p=0.4)
    assert token.tolist() == [1, 1, 1]
    np.testing.assert_allclose(np.exp(logp), 0.5, rtol=1e-6)


@pytest.mark.parametrize("attention", ["blocks", "xla"])
def test_a_shared_prefix_changes_nothing(attention):
    """The prefix computed once, and the whole prompts computed for every row."""
    config = replace(CONFIG, attention=attention)
    rng = np.random.default_rng(0)
    prefix = rng.integers(1, 41, 70).tolist()  # longer than a block of causal attention
    keys = row_keys(jax.random.key(7), range(5))
    rest = (0.5, 0.9, [T, 3, T, T, 0], [2], T)

    def run(prompts, width, *shared):
        tokens, mask = pad_prompts(prompts, [width], 5)
        return jax.device_get(generate(PARAMS, config, tokens, mask, keys, *rest, *shared))

    whole = run([prefix + prompt for prompt in PROMPTS], 80)
    short = run(PROMPTS, 8, sampler.prefill(PARAMS, config, prefix))
    np.testing.assert_array_equal(short.tokens, whole.tokens)
    np.testing.assert_array_equal(short.mask, whole.mask)
    np.testing.assert_array_equal(short.finished, whole.finished)
    np.testing.assert_allclose(short.logps, whole.logps, atol=1e-4)
    other = run(PROMPTS, 8, sampler.prefill(PARAMS, config, prefix[::-1]))
    assert np.abs(other.logps - short.logps).max() > 0.01  # it is read


def test_keys_fold_in_number_after_number():
    key = jax.random.key(3)
    keys = row_keys(key, [4, 4, 5], [6, 7, 6])
    data = jax.random.key_data(keys)
    want = jax.random.fold_in(jax.random.fold_in(key, 4), 7)
    np.testing.assert_array_equal(data[1], jax.random.key_data(want))
    assert len({tuple(row) for row in data.tolist()}) == 3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=5))
def test_padded_prompts_hold_the_prompts(prompts):
    tokens, mask = pad_prompts(prompts, [9, 4], rows=5)
    assert tokens.shape == (5, 4 if max(map(len, prompts)) <= 4 else 9)
    assert [t[m].tolist() for t, m in zip(tokens, mask, strict=True)] == prompts + [[]] * (
        5 - len(prompts)
    )
    assert (np.diff(mask.astype(int), axis=1) >= 0).all()  # right-aligned


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="10 tokens exceeds the largest bucket"):
        pad_prompts([[1] * 10], [4, 8])
    with pytest.raises(ValueError, match="rows=1"):
        pad_prompts([[1], [2]], [4], rows=1)
    tokens, mask = pad_prompts(PROMPTS, [8])
    rest = (1.0, 1.0, 3, NEVER)
    with pytest.raises(ValueError, match="row_keys"):
        generate(PARAMS, CONFIG, tokens, mask, jax.random.key(0), *rest, 3)
    keys = row_keys(jax.random.key(0), range(4))
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(PARAMS, CONFIG, tokens, mask, keys, *rest, 0)
    with pytest.raises(ValueError, match="without a prefix"):
        sampler.prefill(PARAMS, CONFIG, [])
    with pytest.raises(ValueError, match="prompt_mask"):
        generate(PARAMS, CONFIG, tokens, mask[:2], keys, *rest, 3)


def test_scores_and_numbers_of_a_wrong_rank_or_type_are_refused():
    scores, uniform = jnp.zeros((2, 5)), jnp.zeros(2)
    settings = jnp.float32(1), jnp.float32(1)
    for wrong in (
        (scores[0], uniform, *settings),
        (scores.astype(int), uniform, *settings),
        (scores, uniform[:1], *settings),
        (scores, uniform, jnp.ones(2), settings[1]),
    ):
        with pytest.raises(AssertionError):
            choose(*wrong)
    for wrong in ([[1, 2]], [0.5]):
        with pytest.raises(AssertionError):
            row_keys(jax.random.key(0), np.array(wrong))
