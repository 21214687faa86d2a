"""GRPO and PPO: the losses composed with the model, and a jitted, donated update.

Axes: R rows, P prompt, T completion, D width, M micro-batch rows.
Both algorithms share one loop and one update; PPO adds a critic and computes its advantages token
by token (`ppo_targets`). Every loss is an (unreduced sum, count) pair whose count is taken over the
whole batch before the first micro-batch, so that the gradient is the same however it is cut.
Micro-batches are rows of like length, each as wide as it needs (`batch.micro_batches`), and run one
after the other from Python.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import struct

from memalpha import losses
from memalpha.batch import Batch, micro_batches, row_mask, sequence, token_mask
from memalpha.model import ModelConfig, Params, Transformer, head_logps, values
from memalpha.precision import in_float32
from memalpha.sharding import (
    ROWS,
    WHOLE,
    constrain_tree,
    mesh_of,
    name_of,
    place,
    shardings,
    use,
)

Metrics = dict[str, jax.Array]
Parts = dict[str, dict[str, jax.Array]]  # "sum", "token", "total": added; "max": the largest
Update = Callable[..., tuple["TrainState", Metrics]]

MUON_RMS = 0.2  # of an update at learning rate 1, as AdamW's

CHOICES = {
    "algorithm": ("grpo", "ppo"),
    "aggregation": ("token", "sequence", "dr_grpo"),
    "kl": ("none", "k1", "k2", "k3", "k3+"),
}


@struct.dataclass
class TrainState:
    """Parameters (the critic among them), optimiser state, and the number of applied updates."""

    params: Params
    opt_state: optax.OptState
    step: jax.Array  # [] int32


@dataclass(frozen=True)
class LossConfig:
    """Everything that shapes the loss; hashable and static.

    kl "k1" is a reward, not a loss term: it enters the advantages (see `losses.kl_estimate`).
    is_cap: cap of the sampler-to-learner importance weight; None: no weight.
    value_clip: half-width of the critic's clip; None: none.
    dr_grpo_constant: tokens a row is divided by under aggregation "dr_grpo".
    head_chunk: completion positions the head is applied to at once; 0: all.
    """

    algorithm: str = "grpo"
    aggregation: str = "sequence"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: str = "none"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    is_cap: float | None = None
    value_coef: float = 0.5
    value_clip: float | None = 0.2
    gamma: float = 1.0
    lam: float = 1.0
    temperature: float = 1.0
    dr_grpo_constant: float | None = None
    head_chunk: int = 0

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"LossConfig.{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}"
                )
        if self.aggregation == "dr_grpo" and not (self.dr_grpo_constant or 0) > 0:
            raise ValueError("LossConfig.dr_grpo_constant must be > 0: set the completion limit")
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise ValueError(
                f"LossConfig clips {self.clip_low}, {self.clip_high}: low in [0, 1], high >= 0"
            )


def make_schedule(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    schedule: str = "constant",
    decay_share: float = 0.25,
) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then constant; or a cosine to 0 over what is left of
    `total_steps`; or "stable_decay": constant, and a straight line to 0 over their last
    `decay_share`.

    The first update already moves: update i (from 1) of the warm-up has i / warmup_steps of it.

    Raises:
        ValueError: unknown schedule.
    """
    if schedule not in ("constant", "cosine", "stable_decay"):
        raise ValueError(f"schedule {schedule!r}: choose 'constant', 'cosine' or 'stable_decay'")

    def rate(count):
        warm = jnp.minimum(1.0, (count + 1) / max(warmup_steps, 1))
        if schedule == "constant":
            return learning_rate * warm
        if schedule == "stable_decay":
            left = 1 - count / total_steps
            return learning_rate * warm * jnp.clip(left / decay_share, 0.0, 1.0)
        done = jnp.clip((count - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        return learning_rate * warm * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    return rate


def make_optimizer(
    learning_rate: float,
    warmup_steps: int = 0,
    total_steps: int = 0,
    schedule: str = "constant",
    weight_decay: float = 0.01,
    max_grad_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    optimizer: str = "adamw",
    decay_share: float = 0.25,
) -> optax.GradientTransformation:
    """The optimiser after clipping the global gradient norm; only matrices decay, not norm scales.

    optimizer: "adamw"; or "muon": the matrices of the layers by Muon (Jordan et al. 2024, "Muon"),
    its updates scaled to the size of AdamW's (arXiv:2502.16982, section 2.2), and all else, which
    then does not decay, by AdamW with Nesterov's momentum.
    `schedule`, `decay_share`: see `make_schedule`.
    All of it in float32: parameters of lower precision get a float32 copy in the state.

    Raises:
        ValueError: unknown optimizer, or as `make_schedule`.
    """
    rate = make_schedule(learning_rate, warmup_steps, total_steps, schedule, decay_share)
    if optimizer == "adamw":
        matrices = partial(jax.tree.map, lambda x: x.ndim > 1)
        steps = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=matrices)
    elif optimizer == "muon":
        steps = optax.contrib.muon(
            rate,
            weight_decay=weight_decay,
            adam_b1=b1,
            adam_b2=b2,
            muon_weight_dimension_numbers=_muon_matrices,
            consistent_rms=MUON_RMS,
        )
    else:
        raise ValueError(f"optimizer {optimizer!r}: choose 'adamw' or 'muon'")
    if max_grad_norm:
        steps = optax.chain(optax.clip_by_global_norm(max_grad_norm), steps)
    return in_float32(steps)


def _muon_matrices(params: Params):
    """What Muon is for: the kernels of the layers, and neither biases, embedding nor heads."""
    return jax.tree.map_with_path(
        lambda path, x: (
            optax.contrib.MuonDimensionNumbers()
            if "_proj/" in name_of(path) and x.ndim > 1
            else None
        ),
        params,
    )


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0. `update` donates it: copy `params` first if something else needs them.

    On the mesh of `params`, if they are on one.
    """
    mesh, init = mesh_of(params), optimizer.init
    if mesh is not None:
        init = jax.jit(init, out_shardings=shardings(jax.eval_shape(init, params), mesh))
    step = place(jnp.int32(0), mesh, WHOLE)
    return TrainState(params=params, opt_state=init(params), step=step)


def forward(
    params: Params, batch: Batch, model_config: ModelConfig, temperature: float, head_chunk: int
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Log-probs and entropies of the completion tokens and, with a critic, V before each: [R, T].

    The head sees only the T positions that predict a completion token, P - 1 .. P + T - 2.
    """
    t = batch.completion.shape[1]
    # The last token predicts nothing; without it the length is odd, which cuDNN does not take.
    inputs, model = sequence(batch), Transformer(model_config)
    hidden = model.apply({"params": params}, *inputs, last=t + 1, keep=False)[0][:, :-1]
    logps, entropy = head_logps(
        params, hidden, batch.completion, model_config, temperature, head_chunk
    )
    return logps, entropy, values(params, hidden) if model_config.value_head else None


def loss(
    params: Params, batch: Batch, model_config: ModelConfig, config: LossConfig
) -> tuple[Parts, jax.Array]:
    """The loss of a batch, undivided: `parts["sum"]["loss"] / count` is what is minimised.

        loss = policy + kl_coef kl - entropy_coef entropy + value_coef value    (the last: PPO)

    all four under one aggregation. `parts["token"]` are sums over tokens, meant for metrics.

    Raises:
        ValueError: a field of the batch that the config needs is None.
    """
    _require(batch, model_config, config)
    mask = token_mask(batch)
    logps, entropy, new_values = forward(
        params, batch, model_config, config.temperature, config.head_chunk
    )
    old_logps = jax.lax.stop_gradient(logps) if batch.old_logps is None else batch.old_logps
    ratios = losses.log_ratio(logps, old_logps, mask)
    weight, broken = losses.importance_weight(old_logps, batch.sample_logps, mask, config.is_cap)
    surrogate, clipped = losses.clipped_surrogate(
        ratios, _advantages(batch, old_logps, mask, config), config.clip_low, config.clip_high
    )
    terms = {"policy": (1.0, weight * surrogate)}
    token = {
        "entropy": entropy,
        "clip_fraction": clipped,
        "approx_kl": losses.kl_estimate(-ratios, "k3"),
    }
    if config.entropy_coef:
        terms["entropy"] = (-config.entropy_coef, entropy)
    if batch.ref_logps is not None:
        to_ref = losses.log_ratio(logps, batch.ref_logps, mask)
        token["kl"] = losses.kl_estimate(to_ref, "k3")
        if config.kl in ("k2", "k3", "k3+"):
            terms["kl"] = (config.kl_coef, losses.kl_estimate(to_ref, config.kl))
    if config.algorithm == "ppo":
        error = losses.value_loss(new_values, batch.values, batch.returns, mask, config.value_clip)
        terms["value"] = (config.value_coef, error)
    maxima = {"ratio_max": _max(jnp.exp(ratios), mask)}
    if batch.sample_logps is not None:
        gap = jnp.abs(losses.log_ratio(old_logps, batch.sample_logps, mask))
        token |= {"logp_gap_mean": gap, "is_weight_mean": weight}
        maxima["logp_gap_max"] = _max(gap, mask)

    sums = {f"{k}_loss": _aggregate(x, mask, config)[0] for k, (_, x) in terms.items()}
    sums["loss"] = sum(c * sums[f"{k}_loss"] for k, (c, _) in terms.items())
    tokens = {k: jnp.sum(jnp.where(mask, x, 0.0)) for k, x in token.items()}
    parts = {"sum": sums, "token": tokens, "max": maxima, "total": {"nan_logps": broken}}
    return parts, _aggregate(logps, mask, config)[1]


def supervised_loss(
    params: Params, batch: Batch, model_config: ModelConfig, head_chunk: int = 0
) -> tuple[Parts, jax.Array]:
    """Cross-entropy of the completion tokens, undivided; the count is the number of tokens."""
    mask = token_mask(batch)
    logps, _, _ = forward(params, batch, model_config, 1.0, head_chunk)
    total, count = losses.aggregate(-logps, mask, "token")
    return {"sum": {"loss": total}, "token": {}, "max": {}, "total": {}}, count


def _advantages(batch: Batch, old_logps: jax.Array, mask: jax.Array, config: LossConfig):
    """[R, 1] or [R, T]; GRPO with k1 charges a token for the KL of itself and of what follows."""
    advantages = losses.per_token(batch.advantages)
    if config.algorithm == "grpo" and config.kl == "k1":
        zeros = jnp.zeros_like(old_logps)
        cost = losses.add_kl_to_rewards(zeros, old_logps, batch.ref_logps, mask, config.kl_coef)
        advantages = advantages + losses.gae(cost, zeros, mask, 1.0, 1.0)[0]
    return jax.lax.stop_gradient(advantages)


def _aggregate(x: jax.Array, mask: jax.Array, config: LossConfig) -> tuple[jax.Array, jax.Array]:
    return losses.aggregate(x, mask, config.aggregation, config.dr_grpo_constant)


def _max(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(mask, x, 0.0))


def _require(batch: Batch, model_config: ModelConfig, config: LossConfig) -> None:
    needed = {"advantages": "losses.group_advantages or learner.ppo_targets"}
    if config.kl != "none":
        needed["ref_logps"] = "token_logps of the reference policy"
    if config.algorithm == "ppo":
        needed |= {
            "returns": "learner.ppo_targets",
            "values": "token_logps",
            "old_logps": "token_logps",
        }
        if not model_config.value_head:
            raise ValueError("algorithm 'ppo' needs a critic: set ModelConfig(value_head=True)")
    for name, source in needed.items():
        if getattr(batch, name) is None:
            raise ValueError(f"Batch.{name} is None: set it with {source}")


def ppo_targets(batch: Batch, reward: jax.Array, config: LossConfig, whiten: bool = True) -> Batch:
    """Fill in `advantages` and `returns` [R, T] by GAE; the reward [R] falls on a row's last token.

    With kl "k1" every token also pays kl_coef (log old - log ref). Advantages are whitened over
    all tokens of valid rows; returns are not.

    Raises:
        ValueError: `values` is None, or kl is "k1" and old or ref log-probs are.
    """
    needed = ["values"] + ["old_logps", "ref_logps"] * (config.kl == "k1")
    for name in needed:
        if getattr(batch, name) is None:
            raise ValueError(f"ppo_targets: Batch.{name} is None: set it with token_logps")
    coef = config.kl_coef if config.kl == "k1" else None
    advantages, returns = _gae(
        reward,
        batch.values,
        batch.old_logps,
        batch.ref_logps,
        token_mask(batch),
        coef,
        config.gamma,
        config.lam,
        whiten,
    )
    return batch.replace(advantages=advantages, returns=returns)


@partial(jax.jit, static_argnames=("coef", "gamma", "lam", "whiten"))
def _gae(reward, old_values, old_logps, ref_logps, mask, coef, gamma, lam, whiten):
    rewards = losses.terminal_rewards(reward, mask)
    if coef is not None:
        rewards = losses.add_kl_to_rewards(rewards, old_logps, ref_logps, mask, coef)
    advantages, returns = losses.gae(rewards, old_values, mask, gamma, lam)
    return losses.whiten(advantages, mask) if whiten else advantages, returns


def make_token_logps(
    model_config: ModelConfig, config: LossConfig, micro_batch: int | None = None
) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array | None]]:
    """Build `token_logps(params, batch) -> (logps [R, T], values [R, T] or None)`, jitted.

    For old and reference log-probs, at the temperature of the loss, as numpy. What stands under a
    zero mask means nothing. `micro_batch` rows are computed at a time, all of them when None.
    """

    @jax.jit
    def score(params: Params, batch: Batch):
        logps, _, v = forward(params, batch, model_config, config.temperature, config.head_chunk)
        return constrain_tree((logps, v), WHOLE)  # fetched by every process

    def token_logps(params: Params, batch: Batch):
        shape, mesh = batch.completion.shape, mesh_of(params)
        with use(mesh):
            parts = [
                (rows, score(params, place(micro, mesh, ROWS)))
                for rows, micro in micro_batches(_inputs(batch), micro_batch)
            ]
        whole = [np.zeros(shape, np.float32), np.zeros(shape, np.float32)]
        for rows, part in parts:
            for array, piece in zip(whole, jax.device_get(part), strict=True):
                if piece is not None:
                    array[rows, : piece.shape[1]] = piece
        return whole[0], whole[1] if model_config.value_head else None

    return token_logps


