"""The training loop: rollout, rewards, advantages, update, checkpoint."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from experiments.lib.failures import check_answers
from experiments.lib.instances import rollout_batches
from experiments.lib.measure import holds_nothing, validate
from experiments.lib.objects import build_lora, build_loss, build_optimizer, copy_state
from experiments.lib.step_log import StepLog
from experiments.lib.writers import rollout_rows, training_writer
from memalpha import credit, lora, losses
from memalpha.batch import Batch, plan_micro_batches, take
from memalpha.data.instance import Instance
from memalpha.episode import Clock, Environment, Episode
from memalpha.learner import Plan, TrainState, make_token_logps, make_update
from memalpha.lm.likelihood import gains
from memalpha.model import ModelConfig, Params
from memalpha.objective import ppo_targets
from memalpha.reading import read_later
from memalpha.rerolls import reroll
from memalpha.rewards import combine
from memalpha.rollout import judge_steps, run_episodes, to_batch
from memalpha.step_credit import chunk_scores, evidence_credit
from memalpha.transitions import transition_rewards

# Rewards beside the paper's four: the questions that a chunk answers, what a step does to the
# memory, how much likelier the memory makes the answers.
CHUNK, TRANSITION, LIKELIHOOD = "chunk", "transition", "likelihood"


def train(
    config: ConfigDict,
    workdir: Path,
    env: Environment,
    model: ModelConfig,
    params: Params,
    start: Params,
    events: bool = False,
) -> Params:
    """Trains the writer by reinforcement learning; continues from its last checkpoint.

    Args:
        params: the base model of adapters; not used where the whole model is trained.
        start: what is trained, as the warm start left it; not changed, since it is the reference
            policy too.
        events: write TensorBoard events beside the logs.

    Returns the parameters of the whole model after `config.rl.steps` steps.
    """
    adapters = build_lora(config)
    optimizer = build_optimizer(config)
    reference = lora.attach(start, params, adapters)
    learner = make_learner(config, model, optimizer, reference, params)
    instances = rollout_batches(config)
    whole = lambda state: lora.attach(state.params, params, adapters)
    check = lambda state: validate(config, env, model, whole(state))
    with StepLog(config, workdir, check, events) as log, ThreadPoolExecutor(1) as background:
        state, first = log.restore(copy_state(start, optimizer))
        draw = lambda step, clock: sample(config, env, model, whole(state), instances, step, clock)
        following = None  # the batch after this one, where it is sampled before the update
        for step in range(first, config.rl.steps):
            clock = log.start()
            sampled = following or draw(step, clock)
            if samples_ahead(config, step):
                scored = background.submit(score, config, env, sampled, step)
                following = draw(step + 1, clock)
                with clock("read"):  # what is left of it
                    episodes, batch = scored.result()
            else:
                following = None
                episodes, batch = score(config, env, sampled, step, clock)
            with clock("update"):
                batch = agree(batch)
                plan = plan_micro_batches(batch, config.rl.micro_batch or None)
                batch, counts = learner.advantages(state, batch, plan)
                state, metrics = learner.update(state, batch, plan, step)
            log.finish(step, state, metrics | counts | step_metrics(config, batch), episodes)
    return lora.merge(state.params, params, adapters)


class Sampled(NamedTuple):
    """The responses of a step, not read yet: its episodes, and what `reroll` made of them."""

    episodes: list[Episode]
    again: list[Episode]


def sample(
    config: ConfigDict,
    env: Environment,
    model: ModelConfig,
    policy: Params,
    instances: Callable[[int, int], list[Instance]],
    step: int,
    clock: Clock,
) -> Sampled:
    """`config.rl.rollouts` episodes of each instance, and as many further responses to each of
    `config.rl.rerolls` of their steps. With `config.rl.overlap` their calls are not judged yet."""
    rl = config.rl
    env = env.replace(content_judge=None) if rl.overlap else env
    writer = training_writer(config, env, model, policy, step, clock)
    repeated = [i for i in instances(step, rl.instances) for _ in range(rl.rollouts)]
    views = bool(config.reward.chunk_weight or config.reward.transition_weight)
    rows = rollout_rows(config)
    episodes = run_episodes(env, repeated, writer, step, views, clock, rows=rows, ask=False)
    again = []
    if rl.rerolls:
        again = reroll(env, episodes, writer, rl.rerolls, rl.rollouts, seed=step, clock=clock)
    return Sampled(episodes, again)


def samples_ahead(config: ConfigDict, step: int) -> bool:
    """Whether the batch after this step is sampled before its update, while the reader answers.

    Not before a checkpoint: a run that continues from there samples with the parameters in it, and
    so does one that was not interrupted."""
    rl, done = config.rl, step + 1
    return rl.overlap and done < rl.steps and done % config.checkpoint_every != 0


def score(
    config: ConfigDict,
    env: Environment,
    sampled: Sampled,
    step: int,
    clock: Clock | None = None,
) -> tuple[list[Episode], Batch]:
    """The episodes read and scored, and the batch of all responses.

    Raises ReaderFailureError where too many are left without a score.
    """
    clock = Clock() if clock is None else clock
    episodes, again = sampled
    if config.rl.overlap:
        with clock("judge"):
            judged = judge_episodes(env, [*episodes, *again])
        episodes, again = judged[: len(episodes)], judged[len(episodes) :]
    episodes = read_later(env, episodes, clock)
    check_answers(config, episodes, f"step {step}")
    return episodes, training_batch(config, env, episodes, clock, again)


def judge_episodes(env: Environment, episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes with the verdicts of the content judge, which is asked once."""
    steps = iter(judge_steps(env, [step for episode in episodes for step in episode.steps]))
    return [replace(e, steps=[next(steps) for _ in e.steps]) for e in episodes]


