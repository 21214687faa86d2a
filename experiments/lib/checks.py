"""Checks of a config before a run starts."""

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.lib.instances import SINGLE, SINGLES
from experiments.lib.objects import (
    build_lora,
    build_loss,
    build_mesh,
    find_model,
    parameter_shardings,
    read_adapter_spec,
)
from experiments.lib.readers import ROLES, check_readers, settings_of
from experiments.lib.writers import TEACHERS
from memalpha.data import SESSIONS
from memalpha.losses import group_ids
from memalpha.optimizer import OptimizerConfig
from memalpha.retrieval import make_index
from memalpha.sharding import check_rows


def check(config: ConfigDict) -> None:
    """Raises ValueError for settings that would only fail after minutes of work."""
    rl, stage = config.rl, config.warm_start
    build_loss(config)
    mesh = build_mesh(config)
    if config.model.path:
        parameter_shardings(find_model(config)[1], mesh)
    if build_lora(config).rank and not config.model.path:
        raise ValueError(
            f"config.lora.rank={config.lora.rank} without config.model.path: adapters are for a"
            " model that is there already. Set config.model.path, or config.lora.rank=0"
        )
    if config.lora.path:
        if not config.lora.rank:
            raise ValueError(f"config.lora.path={config.lora.path!r} needs config.lora.rank")
        read_adapter_spec(config)
    if stage.teacher not in TEACHERS:
        raise ValueError(f"config.warm_start.teacher={stage.teacher!r}: choose one of {TEACHERS}")
    if not stage.get("first_weight", 1.0) > 0:
        raise ValueError(
            f"config.warm_start.first_weight={stage.first_weight}: give a weight over 0; 1 counts"
            " the first token of a response as any other"
        )
    make_index([], config.reward.retriever, config.reward.dimensions)
    group_ids(np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), rl.groups)
    OptimizerConfig(rl.learning_rate, schedule=rl.schedule, optimizer=rl.optimizer)
    OptimizerConfig(stage.learning_rate, optimizer=stage.optimizer)
    _check_counts(config)
    if rl.call_credit and (
        rl.algorithm == "ppo" or rl.divide_by_std or config.reward.normalise_each
    ):
        raise ValueError(
            "config.rl.call_credit goes with rl.algorithm=grpo, rl.divide_by_std=False and"
            " reward.normalise_each=False alone; set it to False"
        )
    _check_further_rewards(config)
    _check_curriculum(config)
    _check_rerolls(config)
    check_readers(config)
    _check_overlap(config)
    for source in config.data.sources:
        if source.startswith(SINGLE) and source.removeprefix(SINGLE) not in SINGLES:
            raise ValueError(
                f"config.data.sources has {source}: single messages are made of"
                f" {', '.join(SINGLES)}"
            )
    if all(source in SESSIONS or source.startswith(SINGLE) for source in config.data.sources):
        raise ValueError(
            f"config.data.sources={tuple(config.data.sources)}: name at least one that has a"
            f" validation split; {', '.join(sorted(SESSIONS))} and single messages have none"
        )
    _check_batch_sizes(config, mesh)


def _check_further_rewards(config: ConfigDict) -> None:
    """The rewards beside the paper's four."""
    reward = config.reward
    if not 0 <= reward.evidence_share <= 1:
        raise ValueError(
            f"config.reward.evidence_share={reward.evidence_share}: give a share from 0 to 1"
        )
    for name in ("chunk_weight", "transition_weight", "likelihood"):
        if reward[name] < 0:
            raise ValueError(f"config.reward.{name}={reward[name]}: give 0 or more")
    if reward.likelihood and config.reader.engine != "flax":
        raise ValueError(
            f"config.reward.likelihood={reward.likelihood} needs a reader that is a model in this"
            f" process: config.reader.engine={config.reader.engine!r} should be flax"
        )
    of_steps = reward.evidence_share or reward.chunk_weight or reward.transition_weight
    if config.rl.groups == "episodes" and of_steps:
        raise ValueError(
            "config.reward.evidence_share, chunk_weight and transition_weight reward single steps,"
            " but config.rl.groups=episodes compares whole episodes: choose chunk or rows"
        )


