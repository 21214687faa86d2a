"""Advantages and losses against values worked by hand, and the simpler things they reduce to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha import losses

NAN = np.nan


def close(got, want, atol=1e-5):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want, np.float32), atol=atol, rtol=1e-5)


def advantages(rewards, groups, valid=None, **options):
    valid = np.ones(len(rewards), bool) if valid is None else np.asarray(valid, bool)
    return losses.group_advantages(np.asarray(rewards), np.asarray(groups), valid, **options)


# Groups


def test_group_ids_of_each_reading():
    instance, episode, chunk = map(
        np.array, ([7, 7, 7, 7, 9, 9], [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1])
    )
    rows = losses.group_ids(instance, episode, chunk, "rows")
    assert rows.tolist() == [0, 0, 0, 0, 1, 1]
    assert losses.group_ids(instance, episode, chunk, "episodes").tolist() == rows.tolist()
    assert losses.group_ids(instance, episode, chunk, "chunk").tolist() == [0, 1, 0, 1, 2, 3]


def test_group_ids_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="step"):
        losses.group_ids(*np.zeros((3, 1), int), "step")
    with pytest.raises(ValueError, match="episode 3 has rows of two instances"):
        losses.group_ids(np.array([0, 1]), np.array([3, 3]), np.zeros(2, int), "rows")


# Advantages


def test_rows_by_hand():
    # Group 4: mean 0.6, sample std 0.3. Group 2: mean 0.5, std sqrt(0.5).
    got, counts = advantages([0.3, 0.0, 0.6, 1.0, 0.9], [4, 2, 4, 2, 4])
    close(got, [-1.0, -(0.5**0.5), 0.0, 0.5**0.5, 1.0])
    assert got.dtype == jnp.float32
    assert {k: float(v) for k, v in counts.items()} == {
        "groups": 2,
        "zero_variance": 0,
        "single": 0,
    }


def test_epsilon_is_added_to_the_deviation():
    got, _ = advantages([0.0, 2e-6], [0, 0])  # std = sqrt(2) 1e-6
    close(got, [-1 / (2**0.5 + 1), 1 / (2**0.5 + 1)])


def test_episodes_by_hand():
    # Episode 0: mean of 0.2, 0.4 = 0.3. Episode 1: 0.9. Mean 0.6, sample std 0.3 sqrt(2).
    got, counts = advantages([0.2, 0.4, 0.9], [0, 0, 0], episode=np.array([0, 0, 1]))
    close(got, [-(0.5**0.5), -(0.5**0.5), 0.5**0.5])
    assert float(counts["groups"]) == 1


def test_a_long_episode_counts_once():
    short, _ = advantages([0.2, 0.9], [0, 0], episode=np.array([0, 1]))
    long, _ = advantages([0.2] * 5 + [0.9], [0] * 6, episode=np.array([0] * 5 + [1]))
    close(long[4:], short)
    close(long[:4], [short[0]] * 4)


def test_episodes_of_one_row_reduce_to_rows():
    rewards, groups = [0.1, 0.7, 0.3, 0.4], [0, 0, 1, 1]
    by_row, _ = advantages(rewards, groups)
    by_episode, _ = advantages(rewards, groups, episode=np.arange(4))
    close(by_episode, by_row)


@pytest.mark.parametrize("value", [0.3, 1000.1, 0.0])
@pytest.mark.parametrize("episode", [None, np.array([0, 0, 0, 1, 2, 2, 2])])
def test_equal_rewards_give_exactly_zero(value, episode):
    got, counts = advantages(np.full(7, value), np.zeros(7, int), episode=episode)
    assert got.tolist() == [0.0] * 7
    assert float(counts["zero_variance"]) == 1


def test_one_reward_in_a_group_is_its_own_advantage():
    got, counts = advantages([0.3, 0.5, 0.5], [1, 0, 0])
    close(got, [0.3, 0.0, 0.0])
    assert (float(counts["single"]), float(counts["zero_variance"])) == (1, 1)


def test_without_the_deviation():
    close(advantages([0.3, 0.9], [0, 0], divide_by_std=False)[0], [-0.3, 0.3])


def test_invalid_rows_take_no_part():
    want, counts = advantages([0.3, 0.6, 0.9], [0, 0, 0])
    got, padded = advantages([0.3, NAN, 0.6, 0.9, 5.0], [0, 0, 0, 0, -1], [1, 0, 1, 1, 0])
    close(got, [want[0], 0.0, want[1], want[2], 0.0])
    assert {k: float(v) for k, v in padded.items()} == {k: float(v) for k, v in counts.items()}


def test_invalid_rows_of_an_episode_take_no_part():
    episode = np.array([0, 0, 1, 1])
    got, _ = advantages([99.0, 0.2, 0.4, 0.6], [0] * 4, [0, 1, 1, 1], episode=episode)
    want, _ = advantages([0.2, 0.5], [0, 0])
    close(got, [0.0, want[0], want[1], want[1]])


def test_a_group_of_masked_rows_but_one_is_single():
    _, counts = advantages([0.3, 0.4], [0, 0], [1, 0])
    assert (float(counts["single"]), float(counts["zero_variance"])) == (1, 0)


REWARDS = st.lists(
    st.integers(0, 20).map(lambda i: i / 20), min_size=11, max_size=11
)  # one shape: one compilation
GROUPS = st.lists(st.integers(-2, 2), min_size=11, max_size=11)


@settings(max_examples=20, deadline=None)
@given(REWARDS, GROUPS, st.permutations(range(11)))
def test_row_order_does_not_matter(rewards, groups, order):
    order, rewards, groups = np.array(order), np.array(rewards), np.array(groups)
    got, _ = advantages(rewards[order], groups[order])
    close(got, np.asarray(advantages(rewards, groups)[0])[order], atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(REWARDS, GROUPS)
def test_a_group_sums_to_zero_with_unit_deviation(rewards, groups):
    got, _ = advantages(np.array(rewards), np.array(groups))
    for group in set(groups):
        own = np.asarray(got)[np.array(groups) == group]
        given_rewards = {r for r, g in zip(rewards, groups, strict=True) if g == group}
        if len(own) > 1:
            assert abs(own.sum()) < 1e-3
            assert abs(own.std(ddof=1) - (len(given_rewards) > 1)) < 1e-3


# Several rewards


def test_sum_first_by_hand():
    parts = {"r1": np.array([0.0, 1.0]), "r2": np.array([0.3, 0.0])}
    got, _ = losses.combined_advantages(
        parts, {"r1": 1.0, "r2": 1.0}, np.zeros(2, int), np.ones(2, bool)
    )
    close(got, [-(0.5**0.5), 0.5**0.5])


def test_normalise_each_by_hand():
    # Each reward alone gives (-1, 1)/sqrt(2) or its opposite, whatever its scale.
    parts = {"r1": np.array([0.0, 1.0]), "r2": np.array([0.3, 0.0])}
    got, counts = losses.combined_advantages(
        parts, {"r1": 1.0, "r2": 0.25}, np.zeros(2, int), np.ones(2, bool), normalise_each=True
    )
    close(got, [-0.75 * 0.5**0.5, 0.75 * 0.5**0.5])
    assert float(counts["zero_variance_r1"]) == 0


def test_one_reward_is_the_same_either_way():
    parts, groups, valid = {"r": np.array([0.1, 0.4, 0.3])}, np.zeros(3, int), np.ones(3, bool)
    a, _ = losses.combined_advantages(parts, {"r": 1.0}, groups, valid)
    b, _ = losses.combined_advantages(parts, {"r": 1.0}, groups, valid, normalise_each=True)
    close(a, b)


def test_zero_variance_is_counted_for_each_reward():
    parts = {"r1": np.array([0.2, 0.4]), "r2": np.array([1.0, 1.0])}
    _, counts = losses.combined_advantages(
        parts, {"r1": 1.0, "r2": 1.0}, np.zeros(2, int), np.ones(2, bool), normalise_each=True
    )
    assert [float(counts[f"zero_variance{x}"]) for x in ("", "_r1", "_r2")] == [0.5, 0.0, 1.0]


def test_weights_must_match_rewards():
    with pytest.raises(ValueError, match="one weight a reward"):
        losses.combined_advantages(
            {"r1": np.ones(1)}, {"r2": 1.0}, np.zeros(1, int), np.ones(1, bool)
        )


def test_whiten_by_hand():
    got = losses.whiten(np.array([[1.0, 2.0], [3.0, NAN]]), np.array([[1, 1], [1, 0]], bool))
    close(got, [[-(1.5**0.5), 0.0], [1.5**0.5, 0.0]])


# Ratios and KL


def test_log_ratio_is_neutral_where_the_other_is_broken():
    logps = jnp.array([[-1.0, -2.0, -3.0, NAN]])
    other = jnp.array([[-1.5, NAN, -jnp.inf, -1.0]])
    mask = jnp.array([[True, True, True, False]])
    close(losses.log_ratio(logps, other, mask), [[0.5, 0.0, 0.0, 0.0]])
    grad = jax.grad(lambda x: losses.log_ratio(x, other, mask).sum())(logps)
    close(grad, [[1.0, 1.0, 1.0, 0.0]])
    close(losses.log_ratio(logps, None, mask), [[0.0] * 4])


def test_log_ratio_cannot_overflow():
    far = losses.log_ratio(jnp.array([[0.0]]), jnp.array([[-1e4]]), jnp.array([[True]]))
    assert np.isfinite(np.square(np.exp(far))).all()


def test_kl_estimators_by_hand():
    d = jnp.log(jnp.array([2.0, 0.5]))
    close(losses.kl_estimate(d, "k1"), [0.693147, -0.693147])
    close(losses.kl_estimate(d, "k2"), [0.240227, 0.240227])
    close(losses.kl_estimate(d, "k3"), [0.193147, 0.306853])
    close(losses.kl_estimate(d, "k3+"), [0.193147, 0.306853])
    with pytest.raises(ValueError, match="k4"):
        losses.kl_estimate(d, "k4")


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k3+"])
def test_kl_is_zero_at_equality(kind):
    assert losses.kl_estimate(jnp.zeros(3), kind).tolist() == [0.0] * 3


@settings(max_examples=20, deadline=None)
@given(st.floats(-15, 15, width=32))
def test_k2_and_k3_are_never_negative(d):
    for kind in ("k2", "k3", "k3+"):
        assert float(losses.kl_estimate(jnp.float32(d), kind)) >= 0


def test_expected_values_and_gradients_of_the_kl_estimators():
    """Over all samples of a categorical pi: what each estimator is worth and where it pulls."""
    theta = jnp.array([0.3, -0.5, 1.1])
    ref = jax.nn.log_softmax(jnp.array([-0.2, 0.4, 0.1]))
    pi = jax.nn.softmax(theta)

    def expected(theta, kind):  # samples are drawn from pi and held fixed
        return pi @ losses.kl_estimate(jax.nn.log_softmax(theta) - ref, kind)

    def kl(theta):
        logps = jax.nn.log_softmax(theta)
        return jnp.exp(logps) @ (logps - ref)

    def kl_backwards(theta):
        return jnp.exp(ref) @ (ref - jax.nn.log_softmax(theta))

    for kind in ("k1", "k3", "k3+"):
        close(expected(theta, kind), kl(theta))
    grad = jax.grad(expected)
    close(grad(theta, "k1"), jnp.zeros(3))
    close(grad(theta, "k2"), jax.grad(kl)(theta))
    close(grad(theta, "k3+"), jax.grad(kl)(theta))
    close(grad(theta, "k3"), jax.grad(kl_backwards)(theta))


# Surrogate and importance weight


@pytest.mark.parametrize(
    "ratio, advantage, want, slope",  # clips: low 0.3, high 0.2; slope by log ratio
    [
        (1.5, 1.0, -1.2, 0.0),
        (1.5, -1.0, 1.5, 1.5),
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.7, 0.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.0, 0.3, -0.3, -0.3),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, want, slope):
    def loss(x):
        return losses.clipped_surrogate(x, jnp.array([advantage]), 0.3, 0.2)[0].sum()

    x = jnp.log(jnp.array([[ratio]]))
    close(loss(x), want)
    close(jax.grad(loss)(x), [[slope]])
    clipped = losses.clipped_surrogate(x, jnp.array([advantage]), 0.3, 0.2)[1]
    assert clipped.tolist() == [[float(slope == 0.0)]]


def test_surrogate_takes_one_advantage_a_row_or_a_token():
    x = jnp.zeros((2, 3))
    by_row, _ = losses.clipped_surrogate(x, jnp.array([0.3, -0.6]), 0.2, 0.2)
    close(by_row, [[-0.3] * 3, [0.6] * 3])
    tokens = jnp.arange(6.0).reshape(2, 3)
    close(losses.clipped_surrogate(x, tokens, 0.2, 0.2)[0], -tokens)


def test_importance_weight_by_hand():
    old = jnp.array([[-1.0, -1.0, -1.0, -1.0, NAN]])
    sampled = jnp.array([[-1.1, -3.0, NAN, NAN, -1.0]])
    mask = jnp.array([[True, True, True, False, True]])
    weight, broken = losses.importance_weight(old, sampled, mask, cap=2.0)
    close(weight, [[np.exp(0.1), 2.0, 1.0, 1.0, 1.0]])
    assert float(broken) == 2
    weight, broken = losses.importance_weight(old, sampled, mask, cap=None)
    assert weight.tolist() == [[1.0] * 5] and float(broken) == 2


def test_importance_weight_is_one_when_sampler_and_learner_agree():
    logps, mask = jnp.array([[-0.3, -0.7]]), jnp.ones((1, 2), bool)
    for sampled in (logps, None):
        assert losses.importance_weight(logps, sampled, mask, 5.0)[0].tolist() == [[1.0, 1.0]]


# Rewards in time and GAE


def test_terminal_rewards_by_hand():
    mask = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
    got = losses.terminal_rewards(np.array([0.3, 0.7, 0.9]), mask)
    close(got, [[0.0, 0.3, 0.0], [0.0, 0.0, 0.7], [0.0, 0.0, 0.0]])


def test_kl_in_the_reward_by_hand():
    got = losses.add_kl_to_rewards(
        jnp.array([[0.0, 1.0, 0.0]]),
        jnp.array([[-1.0, -2.0, NAN]]),
        jnp.array([[-1.5, -1.0, 0.0]]),
        jnp.array([[True, True, False]]),
        0.1,
    )
    close(got, [[-0.05, 1.1, 0.0]])


def test_gae_by_hand():
    # delta = (0.5 * 2 - 1, 0.5 * 3 - 2, 4 - 3) = (0, -0.5, 1); A_t = delta_t + 0.25 A_{t+1}
    rewards, values = np.array([[0.0, 0.0, 4.0]]), np.array([[1.0, 2.0, 3.0]])
    got, returns = losses.gae(rewards, values, np.ones((1, 3), bool), gamma=0.5, lam=0.5)
    close(got, [[-0.0625, -0.25, 1.0]])
    close(returns, [[0.9375, 1.75, 4.0]])


def test_gae_steps_over_masked_tokens():
    rewards, values = np.array([[0, NAN, 0, 4.0, 9.0]]), np.array([[1, 7.0, 2, 3, NAN]])
    got, returns = losses.gae(
        rewards, values, np.array([[1, 0, 1, 1, 0]], bool), gamma=0.5, lam=0.5
    )
    close(got, [[-0.0625, 0.0, -0.25, 1.0, 0.0]])
    close(returns, [[0.9375, 0.0, 1.75, 4.0, 0.0]])


def test_gae_reduces_to_the_reward_everywhere():
    mask = np.array([[1, 1, 1], [1, 1, 0]], bool)
    rewards = losses.terminal_rewards(np.array([0.3, 0.7]), mask)
    got, returns = losses.gae(rewards, np.zeros((2, 3)), mask, gamma=1.0, lam=1.0)
    close(got, [[0.3] * 3, [0.7, 0.7, 0.0]])
    close(returns, got)


def test_gae_with_lambda_one_is_return_minus_value():
    values = np.array([[0.2, 0.5, -0.1]])
    rewards = np.array([[0.0, 0.3, 1.0]])
    got, returns = losses.gae(rewards, values, np.ones((1, 3), bool), gamma=1.0, lam=1.0)
    close(returns, [[1.3, 1.3, 1.0]])
    close(got, [[1.1, 0.8, 1.1]])


def test_gae_with_lambda_zero_is_the_one_step_error():
    got, _ = losses.gae(
        np.array([[0.0, 1.0]]), np.array([[0.2, 0.5]]), np.ones((1, 2), bool), gamma=0.9, lam=0.0
    )
    close(got, [[0.25, 0.5]])


@pytest.mark.parametrize(
    "value, goal, clip, want",  # the old value is 1
    [
        (2.0, 0.0, 0.2, 2.0),  # moved away from the goal: the full error
        (2.0, 3.0, 0.2, 1.62),  # moved towards it, further than allowed: (1.2 - 3)^2 / 2
        (1.1, 3.0, 0.2, 1.805),  # within the clip
        (2.0, 3.0, None, 0.5),
    ],
)
def test_value_loss_by_hand(value, goal, clip, want):
    args = (jnp.array([[x]]) for x in (value, 1.0, goal, True))
    close(losses.value_loss(*args, clip), [[want]])


# Aggregation

X = np.array([[1.0, 3.0, NAN], [5.0, NAN, NAN], [NAN, NAN, NAN]])
MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)


@pytest.mark.parametrize(
    "how, total, count", [("token", 9.0, 3.0), ("sequence", 7.0, 2.0), ("dr_grpo", 9.0, 8.0)]
)
def test_aggregate_by_hand(how, total, count):
    got = losses.aggregate(X, MASK, how, constant=4)
    assert [float(x) for x in got] == [total, count]


@pytest.mark.parametrize("how", ["token", "sequence", "dr_grpo"])
def test_parts_of_a_batch_add_up(how):
    whole = losses.aggregate(X, MASK, how, 4)
    parts = [losses.aggregate(X[i : i + 1], MASK[i : i + 1], how, 4) for i in range(3)]
    close(np.sum(parts, axis=0), whole)


def test_aggregate_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="mean"):
        losses.aggregate(X, MASK, "mean")
    with pytest.raises(ValueError, match="dr_grpo constant"):
        losses.aggregate(X, MASK, "dr_grpo")


def test_masked_nan_leaves_the_gradient_clean():
    def loss(logps):
        ratio = losses.log_ratio(logps, jnp.full((1, 2), NAN).at[0, 0].set(-1.0), mask)
        surrogate, _ = losses.clipped_surrogate(ratio, jnp.array([0.3]), 0.2, 0.2)
        kl = losses.kl_estimate(ratio, "k3")
        return losses.aggregate(surrogate + kl, mask, "token")[0]

    mask = jnp.array([[True, False]])
    close(jax.grad(loss)(jnp.array([[-1.0, NAN]])), [[-0.3, 0.0]])


# Contracts: a wrong rank or an integer where a fraction belongs never gets into a number.

R, T = 3, 4
REAL, FLAG, ROW = np.zeros((R, T)), np.ones((R, T), bool), np.zeros(R)
INTS, VALID = np.zeros(R, int), np.ones(R, bool)


@pytest.mark.parametrize(
    "function, arguments",
    [
        (losses.group_ids, (INTS, INTS, INTS, "rows")),
        (losses.group_advantages, (ROW, INTS, VALID)),
        (losses.whiten, (REAL, FLAG)),
        (losses.log_ratio, (REAL, REAL, FLAG)),
        (losses.clipped_surrogate, (REAL, ROW, 0.2, 0.2)),
        (losses.importance_weight, (REAL, REAL, FLAG, None)),
        (losses.terminal_rewards, (ROW, FLAG)),
        (losses.add_kl_to_rewards, (REAL, REAL, REAL, FLAG, 0.1)),
        (losses.gae, (REAL, REAL, FLAG, 1.0, 1.0)),
        (losses.value_loss, (REAL, REAL, REAL, FLAG, 0.2)),
        (losses.aggregate, (REAL, FLAG, "token")),
    ],
)
def test_a_wrong_rank_or_type_of_any_argument_raises(function, arguments):
    function(*arguments)
    other_type = {"f": np.int32, "i": np.float32, "b": np.int32}  # by kind
    arrays = [i for i, x in enumerate(arguments) if isinstance(x, np.ndarray)]
    for i in arrays:
        right = arguments[i]
        wrong = [right.astype(other_type[right.dtype.kind])]
        wrong += [right[None], right[:-1]] if len(arrays) > 1 else [right[None]]
        for value in wrong:
            with pytest.raises(AssertionError):
                function(*arguments[:i], value, *arguments[i + 1 :])


def test_integer_rewards_raise_before_they_are_summed():
    rewards = {"r1": np.array([0.3, 0.6]), "r2": np.array([0, 1])}
    for normalise_each in (False, True):
        with pytest.raises(AssertionError, match="type"):
            losses.combined_advantages(
                rewards,
                {"r1": 1.0, "r2": 1.0},
                np.zeros(2, int),
                np.ones(2, bool),
                normalise_each=normalise_each,
            )
