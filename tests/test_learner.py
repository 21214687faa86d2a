"""The update: what it minimises, that cuts and padding do not change it, and that it learns."""

from dataclasses import replace
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lib.compilations import compilations
from memalpha import learner, losses, objective
from memalpha.batch import fill, from_tokens, plan_micro_batches, sequence, take, token_mask
from memalpha.model import ModelConfig, Transformer, init_params, logits
from memalpha.objective import LossConfig
from memalpha.optimizer import OptimizerConfig, make_optimizer, make_schedule

V, P, T = 11, 5, 7
MODEL = ModelConfig(
    vocab_size=V,
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_size=8,
)
CRITIC = replace(MODEL, value_head=True)
GRPO = LossConfig(kl="k3", kl_coef=0.1, entropy_coef=0.01, is_cap=1.1)
PPO = replace(GRPO, algorithm="ppo", aggregation="token", value_clip=0.2)
DR_GRPO = replace(GRPO, kl="k1", aggregation="dr_grpo", dr_grpo_constant=float(T))
init = jax.jit(partial(init_params, CRITIC))
token_logps = learner.make_token_logps(CRITIC, LossConfig())


@pytest.fixture(scope="module")
def params():
    tree = init(jax.random.key(0))
    return jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, tree)  # far from uniform


@pytest.fixture(scope="module")
def batch():
    """Six rows of many lengths, every optional field set, log-probs off by some noise."""
    rng = np.random.default_rng(3)
    lengths = [(5, 7), (1, 2), (3, 1), (4, 5), (2, 3), (5, 4)]
    batch = from_tokens(
        [rng.integers(0, V, p).tolist() for p, _ in lengths],
        [rng.integers(0, V, t).tolist() for _, t in lengths],
        P,
        T,
    )

    def noise(scale, shift=0.0):
        return (shift + scale * rng.normal(size=(6, T))).astype(np.float32)

    return batch.with_targets(
        sample_logps=noise(0.5, -2.4),
        old_logps=noise(0.5, -2.4),
        ref_logps=noise(0.5, -2.4),
        values=noise(0.3),
        returns=noise(0.3),
        advantages=np.array([0.3, -0.6, 0.9, 1.2, -1.5, 0.1], np.float32),
    )


@partial(jax.jit, static_argnames="config")
def _gradient(params, batch, count, config):
    def scaled(params, batch):
        parts, _ = objective.loss(params, batch, CRITIC, config)
        return parts["sum"]["loss"] / count, parts

    return jax.grad(scaled, has_aux=True)(params, batch)


def gradient(params, batch, config, micro_batch=None):
    """Loss and gradient as the update takes them: counts first, then micro-batches."""
    zeros = jnp.zeros(batch.tokens.completion.shape)
    count = objective.aggregate(zeros, token_mask(batch), config)[1]
    grads, parts = learner.accumulate(
        lambda micro: _gradient(params, micro, count, config),
        batch,
        plan_micro_batches(batch, micro_batch),
    )
    return parts["sum"]["loss"] / count, grads, parts["max"]


def assert_same(got, want, atol=2e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, atol=atol, rtol=2e-4), got, want
    )


def fresh(params, optimizer):
    return learner.init_state(jax.tree.map(jnp.copy, params), optimizer)


# What it computes


def test_log_probs_are_those_of_the_whole_softmax(params, batch):
    tokens, positions, mask = sequence(batch.tokens)
    hidden, _ = jax.jit(Transformer(CRITIC).apply)({"params": params}, tokens, positions, mask)
    full = np.asarray(jax.nn.log_softmax(logits(params, hidden, CRITIC) / 0.7))
    got, critic = learner.make_token_logps(CRITIC, LossConfig(temperature=0.7))(params, batch)
    assert got.shape == critic.shape == (6, T)
    for r in range(6):
        for t in range(int(batch.tokens.completion_mask[r].sum())):
            want = full[r, P + t - 1, batch.tokens.completion[r, t]]
            np.testing.assert_allclose(got[r, t], want, atol=1e-5)


