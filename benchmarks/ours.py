"""Our contenders: rollout, GRPO step, and whole GRPO iteration, as in `experiments/train.py`."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import BETA, CLIP, FIRST_ID, LEARNING_RATE, MAX_NORM, Shape, check_count
from memalpha import losses
from memalpha.batch import Batch, Targets, Tokens, plan_micro_batches
from memalpha.learner import init_state, make_token_logps, make_update
from memalpha.model import ModelConfig, Params, init_params
from memalpha.objective import LossConfig
from memalpha.optimizer import OptimizerConfig, make_optimizer
from memalpha.sampler import Samples, row_keys
from memalpha.sampler import generate as sample

NO_STOP = np.array([-1], np.int32)
LOSS = LossConfig(
    aggregation="token", clip_low=CLIP, clip_high=CLIP, kl="k3", kl_coef=BETA, temperature=1.0
)


def build(shape: Shape) -> tuple[ModelConfig, Params]:
    config = ModelConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        mlp_size=shape.mlp,
    )
    params = init_params(config, jax.random.key(0))
    check_count(shape, sum(leaf.size for leaf in jax.tree.leaves(params)))
    return config, params


def rollout(
    shape: Shape, config: ModelConfig, params: Params, prompts: np.ndarray, number: int
) -> Samples:
    """Samples exactly `shape.new` tokens for each of prompts [B, P]; returns them on the host."""
    keys = row_keys(jax.random.key(number), np.arange(shape.batch))
    samples = sample(
        params, config, prompts, np.ones_like(prompts, bool), keys, 1.0, 1.0,
        shape.new, NO_STOP, shape.new,
    )  # fmt: skip
    samples = jax.device_get(samples)
    if not samples.mask.all() or samples.tokens.shape != (shape.batch, shape.new):
        raise ValueError(f"expected {shape.batch} x {shape.new} tokens, got {samples.mask.sum()}")
    return samples


def draw_prompts(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Random prompts [B, P], each repeated `group` times."""
    different = rng.integers(FIRST_ID, shape.vocab, (shape.batch // shape.group, shape.prompt))
    return np.repeat(different, shape.group, axis=0).astype(np.int32)


def make_batch(prompts: np.ndarray, completions: np.ndarray, **targets) -> Batch:
    masks = np.ones_like(prompts, bool), np.ones_like(completions, bool)
    return Batch(Tokens(prompts, masks[0], completions, masks[1]), Targets(**targets))


def make_trainer(shape: Shape):
    """(config, parameters, fresh state, update, token_logps)."""
    config, params = build(shape)
    optimizer = make_optimizer(OptimizerConfig(LEARNING_RATE, max_grad_norm=MAX_NORM))
    update = make_update(config, LOSS, optimizer)
    token_logps = make_token_logps(config, LOSS)
    state = init_state(jax.tree.map(jnp.copy, params), optimizer)
    return config, params, state, update, token_logps


def generate(settings: dict, rounds) -> None:
    """Tokens and log-probs of a batch, from prompts to the host."""
    shape = Shape(**settings)
    config, params = build(shape)
    rng = np.random.default_rng(0)
    for number, _ in enumerate(rounds):
        rollout(shape, config, params, draw_prompts(shape, rng), number)


def step(settings: dict, rounds) -> None:
    """One GRPO step on given rollouts, with given old and reference log-probs."""
    micro_batch = settings.pop("micro_batch")
    shape = Shape(**settings)
    _, _, state, update, _ = make_trainer(shape)
    rng = np.random.default_rng(0)
    given = np.full((shape.batch, shape.new), -np.log(shape.vocab), np.float32)
    batch = make_batch(
        draw_prompts(shape, rng),
        rng.integers(FIRST_ID, shape.vocab, given.shape).astype(np.int32),
        old_logps=given,
        ref_logps=given,
        advantages=rng.normal(size=shape.batch).astype(np.float32),
    )
    for _ in rounds:
        state, metrics = update(state, batch, plan_micro_batches(batch, micro_batch))
        metrics = jax.device_get(jax.block_until_ready((state, metrics))[1])
        check_finite(metrics)
        rounds.note(loss=float(metrics["loss"]))


def iteration(settings: dict, rounds) -> None:
    """Rollout, reference log-probs, reward, advantages within groups, GRPO step."""
    micro_batch = settings.pop("micro_batch")
    shape = Shape(**settings)
    config, reference, state, update, token_logps = make_trainer(shape)
    rng = np.random.default_rng(0)
    groups = np.arange(shape.batch) // shape.group
    for number, _ in enumerate(rounds):
        prompts = draw_prompts(shape, rng)
        samples = rollout(shape, config, state.params, prompts, number)
        batch = make_batch(prompts, samples.tokens, sample_logps=samples.logps)
        rewards = np.array([len(set(row)) for row in samples.tokens.tolist()], np.float32)
        advantages, _ = losses.group_advantages(
            rewards / shape.new, groups, np.ones(shape.batch, bool)
        )
        plan = plan_micro_batches(batch, micro_batch)
        logps, _ = token_logps(reference, batch, plan)
        batch = batch.with_targets(ref_logps=logps, advantages=advantages)
        state, metrics = update(state, batch, plan)
        check_finite(jax.device_get(jax.block_until_ready((state, metrics))[1]))


def check_finite(metrics: dict) -> None:
    if metrics["nonfinite"]:
        raise ValueError("loss or gradient is not finite")