def training_batch(
    config: ConfigDict,
    env: Environment,
    episodes: Sequence[Episode],
    clock: Clock | None = None,
    again: Sequence[Episode] = (),
) -> Batch:
    """The batch of a step, padded to the largest number of rows that its episodes can have; where
    chunks were read in pieces and it has more, to a multiple of that. `again`: what `reroll` made
    of these episodes."""
    rl, prompt = config.rl, config.prompt
    room = len(episodes) * config.data.chunks + rl.rerolls * rl.rollouts
    episodes = [*episodes, *again]
    room *= max(1, math.ceil(sum(len(e.steps) for e in episodes) / room))
    batch = to_batch(episodes, rl.rollouts, prompt.tokens, prompt.response_tokens, room)
    if config.reward.silence:
        batch = reward_silence(batch, episodes)
    if config.reward.evidence_share:
        parts = [evidence_credit(e, config.reward.evidence_share) for e in episodes]
        batch = with_reward(batch, "r1", parts)
    if config.reward.chunk_weight:
        batch = with_reward(batch, CHUNK, chunk_scores(env, episodes, clock))
    if config.reward.transition_weight:
        batch = with_reward(batch, TRANSITION, [transition_rewards(e) for e in episodes])
    if config.reward.likelihood:
        reader = env.reading.answerer
        gained = gains(episodes, getattr(reader.engine, "engine", reader.engine), reader.chat)
        parts = [np.full(len(e.steps), gain) for e, gain in zip(episodes, gained, strict=True)]
        batch = with_reward(batch, LIKELIHOOD, parts)
    return credit.add_credit(batch, episodes, env) if rl.call_credit else batch


def reward_silence(batch: Batch, episodes: Sequence[Episode]) -> Batch:
    """The batch with other r2 and r4 in chunks whose notes say that they hold nothing to keep: 1
    for a response without a call, 0 for any other.

    In the paper it is the other way round: silence has 0, as if its calls had failed, and a call
    that stores small talk has 1. A writer learns to store it.
    """
    steps = [(e.instance, step) for e in episodes for step in e.steps]
    empty = np.zeros(len(batch.rows.valid), bool)
    silent = np.zeros(len(batch.rows.valid), np.float32)
    empty[: len(steps)] = [holds_nothing(instance, step) for instance, step in steps]
    silent[: len(steps)] = [not step.calls for _, step in steps]
    empty &= batch.rows.valid
    judged = {name: np.where(empty, silent, batch.rows.rewards[name]) for name in ("r2", "r4")}
    return batch.with_rows(rewards=batch.rows.rewards | judged)


def with_reward(batch: Batch, name: str, steps: Sequence[np.ndarray]) -> Batch:
    """The batch with a reward of each step, given episode by episode.

    Where a step has none (NaN), the mean over the steps of its instance that have one stands in for
    it, which prefers nothing; 0 where none has."""
    values = np.full(len(batch.rows.valid), np.nan, np.float32)
    values[: sum(map(len, steps))] = np.concatenate(steps)
    for instance in np.unique(batch.rows.instance):
        rows = (batch.rows.instance == instance) & batch.rows.valid
        known = values[rows & ~np.isnan(values)]
        values[rows & np.isnan(values)] = known.mean() if len(known) else 0.0
    values = np.where(batch.rows.valid, values, np.float32(0))
    return batch.with_rows(rewards=batch.rows.rewards | {name: values})


def step_metrics(config: ConfigDict, batch: Batch) -> dict[str, float]:
    """What further rewards add to the metrics of a training step: the mean of each, and how far
    apart the credit of the steps of an episode lies, `r1_spread`."""
    rows, valid, metrics = batch.rows, batch.rows.valid, {}
    for name in {CHUNK, TRANSITION, LIKELIHOOD} & rows.rewards.keys() if valid.any() else ():
        metrics[f"reward_{name}"] = float(rows.rewards[name][valid].mean())
    if config.reward.evidence_share and valid.any():
        of_episode = (rows.rewards["r1"][valid & (rows.episode == e)] for e in rows.episode[valid])
        metrics["r1_spread"] = float(np.mean([np.ptp(credit) for credit in of_episode]))
    return metrics