def _check_rerolls(config: ConfigDict) -> None:
    rl = config.rl
    if rl.rerolls < 0:
        raise ValueError(f"config.rl.rerolls={rl.rerolls}: give steps, or 0 for none")
    by_step = config.reward.chunk_weight or config.reward.transition_weight
    if rl.rerolls and (rl.algorithm == "ppo" or not by_step):
        raise ValueError(
            f"config.rl.rerolls={rl.rerolls} needs rl.algorithm=grpo, which compares the responses"
            " to one step, and reward.chunk_weight or transition_weight, which tell them apart"
        )


def _check_overlap(config: ConfigDict) -> None:
    rl, engines = config.rl, {role: settings_of(config, role)["engine"] for role in ROLES}
    if not rl.overlap:
        return
    if rl.algorithm == "ppo":
        raise ValueError(
            "config.rl.overlap=True needs rl.algorithm=grpo: the returns that the critic of ppo"
            " learns are not corrected for responses of older parameters"
        )
    if rl.is_cap <= 0:
        raise ValueError(
            f"config.rl.overlap=True with rl.is_cap={rl.is_cap}: the importance weight corrects for"
            " responses of older parameters; give it a cap, such as rl.is_cap=2.0"
        )
    if "server" not in engines.values() or "flax" in engines.values():
        raise ValueError(
            f"config.rl.overlap=True with reader.engine={engines['reader']} and"
            f" judge.engine={engines['judge']}: it needs a server to wait for, and no model in this"
            " process, which would use the devices that sample"
        )
    if config.checkpoint_every == 1:
        raise ValueError(
            "config.rl.overlap=True with checkpoint_every=1: nothing is sampled ahead of a"
            " checkpoint; give at least 2"
        )


def _check_curriculum(config: ConfigDict) -> None:
    rl = config.rl
    if rl.curriculum and not 2 <= len(rl.lengths) <= rl.steps:
        raise ValueError(
            f"config.rl.curriculum=True with rl.lengths={tuple(rl.lengths)} and"
            f" rl.steps={rl.steps}: give at least two lengths, and a step for each"
        )


def _check_counts(config: ConfigDict) -> None:
    """Raises ValueError for a number that has to be positive and is not."""
    rl = config.rl
    counts = {
        "data.chunks": config.data.chunks,
        "warm_start.rows": config.warm_start.rows,
        "rl.instances": rl.instances,
        "rl.rollouts": rl.rollouts,
        "rl.epochs": rl.epochs,
        "rl.minibatches": rl.minibatches,
        "eval.every": config.eval.every,
        "eval.instances": config.eval.instances,
        "eval.test_instances": config.eval.test_instances,
        "checkpoint_every": config.checkpoint_every,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"config.{name}={value}: give at least 1")
    for name, lengths in (("data", config.data.lengths), ("rl", rl.lengths)):
        if any(not 1 <= length <= config.data.chunks for length in lengths):
            raise ValueError(
                f"config.{name}.lengths={tuple(lengths)}: give lengths from 1 to"
                f" config.data.chunks={config.data.chunks}"
            )


def _check_batch_sizes(config: ConfigDict, mesh: Mesh | None) -> None:
    """Raises ValueError where minibatch, micro-batch or mesh does not divide the rows."""
    rl, stage = config.rl, config.warm_start
    rows = rl.instances * rl.rollouts * config.data.chunks
    if rl.draft_tokens < 0:
        raise ValueError(f"config.rl.draft_tokens={rl.draft_tokens}: give tokens, or 0 for none")
    if rl.rollout_rows < 0:
        raise ValueError(f"config.rl.rollout_rows={rl.rollout_rows}: give rows, or 0 for all")
    at_once = rl.rollout_rows or rl.instances * rl.rollouts
    whole = "config.rl.instances x config.rl.rollouts"
    check_rows(mesh, at_once, "config.rl.rollout_rows" if rl.rollout_rows else whole)
    if rl.algorithm == "ppo":
        if rows % rl.minibatches:
            raise ValueError(
                f"config.rl.minibatches={rl.minibatches} does not divide the {rows} rows of a step"
                " (instances x rollouts x chunks)"
            )
        rows //= rl.minibatches
    for name, size, whole in (
        ("rl.micro_batch", rl.micro_batch, rows),
        ("warm_start.micro_batch", stage.micro_batch, stage.rows),
    ):
        if size and whole % size:
            raise ValueError(
                f"config.{name}={size} does not divide its {whole} rows; 0: all at once"
            )
        if name.startswith("rl") or stage.steps:
            check_rows(mesh, size or whole, f"config.{name}")
