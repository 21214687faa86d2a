"""Summary statistics of episodes, for the logs of training and the final table."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments.lib.failures import check_answers
from experiments.lib.instances import build_every
from experiments.lib.writers import rollout_rows, trained_writer
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Episode, Recaller, Step, Writer
from memalpha.exactness import exact_share
from memalpha.memory import Outcome
from memalpha.model import ModelConfig, Params
from memalpha.reading import run_baseline
from memalpha.rollout import run_episodes


def summarise(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means of rewards and sizes: metrics of calls over steps, all others over episodes.

    Episodes without a judged question are left out of r1 and counted in `failed`; `unanswered` is
    the share of questions without a score; `exact` that of the stored contents which say only what
    the writer had read. Metrics of steps are missing for systems without steps.
    """
    steps = [step for episode in episodes for step in episode.steps]
    judged = [episode.r1 for episode in episodes if episode.valid]
    scores = np.concatenate([episode.scores for episode in episodes])
    complete = [episode for episode in episodes if episode.has_memory]
    result = {
        "r1": _mean(judged),
        "r3": _mean([episode.r3 for episode in complete]),
        "failed": float(len(episodes) - len(judged)),
        "unanswered": float(np.isnan(scores).mean()) if scores.size else float("nan"),
        "memory_tokens": _mean([episode.memory_tokens for episode in complete]),
        "chunk_tokens": _mean([episode.chunk_tokens for episode in episodes]),
        "reader_tokens": _mean([answer.tokens for e in complete for answer in e.answers]),
    }
    if not steps:
        return result
    silent = sum(rightly_silent(e.instance, step) for e in episodes for step in e.steps)
    of_steps = _of_steps(steps) | _per_pass(steps) | {"exact": exact_share(episodes)}
    return result | of_steps | {"r2_silence": of_steps["r2"] + silent / len(steps)}


def holds_nothing(instance: Instance, step: Step) -> bool:
    """Whether the notes of the chunk of a step are known, and say that it holds nothing to keep."""
    notes = instance.metadata.get("notes")
    return notes is not None and not notes[step.chunk]


def rightly_silent(instance: Instance, step: Step) -> bool:
    """Whether a response makes no call in a chunk that holds nothing to keep.

    `r2_silence` counts such a step as 1, where r2 counts 0."""
    return not step.calls and holds_nothing(instance, step)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _of_steps(steps: Sequence[Step]) -> dict[str, float]:
    outcomes = [outcome for step in steps for outcome in step.outcomes]
    fit = [step.r4 for step in steps if not np.isnan(step.r4)]
    return {
        "r2": float(np.mean([step.r2 for step in steps])),
        "r4": float(np.mean(fit)) if fit else float("nan"),
        "calls": len(outcomes) / len(steps),
        "ok_calls": outcomes.count(Outcome.OK) / len(steps),
        "response_tokens": float(np.mean([len(step.response.tokens) for step in steps])),
        "prompt_tokens": float(np.mean([len(step.response.prompt) for step in steps])),
        "unfinished": float(np.mean([not step.response.finished for step in steps])),
    }


def _per_pass(steps: Sequence[Step]) -> dict[str, float]:
    """Tokens that a pass of the model gave, 1 without drafts; nothing where no model wrote."""
    passes = sum(step.response.passes for step in steps)
    tokens = sum(len(step.response.tokens) for step in steps)
    return {"tokens_per_pass": tokens / passes} if passes else {}


def by_source(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.instance.source, []).append(episode)
    return groups


def validate(
    config: ConfigDict, env: Environment, model: ModelConfig, params: Params
) -> dict[str, float]:
    """Rewards on validation instances over all sources, and r1 of each source."""
    instances = build_every(config, "validation", config.eval.instances)
    rows = rollout_rows(config)
    writer = trained_writer(config, env, model, params, rows)
    episodes = run_episodes(env, instances, writer, rows=rows)
    check_answers(config, episodes, "validation")
    result = {f"validation_{k}": v for k, v in summarise(episodes).items() if k in _SHOWN}
    for source, its_episodes in by_source(episodes).items():
        result[f"validation_r1_{source}"] = summarise(its_episodes)["r1"]
    return result


_SHOWN = ("r1", "r2", "r3", "r4", "exact", "failed", "unanswered")


def table_of_writer(
    env: Environment, instances: Sequence[Instance], writer: Writer, rows: int = 0
) -> tuple[dict[str, dict[str, float]], list[Episode]]:
    """Runs a writer; returns `table_rows` of its episodes, and the episodes. rows: how many run at
    the same time, see `run_episodes`."""
    episodes = run_episodes(env, instances, writer, rows=rows)
    return table_rows(episodes), episodes


def table_of_baseline(env: Environment, instances: Sequence[Instance], recall: Recaller) -> dict:
    """`table_rows` for a system of `memalpha.baselines`."""
    return table_rows(run_baseline(env, instances, recall))


def table_rows(episodes: Sequence[Episode]) -> dict[str, dict[str, float]]:
    """Source -> `summarise` of its episodes; "mean": the mean over sources, as in the paper."""
    rows = {source: summarise(its_episodes) for source, its_episodes in by_source(episodes).items()}
    names = next(iter(rows.values())).keys()
    columns = {name: [row[name] for row in rows.values()] for name in names}
    if "exact" in columns:  # says nothing of a source of which nothing was stored
        columns["exact"] = [share for share in columns["exact"] if not np.isnan(share)]
    return rows | {"mean": {name: _mean(column) for name, column in columns.items()}}