def test_log_probs_do_not_depend_on_cuts_chunks_or_columns(params, batch):
    want, values = token_logps(params, batch)
    mask = np.asarray(batch.tokens.completion_mask)
    cut = learner.make_token_logps(CRITIC, LossConfig(head_chunk=3))
    two = take(batch, np.array([1, 4]))
    tokens = two.tokens.replace(
        completion=two.tokens.completion[:, :3], completion_mask=mask[[1, 4], :3]
    )
    short = two.replace(tokens=tokens)
    got, got_values = cut(params, batch, plan_micro_batches(batch, 2))
    assert_same((got * mask, got_values * mask), (want * mask, values * mask))
    got, _ = cut(params, short)
    assert_same(got * mask[[1, 4], :3], (want * mask)[[1, 4], :3])
    none = learner.make_token_logps(MODEL, LossConfig())(params, short)[1]
    assert none is None


def test_grpo_at_ratio_one_is_minus_the_mean_advantage(params, batch):
    a, n = np.asarray(batch.targets.advantages), np.array([7, 2, 1, 5, 3, 4])
    want = {"token": a @ n / n.sum(), "sequence": a.mean(), "dr_grpo": a @ n / (6 * 14)}

    @jax.jit
    def compute(batch):
        configs = [LossConfig(aggregation=how, dr_grpo_constant=14.0) for how in want]
        return [objective.loss(params, batch, MODEL, config) for config in configs]

    on_policy = batch.with_targets(old_logps=None, sample_logps=None, ref_logps=None)
    got = [float(parts["sum"]["loss"] / count) for parts, count in compute(on_policy)]
    np.testing.assert_allclose(got, [-x for x in want.values()], atol=1e-5)


def test_absent_old_log_probs_are_the_present_ones(params, batch):
    now, _ = token_logps(params, batch)
    loss, grads, _ = gradient(params, batch.with_targets(old_logps=now), GRPO)
    again, same, _ = gradient(params, batch.with_targets(old_logps=None), GRPO)
    assert_same((again, same), (loss, grads))


def test_loss_is_the_sum_of_its_terms(params, batch):
    config = replace(PPO, kl_coef=0.3, entropy_coef=0.2, value_coef=0.7)
    parts, _ = jax.jit(partial(objective.loss, model_config=CRITIC, config=config))(params, batch)
    s = parts["sum"]
    want = s["policy_loss"] + 0.3 * s["kl_loss"] - 0.2 * s["entropy_loss"] + 0.7 * s["value_loss"]
    np.testing.assert_allclose(s["loss"], want, rtol=1e-5)
    assert all(abs(float(s[k])) > 1e-3 for k in s)


def test_k1_charges_each_token_for_the_divergence_from_it_on(params, batch):
    targets, mask = batch.targets, batch.tokens.completion_mask
    cost = 0.1 * (targets.old_logps - targets.ref_logps) * mask
    later = np.cumsum(cost[:, ::-1], axis=1)[:, ::-1]
    charged = (targets.advantages[:, None] - later).astype(np.float32)
    want = gradient(params, batch.with_targets(advantages=charged), replace(DR_GRPO, kl="none"))
    assert_same(gradient(params, batch, DR_GRPO), want)


def test_ppo_targets_by_hand(batch):
    batch = take(batch, np.array([1])).with_targets(values=np.full((1, T), 0.25, np.float32))
    reward = np.array([0.3], np.float32)
    # gamma = 0.5, lambda = 0: delta_0 = 0.5 V - V = -0.125, delta_1 = 0.3 - V = 0.05.
    discounted = replace(PPO, gamma=0.5, lam=0.0)
    plain = objective.ppo_targets(batch, reward, discounted).targets
    np.testing.assert_allclose(plain.returns[0], [0.125, 0.3] + [0] * 5, atol=1e-6)
    # Of mean -0.0375 and deviation 0.0875: whitened to -1 and 1.
    np.testing.assert_allclose(plain.advantages[0], [-1, 1] + [0] * 5, atol=1e-4)
    charged = objective.ppo_targets(batch, reward, replace(PPO, kl="k1")).targets
    cost = 0.1 * (batch.targets.old_logps - batch.targets.ref_logps)[0]
    want = [0.3 - cost[0] - cost[1], 0.3 - cost[1]]
    np.testing.assert_allclose(charged.returns[0, :2], want, atol=1e-6)
    with pytest.raises(ValueError, match="values is None"):
        objective.ppo_targets(batch.with_targets(values=None), reward, PPO)


def test_explained_variance_by_hand(batch):
    batch = take(batch, np.array([1])).with_targets(returns=np.array([[1.0, 3.0] + [9.0] * 5]))
    for values, want in (([1.0, 3.0], 1.0), ([2.0, 2.0], 0.0), ([3.0, 1.0], -3.0)):
        got = objective.explained_variance(
            batch.with_targets(values=np.array([values + [0.0] * 5]))
        )
        np.testing.assert_allclose(got, want, atol=1e-6)
    flat = batch.with_targets(returns=np.full((1, T), 0.3), values=np.zeros((1, T)))
    assert float(objective.explained_variance(flat)) == 0


