"""What an update minimises: the losses of GRPO and PPO composed with the model.

Axes: R rows, P prompt, T completion, D width.

Every loss is an (unreduced sum, count) pair, so that who calls can cut a batch as it likes. Both
algorithms share one loss; PPO adds a critic and computes its advantages token by token
(`ppo_targets`).
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from memalpha import losses
from memalpha.batch import Batch, Targets, sequence, token_mask
from memalpha.model import ModelConfig, Params, Transformer, head_logps, values

# Numbers of a batch or of a part of it, by name: those under "sum", "token" and "total" are added
# up over the parts, of those under "max" the largest counts.
Parts = dict[str, dict[str, jax.Array]]

CHOICES = {
    "algorithm": ("grpo", "ppo"),
    "aggregation": ("token", "sequence", "dr_grpo"),
    "kl": ("none", "k1", "k2", "k3", "k3+"),
}


@dataclass(frozen=True)
class LossConfig:
    """Everything that shapes the loss; hashable and static.

    kl "k1" is a reward, not a loss term: it enters the advantages (see `losses.kl_estimate`).
    is_cap: cap of the sampler-to-learner importance weight; None: no weight, as if the present
        parameters had sampled.
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


def forward(
    params: Params, batch: Batch, model_config: ModelConfig, temperature: float, head_chunk: int
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Log-probs and entropies of the completion tokens and, with a critic, V before each: [R, T].

    The head sees only the T positions that predict a completion token, P - 1 .. P + T - 2.
    """
    t = batch.tokens.completion.shape[1]
    # The last token predicts nothing, but without it the length would be odd, which the flash
    # attention of cuDNN does not take. So it goes in, and its hidden state is dropped.
    inputs, model = sequence(batch.tokens), Transformer(model_config)
    hidden = model.apply({"params": params}, *inputs, last=t + 1, keep=False)[0][:, :-1]
    logps, entropy = head_logps(
        params, hidden, batch.tokens.completion, model_config, temperature, head_chunk
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
    mask, targets = token_mask(batch), batch.targets
    logps, entropy, new_values = forward(
        params, batch, model_config, config.temperature, config.head_chunk
    )
    old_logps = jax.lax.stop_gradient(logps) if targets.old_logps is None else targets.old_logps
    ratios = losses.log_ratio(logps, old_logps, mask)
    weight, broken = losses.importance_weight(old_logps, targets.sample_logps, mask, config.is_cap)
    surrogate, clipped = losses.clipped_surrogate(
        ratios, _advantages(targets, old_logps, mask, config), config.clip_low, config.clip_high
    )
    terms = {"policy": (1.0, weight * surrogate)}
    token = {
        "entropy": entropy,
        "clip_fraction": clipped,
        "approx_kl": losses.kl_estimate(-ratios, "k3"),
    }
    if config.entropy_coef:
        terms["entropy"] = (-config.entropy_coef, entropy)
    if targets.ref_logps is not None:
        to_ref = losses.log_ratio(logps, targets.ref_logps, mask)
        token["kl"] = losses.kl_estimate(to_ref, "k3")
        if config.kl in ("k2", "k3", "k3+"):
            terms["kl"] = (config.kl_coef, losses.kl_estimate(to_ref, config.kl))
    if config.algorithm == "ppo":
        error = losses.value_loss(
            new_values, targets.values, targets.returns, mask, config.value_clip
        )
        terms["value"] = (config.value_coef, error)
    maxima = {"ratio_max": _max(jnp.exp(ratios), mask)}
    if targets.sample_logps is not None:
        gap = jnp.abs(losses.log_ratio(old_logps, targets.sample_logps, mask))
        token |= {"logp_gap_mean": gap, "is_weight_mean": weight}
        maxima["logp_gap_max"] = _max(gap, mask)

    sums = {f"{k}_loss": aggregate(x, mask, config)[0] for k, (_, x) in terms.items()}
    sums["loss"] = sum(c * sums[f"{k}_loss"] for k, (c, _) in terms.items())
    tokens = {k: jnp.sum(jnp.where(mask, x, 0.0)) for k, x in token.items()}
    parts = {"sum": sums, "token": tokens, "max": maxima, "total": {"nan_logps": broken}}
    return parts, aggregate(logps, mask, config)[1]


def supervised_loss(
    params: Params, batch: Batch, model_config: ModelConfig, first_weight: float = 1.0
) -> tuple[Parts, jax.Array]:
    """Cross-entropy of the completion tokens, undivided; the count is the sum of their weights.

    first_weight: of the first token of every completion, where all others weigh 1. That token
    decides whether anything is called at all, and a writer that is silent writes no other.
    """
    weights = supervised_weights(batch, first_weight)
    logps, _, _ = forward(params, batch, model_config, temperature=1.0, head_chunk=0)
    total = jnp.sum(jnp.where(weights > 0, -logps * weights, 0.0), dtype=jnp.float32)
    return {"sum": {"loss": total}, "token": {}, "max": {}, "total": {}}, weights.sum()


def supervised_weights(batch: Batch, first_weight: float = 1.0) -> jax.Array:
    """[R, T] float32, what each token counts in `supervised_loss`; 0 where there is none."""
    mask = token_mask(batch)
    return jnp.where(jnp.arange(mask.shape[1]) == 0, first_weight, 1.0) * mask


def _advantages(
    targets: Targets, old_logps: jax.Array, mask: jax.Array, config: LossConfig
) -> jax.Array:
    """[R, 1] or [R, T]; GRPO with k1 charges a token for the KL of itself and of what follows."""
    advantages = losses.per_token(targets.advantages)
    if config.algorithm == "grpo" and config.kl == "k1":
        zeros = jnp.zeros_like(old_logps)
        cost = losses.add_kl_to_rewards(zeros, old_logps, targets.ref_logps, mask, config.kl_coef)
        advantages = advantages + losses.gae(cost, zeros, mask, 1.0, 1.0)[0]
    return jax.lax.stop_gradient(advantages)


def aggregate(x: jax.Array, mask: jax.Array, config: LossConfig) -> tuple[jax.Array, jax.Array]:
    """`losses.aggregate` as the config wants it: (unreduced sum, count) of x [R, T]."""
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
    _check_present(batch.targets, needed)


def _check_present(targets: Targets, needed: dict[str, str]) -> None:
    """Raises ValueError for a field that is None; `needed`: field -> what sets it."""
    for name, source in needed.items():
        if getattr(targets, name) is None:
            raise ValueError(f"Batch.targets.{name} is None: set it with {source}")


def ppo_targets(batch: Batch, reward: jax.Array, config: LossConfig) -> Batch:
    """Fill in `advantages` and `returns` [R, T] by GAE; the reward [R] falls on a row's last token.

    With kl "k1" every token also pays kl_coef (log old - log ref). Advantages are whitened over
    all tokens of valid rows; returns are not.

    Raises:
        ValueError: `values` is None, or kl is "k1" and old or ref log-probs are.
    """
    needed = ["values"] + ["old_logps", "ref_logps"] * (config.kl == "k1")
    _check_present(batch.targets, dict.fromkeys(needed, "token_logps"))
    advantages, returns = _gae(reward, batch.targets, token_mask(batch), config)
    return batch.with_targets(advantages=advantages, returns=returns)


@partial(jax.jit, static_argnames="config")
def _gae(reward: jax.Array, targets: Targets, mask: jax.Array, config: LossConfig):
    rewards = losses.terminal_rewards(reward, mask)
    if config.kl == "k1":
        rewards = losses.add_kl_to_rewards(
            rewards, targets.old_logps, targets.ref_logps, mask, config.kl_coef
        )
    advantages, returns = losses.gae(rewards, targets.values, mask, config.gamma, config.lam)
    return losses.whiten(advantages, mask), returns


def explained_variance(batch: Batch) -> jax.Array:
    """1 - var(G - V) / var(G) over valid tokens, V from before the update; 0 where var(G) = 0."""
    mask = token_mask(batch)
    n = jnp.maximum(mask.sum(), 1)

    def variance(x):
        mean = jnp.sum(jnp.where(mask, x, 0.0)) / n
        return jnp.sum(jnp.where(mask, jnp.square(x - mean), 0.0)) / n

    goal = batch.targets.returns
    flat = jnp.max(goal, where=mask, initial=-jnp.inf) <= jnp.min(goal, where=mask, initial=jnp.inf)
    total = jnp.where(flat, 1.0, variance(goal))
    return jnp.where(flat, 0.0, 1.0 - variance(goal - batch.targets.values) / total)