def _inputs(batch: Batch) -> Batch:
    """Only what the model reads, so that other fields do not cause a new compilation."""
    names = ("prompt", "prompt_mask", "completion", "completion_mask")
    return Batch(**{name: getattr(batch, name) for name in names})


def make_update(
    model_config: ModelConfig,
    config: LossConfig,
    optimizer: optax.GradientTransformation,
    micro_batch: int | None = None,
    attach: Callable[[Params, Params], Params] | None = None,
) -> Update:
    """Build `update(state, batch) -> (state, metrics)`: one optimiser step, jitted, state donated.

    `micro_batch` rows go through the model at a time (None: all); the step is the same.
    `attach`: where only a part of the model is trained, `attach(state.params, frozen)` is all of it
    and `update` takes `frozen` as its third argument (`lora.attach`).
    Where loss or gradient is not finite the state is kept and `metrics["nonfinite"]` is 1: the loop
    should stop and name the step. A batch without a valid token changes nothing either.
    Metrics are float32 scalars; means are over valid tokens. `kl` to the reference and `approx_kl`
    to the old policy are k3 estimates.
    """

    def count(batch: Batch) -> jax.Array:
        return _aggregate(jnp.zeros(batch.completion.shape), token_mask(batch), config)[1]

    def extra(batch: Batch) -> Metrics:
        if config.algorithm != "ppo":
            return {}
        return {"explained_variance": explained_variance(batch)}

    fn = partial(loss, model_config=model_config, config=config)
    return _make_update(fn, count, extra, optimizer, micro_batch, attach)