# What does not change it


@pytest.mark.parametrize("config", [GRPO, PPO, DR_GRPO], ids=["grpo", "ppo", "dr_grpo"])
def test_micro_batches_padding_and_order_change_nothing(params, batch, config):
    want = gradient(params, batch, config)
    padded = fill(batch, 8)
    ruin = ~np.asarray(padded.rows.valid)
    padded = padded.with_targets(  # whatever filler rows hold, it must not be felt
        old_logps=np.where(ruin[:, None], np.nan, padded.targets.old_logps),
        advantages=np.where(ruin, np.nan, padded.targets.advantages),
    )
    mask = padded.tokens.completion_mask | ruin[:, None]
    padded = padded.replace(tokens=padded.tokens.replace(completion_mask=mask))
    shuffled = take(padded, np.array([6, 2, 0, 5, 7, 1, 4, 3]))
    assert float(optax.tree.norm(want[1])) > 1e-2
    assert_same(gradient(params, shuffled, config, micro_batch=4), want)


def test_masked_columns_change_nothing(params, batch):
    rng = np.random.default_rng(0)

    def widen(array, junk):
        return np.concatenate([array, np.full((6, 2), junk, array.dtype)], axis=1)

    tokens, targets = batch.tokens, batch.targets
    fields = ("sample_logps", "old_logps", "ref_logps", "values", "returns")
    wide = batch.replace(
        tokens=tokens.replace(
            prompt=np.concatenate([rng.integers(0, V, (6, 3)), tokens.prompt], axis=1),
            prompt_mask=np.concatenate([np.zeros((6, 3), bool), tokens.prompt_mask], axis=1),
            completion=widen(tokens.completion, 4),
            completion_mask=widen(tokens.completion_mask, False),
        )
    ).with_targets(**{name: widen(getattr(targets, name), np.nan) for name in fields})
    assert_same(gradient(params, wide, PPO), gradient(params, batch, PPO))


# The update


def test_one_plan_serves_log_probs_and_update_and_bookkeeping_compiles_nothing(params, batch):
    optimizer = make_optimizer(OptimizerConfig(1e-3))
    update = learner.make_update(CRITIC, GRPO, optimizer)
    plan = plan_micro_batches(batch, 3)
    logps, _ = token_logps(params, batch, plan)
    mask = np.asarray(batch.tokens.completion_mask)
    assert_same(logps * mask, token_logps(params, batch)[0] * mask)
    bare, _ = update(fresh(params, optimizer), batch, plan)
    rows = batch.with_rows(instance=np.arange(6), rewards={"r1": np.zeros(6)})
    state, before = fresh(params, optimizer), compilations()
    same, _ = update(state, rows, plan)
    assert compilations() == before
    jax.tree.map(np.testing.assert_array_equal, same, bare)


def test_update_steps_and_reports(params, batch):
    optimizer = make_optimizer(OptimizerConfig(1e-3, max_grad_norm=0.5))
    update = learner.make_update(CRITIC, replace(PPO, is_cap=2.0), optimizer)
    plan, targets = plan_micro_batches(batch, 3), batch.targets
    state, metrics = update(fresh(params, optimizer), batch, plan)
    metrics = {k: float(v) for k, v in metrics.items()}
    assert int(state.step) == 1 and metrics["nonfinite"] == 0
    assert (metrics["tokens"], metrics["rows"], metrics["nan_logps"]) == (22, 6, 0)
    mask = batch.tokens.completion_mask
    gap = np.abs(targets.old_logps - targets.sample_logps)[mask]
    np.testing.assert_allclose(metrics["logp_gap_mean"], gap.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["logp_gap_max"], gap.max(), rtol=1e-5)
    logps, _ = token_logps(params, batch)
    ratio = np.exp(logps - targets.old_logps)[mask]
    np.testing.assert_allclose(metrics["ratio_max"], ratio.max(), rtol=1e-4)
    np.testing.assert_allclose(metrics["approx_kl"], (ratio - 1 - np.log(ratio)).mean(), rtol=1e-4)
    to_ref = (logps - targets.ref_logps)[mask]
    np.testing.assert_allclose(metrics["kl"], (np.exp(-to_ref) - 1 + to_ref).mean(), rtol=1e-4)
    assert 0 < metrics["clip_fraction"] < 1 and 0 < metrics["entropy"] < np.log(V)
    assert metrics["grad_norm"] > 0 and metrics["update_norm"] > 0

    # The same machinery on what is broken or empty: nothing moves.
    before = jax.tree.map(np.asarray, state)
    broken = np.array([0.3, np.nan, 0, 0, 0, 0], np.float32)
    for changed, nonfinite in (
        (batch.with_targets(advantages=broken), 1),
        (batch.with_rows(valid=np.zeros(6, bool)), 0),
    ):
        state, metrics = update(state, changed, plan)
        assert float(metrics["nonfinite"]) == nonfinite
        assert float(metrics["update_norm"]) == 0
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), before)

    # Broken sampler log-probs are neutral and counted.
    broken = targets.sample_logps.copy()
    broken[0, :2] = np.nan
    state, metrics = update(state, batch.with_targets(sample_logps=broken), plan)
    assert (float(metrics["nan_logps"]), float(metrics["nonfinite"])) == (2, 0)
    assert int(state.step) == 2


