"""The training loop: rollout, rewards, advantages, update, checkpoint."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from experiments.lib.compilations import compilations
from experiments.lib.failures import check_answers
from experiments.lib.measure import rollout_rows, summarise, validate
from experiments.lib.progress import progress, worries
from experiments.lib.setup import (
    build_lora,
    build_loss,
    for_sampling,
    prompt_buckets,
    training_batches,
)
from experiments.lib.warm_start import check_finite
from experiments.lib.workdir import MetricsLog, own_folder
from memalpha import credit, lora, losses
from memalpha.batch import Batch, plan_micro_batches, take
from memalpha.checkpoint import open_checkpoints, restore, save
from memalpha.episode import Clock, Environment, Episode
from memalpha.learner import TrainState, init_state, make_token_logps, make_update
from memalpha.model import ModelConfig, Params
from memalpha.objective import ppo_targets
from memalpha.optimizer import OptimizerConfig, make_optimizer
from memalpha.rewards import combine
from memalpha.rollout import run_episodes, to_batch
from memalpha.sharding import mesh_of, shard
from memalpha.writer import policy_writer


def train(
    config: ConfigDict,
    workdir: Path,
    env: Environment,
    model: ModelConfig,
    params: Params,
    events: bool = False,
) -> Params:
    """Trains the writer by reinforcement; continues from its own checkpoints.

    Returns the parameters after `config.rl.steps` steps. `params` stay as they are: they are the
    reference policy, and what adapters are attached to. `events`: write TensorBoard events beside
    the logs.
    """
    rl, adapters = config.rl, build_lora(config)
    optimizer = build_optimizer(config)
    learn = make_learner(config, model, optimizer, params)
    batches = training_batches(config)
    state, first = init_trained(config, params, optimizer), 0
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    with open_checkpoints(workdir / "checkpoints" / "rl") as checkpoints:
        if (found := restore(checkpoints, state)) is not None:
            first, state = found
        log = MetricsLog(own_folder(workdir) / "metrics.jsonl", first, events)
        times = MetricsLog(own_folder(workdir) / "timing.jsonl", first, events)
        with progress("train", rl.steps, first) as report:
            for step in range(first, rl.steps):
                start, clock, compiled = time.perf_counter(), Clock(), compilations()
                instances = [i for i in batches(step, rl.instances) for _ in range(rl.rollouts)]
                policy = for_sampling(config, lora.attach(state.params, params, adapters))
                rows = rollout_rows(config)
                writer = policy_writer(
                    policy, model, env, prompt_buckets(config), rows,
                    jax.random.fold_in(key, step), rl.temperature, rl.top_p,
                )  # fmt: skip
                episodes = run_episodes(env, instances, writer, seed=step, clock=clock, rows=rows)
                del policy, writer  # a gathered copy would stand in the way of the update
                check_answers(config, episodes, f"step {step}")
                with clock("update"):
                    batch = training_batch(config, env, episodes)
                    state, metrics = learn(state, _agree(batch), step)
                    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
                metrics |= summarise(episodes)
                if metrics["nonfinite"]:
                    log.write(step, metrics)
                check_finite(metrics, step, "train")
                if (step + 1) % config.eval.every == 0 or step + 1 == rl.steps:
                    with clock("validate"):
                        policy = lora.attach(state.params, params, adapters)
                        metrics |= validate(config, env, model, policy)
                log.write(step, metrics)
                took = {"step_seconds": time.perf_counter() - start}
                took["compilations"] = compilations() - compiled
                times.write(step, dict(clock) | took)
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == rl.steps:
                    save(checkpoints, step + 1, state)
                report.warn(step, *worries(metrics))
                seconds = took["step_seconds"] - clock["validate"]
                report(step + 1, describe_step(metrics, seconds))
    return lora.merge(state.params, params, adapters)


def describe_step(metrics: Mapping[str, float], seconds: float) -> str:
    """For the terminal: rewards, and tokens written and trained on a second, validation aside."""
    rewards = "  ".join(f"{name} {metrics[name]:.2f}" for name in ("r1", "r2", "r3", "r4"))
    return f"{rewards}  {metrics['tokens'] / seconds:.0f} tokens/s"


def init_trained(config: ConfigDict, params: Params, optimizer) -> TrainState:
    """The state before the first step, of a copy of the model or of adapters to it."""
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    return init_state(shard(lora.init(params, build_lora(config), key), mesh_of(params)), optimizer)


def _agree(batch: Batch) -> Batch:
    """With the rewards of the first process: a server may answer each process differently."""
    if jax.process_count() == 1:
        return batch
    rows = batch.rows
    agreed = (rows.rewards, rows.fit, rows.valid)
    rewards, fit, valid = multihost_utils.broadcast_one_to_all(agreed)
    return batch.with_rows(rewards=rewards, fit=fit, valid=valid)


def training_batch(config: ConfigDict, env: Environment, episodes: Sequence[Episode]) -> Batch:
    """What a step learns from, of as many rows as its episodes can have."""
    rl, prompt = config.rl, config.prompt
    room = len(episodes) * config.data.chunks
    batch = to_batch(episodes, rl.rollouts, prompt.tokens, prompt.response_tokens, room)
    return credit.add_credit(batch, episodes, env) if rl.call_credit else batch


def build_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    rl = config.rl
    updates = rl.epochs * rl.minibatches if rl.algorithm == "ppo" else 1  # of a step
    return make_optimizer(
        OptimizerConfig(
            learning_rate=rl.learning_rate,
            warmup_steps=rl.warmup_steps * updates,
            total_steps=rl.steps * updates + 1,
            schedule=rl.schedule,
            optimizer=rl.optimizer,
            weight_decay=rl.weight_decay,
            max_grad_norm=rl.max_grad_norm or None,
            b2=rl.b2,
        )
    )


def make_learner(config: ConfigDict, model: ModelConfig, optimizer, reference: Params):
    """A function (state, batch, step) -> (state, metrics): advantages, then one or more updates.

    `reference` is what the KL is taken to, and what adapters are attached to.
    """
    rl, reward = config.rl, config.reward
    loss_config = build_loss(config)
    attach = partial(lora.attach, config=build_lora(config))
    update = make_update(model, loss_config, optimizer, attach)
    token_logps = make_token_logps(model, loss_config)
    weights = {"r1": 1.0, "r2": 1.0, "r3": reward.beta, "r4": reward.gamma}

    def advantages(batch: Batch) -> tuple[Batch, dict]:
        how, rows = rl.groups, batch.rows
        groups = losses.group_ids(rows.instance, rows.episode, rows.chunk, how)
        of_response = weights | ({"r4": 0.0} if rl.call_credit else {})
        values, counts = losses.combined_advantages(
            rows.rewards, of_response, groups, rows.valid,
            normalise_each=reward.normalise_each, divide_by_std=rl.divide_by_std,
            episode=rows.episode if how == "episodes" else None,
        )  # fmt: skip
        if rl.call_credit:
            values = values[:, None] + credit.call_advantages(batch, reward.gamma, groups)
        return batch.with_targets(advantages=values), counts

    def learn(state: TrainState, batch: Batch, step: int) -> tuple[TrainState, dict]:
        plan = plan_micro_batches(batch, rl.micro_batch or None)
        if rl.kl != "none":
            batch = batch.with_targets(ref_logps=token_logps(reference, batch, plan)[0])
        if rl.algorithm == "grpo":
            batch, counts = advantages(batch)
            state, metrics = update(state, batch, plan, reference)
            return state, metrics | counts
        logps, values = token_logps(attach(state.params, reference), batch, plan)
        batch = batch.with_targets(old_logps=logps, values=values)
        total = combine(batch.rows.rewards, reward.beta, reward.gamma)
        batch = ppo_targets(batch, total, loss_config)
        rng = np.random.default_rng([config.seed, step, 13])
        updates = []
        for _ in range(rl.epochs):
            order = rng.permutation(len(batch.tokens.completion))
            for rows in np.array_split(order, rl.minibatches):
                part, part_plan = batch, plan
                if rl.minibatches > 1:
                    part = take(batch, rows)
                    part_plan = plan_micro_batches(part, rl.micro_batch or None)
                state, metrics = update(state, part, part_plan, reference)
                updates.append(metrics)
        worst = {name: max(m[name] for m in updates) for name in ("nonfinite", "ratio_max")}
        return state, {
            name: sum(m[name] for m in updates) / len(updates) for name in metrics
        } | worst

    return learn