def make_supervised_update(
    model_config: ModelConfig,
    optimizer: optax.GradientTransformation,
    micro_batch: int | None = None,
    head_chunk: int = 0,
    attach: Callable[[Params, Params], Params] | None = None,
) -> Update:
    """As `make_update`, for cross-entropy on the completions (warm start), averaged over tokens."""

    def count(batch: Batch) -> jax.Array:
        return jnp.sum(token_mask(batch), dtype=jnp.float32)

    fn = partial(supervised_loss, model_config=model_config, head_chunk=head_chunk)
    return _make_update(fn, count, lambda batch: {}, optimizer, micro_batch, attach)


def explained_variance(batch: Batch) -> jax.Array:
    """1 - var(G - V) / var(G) over valid tokens, V from before the update; 0 where var(G) = 0."""
    mask = token_mask(batch)
    n = jnp.maximum(mask.sum(), 1)

    def variance(x):
        mean = jnp.sum(jnp.where(mask, x, 0.0)) / n
        return jnp.sum(jnp.where(mask, jnp.square(x - mean), 0.0)) / n

    goal = batch.returns
    flat = jnp.max(goal, where=mask, initial=-jnp.inf) <= jnp.min(goal, where=mask, initial=jnp.inf)
    total = jnp.where(flat, 1.0, variance(goal))
    return jnp.where(flat, 0.0, 1.0 - variance(goal - batch.values) / total)