def agree(batch: Batch) -> Batch:
    """The batch with the rewards of the first process: a server may answer each differently."""
    if jax.process_count() == 1:
        return batch
    agreed = (batch.rows.rewards, batch.rows.fit, batch.rows.valid)
    rewards, fit, valid = multihost_utils.broadcast_one_to_all(agreed)
    return batch.with_rows(rewards=rewards, fit=fit, valid=valid)


class Learner(NamedTuple):
    """The two halves of learning from a batch; `plan`: its micro-batches.

    advantages: (state, batch, plan) -> (batch with all that the loss needs, metrics).
    update: (state, batch, plan, step) -> (state, metrics).
    """

    advantages: Callable[[TrainState, Batch, Plan], tuple[Batch, dict]]
    update: Callable[[TrainState, Batch, Plan, int], tuple[TrainState, dict]]


def make_learner(
    config: ConfigDict,
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    reference: Params,
    base: Params,
) -> Learner:
    """The learner of `config.rl.algorithm`. `reference`: the reference policy of the KL term;
    `base`: the base model of adapters."""
    rl, loss = config.rl, build_loss(config)
    attach = partial(lora.attach, config=build_lora(config))
    apply = make_update(model, loss, optimizer, attach)
    token_logps = make_token_logps(model, loss)

    def with_reference(batch: Batch, plan: Plan) -> Batch:
        if rl.kl == "none":
            return batch
        return batch.with_targets(ref_logps=token_logps(reference, batch, plan)[0])

    def grpo_advantages(state: TrainState, batch: Batch, plan: Plan) -> tuple[Batch, dict]:
        return group_advantages(config, with_reference(batch, plan))

    def grpo_update(state: TrainState, batch: Batch, plan: Plan, step: int):
        return apply(state, batch, plan, base)

    def ppo_advantages(state: TrainState, batch: Batch, plan: Plan) -> tuple[Batch, dict]:
        batch = with_reference(batch, plan)
        logps, values = token_logps(attach(state.params, base), batch, plan)
        batch = batch.with_targets(old_logps=logps, values=values)
        total = combine(batch.rows.rewards, reward_weights(config))
        return ppo_targets(batch, total, loss), {}

    def ppo_update(state: TrainState, batch: Batch, plan: Plan, step: int):
        updates = []
        for rows in minibatches(config, batch, step):
            part, part_plan = batch, plan
            if rl.minibatches > 1:
                part = take(batch, rows)
                part_plan = plan_micro_batches(part, rl.micro_batch or None)
            state, metrics = apply(state, part, part_plan, base)
            updates.append(metrics)
        worst = {name: max(m[name] for m in updates) for name in ("nonfinite", "ratio_max")}
        means = {name: sum(m[name] for m in updates) / len(updates) for name in updates[0]}
        return state, means | worst

    if rl.algorithm == "grpo":
        return Learner(grpo_advantages, grpo_update)
    return Learner(ppo_advantages, ppo_update)


def group_advantages(config: ConfigDict, batch: Batch) -> tuple[Batch, dict]:
    """Adds advantages, relative to the group of each row (`config.rl.groups`); with
    `config.rl.call_credit` each call gets the reward of its own content."""
    rl, reward, rows = config.rl, config.reward, batch.rows
    groups = losses.group_ids(rows.instance, rows.episode, rows.chunk, rl.groups)
    of_response = reward_weights(config) | ({"r4": 0.0} if rl.call_credit else {})
    values, counts = losses.combined_advantages(
        rows.rewards, of_response, groups, rows.valid,
        normalise_each=reward.normalise_each, divide_by_std=rl.divide_by_std,
        episode=rows.episode if rl.groups == "episodes" else None,
    )  # fmt: skip
    if rl.call_credit:
        values = values[:, None] + credit.call_advantages(batch, reward.gamma, groups)
    return batch.with_targets(advantages=values), counts


def reward_weights(config: ConfigDict) -> dict[str, float]:
    """The weight of each reward in the sum (Mem-alpha, section 3.3), and those of options."""
    weights = {"r1": 1.0, "r2": 1.0, "r3": config.reward.beta, "r4": config.reward.gamma}
    reward = config.reward
    more = {CHUNK: reward.chunk_weight, TRANSITION: reward.transition_weight}
    more |= {LIKELIHOOD: reward.likelihood}
    return weights | {name: weight for name, weight in more.items() if weight}


def minibatches(config: ConfigDict, batch: Batch, step: int) -> list[np.ndarray]:
    """The row indices of each update of a PPO step, in order."""
    rng = np.random.default_rng([config.seed, step, 13])
    size, count = len(batch.tokens.completion), config.rl.minibatches
    epochs = [np.array_split(rng.permutation(size), count) for _ in range(config.rl.epochs)]
    return [rows for epoch in epochs for rows in epoch]