def test_supervised_loss_is_the_cross_entropy_and_falls(params, batch):
    optimizer = make_optimizer(OptimizerConfig(3e-2, weight_decay=0.0))
    update = learner.make_supervised_update(MODEL, optimizer)
    padded = fill(batch, 8)
    plan = plan_micro_batches(padded, 4)
    logps, _ = token_logps(params, batch)
    state, first = update(fresh(params, optimizer), padded, plan)
    want = -np.asarray(logps)[batch.tokens.completion_mask].mean()
    np.testing.assert_allclose(first["loss"], want, rtol=1e-5)
    for _ in range(30):
        state, last = update(state, padded, plan)
    assert float(last["loss"]) < 0.5 * float(first["loss"])


def test_the_first_token_can_count_more(params, batch):
    optimizer = make_optimizer(OptimizerConfig(3e-2, weight_decay=0.0))
    logps, _ = token_logps(params, batch)
    mask = batch.tokens.completion_mask
    weights = mask * np.where(np.arange(mask.shape[1]) == 0, 8.0, 1.0)
    padded = fill(batch, 8)
    for size in (None, 4):
        update = learner.make_supervised_update(MODEL, optimizer, first_weight=8.0)
        plan = plan_micro_batches(padded, size)
        _, metrics = update(fresh(params, optimizer), padded, plan)
        want = -(np.asarray(logps) * weights)[mask].sum() / weights.sum()
        np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)


def rates(updates, **fields):
    rate = make_schedule(OptimizerConfig(0.4, **fields))
    return [float(rate(i)) for i in updates]


def test_schedules_by_hand():
    cosine = dict(schedule="cosine", warmup_steps=4)
    got = rates((0, 1, 3, 4, 6, 8, 20), total_steps=8, **cosine)
    np.testing.assert_allclose(got, [0.1, 0.2, 0.4, 0.4, 0.2, 0.0, 0.0], atol=1e-6)
    assert rates((0, 100)) == pytest.approx([0.4, 0.4])
    late = dict(schedule="stable_decay", total_steps=8)
    assert rates((0, 6, 7, 8), **late) == pytest.approx([0.4, 0.4, 0.2, 0.0])
    assert rates((0, 4, 6, 8), decay_share=0.5, **late) == pytest.approx([0.4, 0.4, 0.2, 0.0])
    over_before_warm = rates((0, 1, 2), total_steps=3, **cosine)
    assert over_before_warm == pytest.approx([0.1, 0.2, 0.3])


def test_an_unknown_schedule_or_optimizer_is_refused():
    with pytest.raises(ValueError, match="'linear': choose 'constant', 'cosine' or 'stable_decay'"):
        OptimizerConfig(0.4, schedule="linear")
    with pytest.raises(ValueError, match="optimizer 'sgd': choose 'adamw' or 'muon'"):
        OptimizerConfig(0.4, optimizer="sgd")


