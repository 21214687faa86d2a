"""The four rewards, by hand; float32 throughout; padding and masks are not calls and not zeros."""

import jax.numpy as jnp
import numpy as np
import pytest

from memalpha import rewards
from memalpha.memory import OpKind, Outcome

OK, DUPLICATE, UNKNOWN, BAD = (
    Outcome.OK,
    Outcome.DUPLICATE,
    Outcome.UNKNOWN_ID,
    Outcome.MALFORMED,
)


def weights(beta, gamma):
    return {"r1": 1.0, "r2": 1.0, "r3": beta, "r4": gamma}


def test_correctness_is_the_mean_over_answered_questions():
    scores = np.array([[0.3, 0.3, 0.3], [1, 0, 0.5], [1, 1, 1]])
    answered = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]], bool)
    r1 = rewards.correctness(scores, answered)
    assert r1.dtype == np.float32 and r1.shape == (3,)
    np.testing.assert_allclose(r1[:2], [0.3, 0.5], rtol=1e-6)
    assert np.isnan(r1[2])  # nobody answered: no reward, not the reward 0


def test_correctness_without_mask_reduces_to_the_mean():
    np.testing.assert_allclose(rewards.correctness(np.array([1, 0, 0, 1])), 0.5)


def test_a_failed_reader_is_masked_even_with_a_nan_score():
    r1 = rewards.correctness(np.array([np.nan, 1.0]), np.array([False, True]))
    assert r1 == 1


def test_format_share():
    outcomes = np.array(
        [
            [OK, OK, DUPLICATE, UNKNOWN],  # 2 of 4
            [OK, BAD, OK, 0],  # 2 of 3, one place is padding
            [0, 0, 0, 0],  # no call
            [DUPLICATE, 0, 0, 0],
        ]
    )
    r2 = rewards.format_share(outcomes)
    assert r2.dtype == np.float32
    np.testing.assert_allclose(r2, [0.5, 2 / 3, 0, 0], rtol=1e-6)


def test_compression():
    r3 = rewards.compression(np.array([300, 0, 1500]), np.array([1000, 1000, 1000]))
    assert r3.dtype == np.float32
    np.testing.assert_allclose(r3, [0.7, 1.0, -0.5], rtol=1e-6)
    with pytest.raises(ValueError, match="chunk_tokens"):
        rewards.compression(np.array([1, 1]), np.array([10, 0]))


def test_content_share():
    insert, update, delete, bad = OpKind.INSERT, OpKind.UPDATE, OpKind.DELETE, OpKind.MALFORMED
    kinds = np.array(
        [
            [insert, insert, update, bad],
            [delete, delete, insert, 0],
            [insert, insert, insert, insert],
            [0, 0, 0, 0],
        ]
    )
    outcomes = np.array(
        [[OK, OK, OK, BAD], [OK, UNKNOWN, OK, 0], [DUPLICATE, OK, OK, OK], [0, 0, 0, 0]]
    )
    fit = np.array([[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], bool)
    r4 = rewards.content_share(kinds, outcomes, fit)
    assert r4.dtype == np.float32
    # Row 1: the delete that found its target and the fit insert. Row 2: a duplicate did nothing.
    np.testing.assert_allclose(r4, [2 / 4, 2 / 3, 3 / 4, 0], rtol=1e-6)


def test_combine_keeps_fractions_and_float32():
    parts = {
        "r1": np.array([0.3, 1, np.nan]),
        "r2": np.array([1, 0, 1]),
        "r3": np.float64(0.8),
        "r4": np.array([0.5, 0.3, 1]),
    }
    total = rewards.combine(parts, weights(0.05, 0.1))
    assert total.dtype == np.float32
    np.testing.assert_allclose(total, [0.3 + 1 + 0.04 + 0.05, 1 + 0.04 + 0.03, np.nan], rtol=1e-6)
    integers = {"r1": 0, "r2": np.array([1, 0]), "r3": np.array([1, 1]), "r4": np.array([1, 0])}
    np.testing.assert_allclose(rewards.combine(integers, weights(0.3, 0.3)), [1.6, 0.3], rtol=1e-6)


def test_combine_with_zero_weights_reduces_to_correctness_plus_format():
    parts = {"r1": 0.3, "r2": 0.25, "r3": 9.0, "r4": 9.0}
    np.testing.assert_allclose(rewards.combine(parts, weights(0, 0)), 0.55, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="r3"):
        rewards.combine({"r1": 0, "r2": 0, "r4": 0}, weights(0.05, 0.1))
    with pytest.raises(ValueError, match="r5.*one weight a reward"):
        rewards.combine({"r1": 0, "r5": 0}, {"r1": 1.0})
    with pytest.raises(ValueError, match="one weight a reward"):
        rewards.combine({}, {})
    with pytest.raises(ValueError, match="same shape"):
        rewards.correctness(np.zeros((2, 3)), np.ones((3,), bool))
    with pytest.raises(ValueError, match="same shape"):
        rewards.content_share(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"r1: scores \(\), answered \(\) need .* \[..., Q\]"):
        rewards.correctness(np.float32(1))
    with pytest.raises(ValueError, match=r"r2: outcomes \(\) need the same shape \[..., O\]"):
        rewards.format_share(np.int32(OK))
    with pytest.raises(ValueError, match=r"r3: memory_tokens \(2,\) and chunk_tokens \(3,\)"):
        rewards.compression(np.ones(2), np.ones(3))


def test_the_order_of_the_sum_is_that_of_the_names_to_the_bit():
    """r1 + r2 + beta r3 + gamma r4 in float32, on the host and on the device alike."""
    rng = np.random.default_rng(7)
    parts = {name: rng.random(1009, np.float32) for name in ("r4", "r2", "r3", "r1")}
    r1, r2, r3, r4 = (parts[name] for name in ("r1", "r2", "r3", "r4"))
    wanted = r1 + r2 + np.float32(0.05) * r3 + np.float32(0.1) * r4
    total = rewards.combine(parts, weights(0.05, 0.1))
    assert isinstance(total, np.ndarray) and total.tobytes() == wanted.tobytes()
    on_device = {name: jnp.asarray(values) for name, values in parts.items()}
    assert np.asarray(rewards.combine(on_device, weights(0.05, 0.1))).tobytes() == wanted.tobytes()
    other = r4 * np.float32(0.1) + r3 * np.float32(0.05) + r2 + r1
    assert other.tobytes() != wanted.tobytes()  # so that the order is what is tested


def test_any_number_of_rewards_and_leading_axes():
    parts = {"r1": np.full((2, 3), 0.3), "r5": np.full((2, 3), 0.5)}
    np.testing.assert_allclose(
        rewards.combine(parts, {"r1": 1.0, "r5": 0.2}), np.full((2, 3), 0.4), rtol=1e-6
    )
    scores = np.arange(12).reshape(2, 3, 2) / 12
    assert rewards.correctness(scores).shape == (2, 3)
    assert rewards.format_share(np.full((2, 3, 5), OK)).shape == (2, 3)