def _make_update(
    loss_fn: Callable[[Params, Batch], tuple[Parts, jax.Array]],
    count_fn: Callable[[Batch], jax.Array],
    extra_fn: Callable[[Batch], Metrics],
    optimizer: optax.GradientTransformation,
    micro_batch: int | None,
    attach: Callable[[Params, Params], Params] | None,
) -> Update:
    grad_fn = make_gradient(loss_fn, attach)

    @jax.jit
    def totals(batch: Batch):
        tokens = jnp.sum(token_mask(batch), dtype=jnp.float32)
        rows = jnp.sum(row_mask(batch), dtype=jnp.float32)
        return count_fn(batch), {"tokens": tokens, "rows": rows} | extra_fn(batch)

    @partial(jax.jit, donate_argnums=0)
    def finish(state: TrainState, grads: Params, parts: Parts, count: jax.Array, extra: Metrics):
        metrics = {k: x / jnp.maximum(count, 1.0) for k, x in parts["sum"].items()}
        metrics |= {k: x / jnp.maximum(extra["tokens"], 1.0) for k, x in parts["token"].items()}
        metrics |= parts["max"] | parts["total"] | extra
        state, norms = apply_gradients(
            state, grads, optimizer, metrics["loss"], extra["tokens"] > 0
        )
        return constrain_tree(state), metrics | norms

    def update(
        state: TrainState, batch: Batch, frozen: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        mesh = mesh_of(state.params)
        count, extra = place(totals(batch), mesh, WHOLE)

        def gradients(micro: Batch) -> tuple[Params, Parts]:
            return grad_fn(state.params, frozen, place(micro, mesh, ROWS), count)

        with use(mesh):
            grads, parts = accumulate(gradients, batch, micro_batch)
            return finish(state, grads, parts, count, extra)

    return update


def make_gradient(
    loss_fn: Callable[[Params, Batch], tuple[Parts, jax.Array]],
    attach: Callable[[Params, Params], Params] | None = None,
):
    """Build `gradient(params, frozen, micro, count) -> (float32 gradients, parts)`, jitted: what
    one micro-batch adds to a batch of that count."""

    def scaled(params: Params, frozen: Params | None, micro: Batch, count: jax.Array):
        parts, _ = loss_fn(attach(params, frozen) if attach else params, micro)
        return parts["sum"]["loss"] / jnp.maximum(count, 1.0), parts

    @jax.jit
    def gradient(params: Params, frozen: Params | None, micro: Batch, count: jax.Array):
        grads, parts = jax.grad(scaled, has_aux=True)(params, frozen, micro, count)
        return constrain_tree(optax.tree.cast(grads, jnp.float32)), parts

    return gradient


def accumulate(
    grad_fn: Callable[[Batch], tuple[Params, Parts]], batch: Batch, micro_batch: int | None
) -> tuple[Params, Parts]:
    """Float32 gradients and parts of a whole batch, `micro_batch` rows at a time, added up."""
    total = None
    for _, micro in micro_batches(batch, micro_batch):
        new = grad_fn(micro)
        total = new if total is None else _add(total, new)
    return total


@partial(jax.jit, donate_argnums=0)
def _add(total: tuple[Params, Parts], new: tuple[Params, Parts]) -> tuple[Params, Parts]:
    grads = jax.tree.map(jnp.add, total[0], new[0])
    parts = {
        k: jax.tree.map(jnp.maximum if k == "max" else jnp.add, total[1][k], part)
        for k, part in new[1].items()
    }
    return grads, parts


def apply_gradients(
    state: TrainState,
    grads: Params,
    optimizer: optax.GradientTransformation,
    loss_value: jax.Array,
    wanted: jax.Array,
) -> tuple[TrainState, Metrics]:
    """One optimiser step, unless the loss or the gradient is not finite or `wanted` is false.

    `grads` are float32 whatever the parameters are (see `precision.in_float32`).
    """
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss_value) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    stepped = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
    go = finite & wanted
    state = jax.tree.map(partial(jnp.where, go), stepped, state)
    metrics = {
        "grad_norm": grad_norm,
        "update_norm": jnp.where(go, optax.tree.norm(updates), 0.0),
        "nonfinite": 1.0 - finite.astype(jnp.float32),
    }
    return state, metrics