def test_optimizer_decays_matrices_alone_and_clips():
    tree = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, tree)
    optimizer = make_optimizer(OptimizerConfig(0.1, weight_decay=0.5))
    updates, _ = optimizer.update(zeros, optimizer.init(tree), tree)
    np.testing.assert_allclose(updates["kernel"], -0.05 * np.ones((2, 2)), rtol=1e-6)
    assert updates["scale"].tolist() == [0.0, 0.0]
    # First moment after one step: a tenth of the clipped gradient.
    optimizer = make_optimizer(OptimizerConfig(0.1, max_grad_norm=1.0))
    grads = {"kernel": jnp.zeros((2, 2)), "scale": jnp.array([30.0, 40.0])}
    _, state = optimizer.update(grads, optimizer.init(tree), tree)
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose(moments["scale"], [0.06, 0.08], rtol=1e-6)


@pytest.mark.parametrize(
    "field, value",
    [("algorithm", "dpo"), ("aggregation", "mean"), ("kl", "k4"), ("clip_low", 1.5)],
)
def test_config_refuses_what_it_does_not_know(field, value):
    with pytest.raises(ValueError, match="LossConfig"):
        LossConfig(**{field: value})


def test_missing_fields_are_named(params, batch):
    with pytest.raises(ValueError, match="ref_logps is None"):
        objective.loss(params, batch.with_targets(ref_logps=None), MODEL, GRPO)
    with pytest.raises(ValueError, match="returns is None"):
        objective.loss(params, batch.with_targets(returns=None), CRITIC, PPO)
    with pytest.raises(ValueError, match="value_head=True"):
        objective.loss(params, batch, MODEL, PPO)
    with pytest.raises(ValueError, match="dr_grpo_constant"):
        LossConfig(aggregation="dr_grpo")


# It learns

PROMPTS = np.repeat(np.arange(3), 8)  # three instances of eight rollouts
BANDIT = from_tokens([[p] for p in PROMPTS.tolist()], [[0]] * 24)


@jax.jit
def answer(params, key):
    """One sampled token a row, and its log-prob."""
    hidden, _ = Transformer(CRITIC).apply({"params": params}, *sequence(BANDIT.tokens))
    scores = jax.nn.log_softmax(logits(params, hidden[:, 0], CRITIC))
    token = jax.random.categorical(key, scores)
    return token, jnp.take_along_axis(scores, token[:, None], axis=1)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_bandit_with_one_right_token_a_prompt_is_learned(algorithm):
    config = LossConfig(algorithm=algorithm, aggregation="token")
    optimizer = make_optimizer(OptimizerConfig(2e-2, weight_decay=0.0))
    update = learner.make_update(CRITIC, config, optimizer)
    state = learner.init_state(init(jax.random.key(1)), optimizer)
    curve = []
    for step in range(60):
        token, sampled = answer(state.params, jax.random.fold_in(jax.random.key(2), step))
        reward = (np.asarray(token) == PROMPTS + 5).astype(np.float32)
        tokens = BANDIT.tokens.replace(completion=np.asarray(token)[:, None])
        batch = BANDIT.replace(tokens=tokens).with_targets(sample_logps=sampled)
        if algorithm == "grpo":
            advantages, _ = losses.group_advantages(reward, PROMPTS, batch.rows.valid)
            state, _ = update(state, batch.with_targets(advantages=advantages))
        else:
            old, values = token_logps(state.params, batch)
            batch = batch.with_targets(old_logps=old, values=values)
            batch = objective.ppo_targets(batch, reward, config)
            for _ in range(2):
                state, _ = update(state, batch)
        curve.append(reward.mean())
    assert np.mean(curve[:5]) < 0.35
    assert np.mean(curve[-5:]) > 0.9


def test_muon_moves_the_matrices_of_the_layers_in_all_directions_alike():
    params = init_params(MODEL, jax.random.key(0))
    grads = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape) * 1e-2, params
    )

    def moved(optimizer):
        return optimizer.update(grads, optimizer.init(params), params)[0]

    muon = moved(make_optimizer(OptimizerConfig(0.1, weight_decay=0.0, optimizer="muon")))
    adamw = moved(optax.nadamw(0.1, weight_decay=0.0))
    for name in ("q_proj", "o_proj"):
        kernel = muon["layers_0"]["attention"][name]["kernel"]
        values = jnp.linalg.svd(kernel, compute_uv=False)
        assert values.max() < 2 * values.min()  # a gradient of noise has them far apart
        assert jnp.sqrt(jnp.mean(kernel**2)) == pytest.approx(0.1 * 0.2, rel=0.3)
    for path in (("embed", "embedding"), ("norm", "scale"), ("layers_0", "mlp_norm", "scale")):
        ours, theirs = (reduce(dict.__getitem__, path, tree) for tree in (muon, adamw))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
