"""A whole run: warm start, training, evaluation, pictures and report."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.lib.checks import check
from experiments.lib.failures import check_answers
from experiments.lib.instances import build_every, is_synthetic
from experiments.lib.measure import table_of_writer, table_rows
from experiments.lib.needs import check_memory
from experiments.lib.objects import (
    build_environment,
    build_lora,
    build_mesh,
    build_model,
    build_tokenizer,
    policy_spec,
)
from experiments.lib.pictures import LEGEND, describe_episode, draw_curves, results_table
from experiments.lib.progress import console, progress
from experiments.lib.readers import build_engines, probe
from experiments.lib.warm_start import warm_start
from experiments.lib.workdir import claim_workdir, log_start, own_folder, read_metrics, write_json
from experiments.lib.writers import perfect_writer, rollout_rows, trained_writer
from experiments.report import write_report
from experiments.timeline import write_timeline
from experiments.train import train
from memalpha import lora
from memalpha.baselines import BASELINES, LABELS
from memalpha.data.instance import Instance
from memalpha.episode import Environment, Episode
from memalpha.model import ModelConfig, Params
from memalpha.policy_spec import write_spec
from memalpha.reading import run_baseline
from memalpha.rollout import run_episodes

SIMPLE_MEMORIES = {  # name in the final table -> baseline
    LABELS[name]: BASELINES[name] for name in ("store_everything", "rag_top2", "no_memory")
}


def run(config: ConfigDict, workdir: str, events: bool = False) -> dict:
    """Runs or continues the experiment of a config in a workdir; returns the summary.

    `events`: write TensorBoard events beside the logs of every step.
    """
    began = time.monotonic()
    check(config)
    check_memory(config)
    engines = build_engines(config, build_mesh(config))
    probe(engines)
    folder = claim_workdir(workdir, config)
    log_start(own_folder(folder), [sys.executable, *sys.argv])
    console.print(f"{config.title}\nworkdir {folder}")
    tokenizer = build_tokenizer(config, folder)
    env = build_environment(config, tokenizer, engines)
    model, params = build_model(config, len(tokenizer))
    if not jax.process_index():
        write_spec(folder, policy_spec(config, model))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = jax.devices()[0]
    console.print(
        f"{count / 1e6:.2f}M parameters, vocabulary {len(tokenizer)}, {jax.device_count()} x"
        f" {device.device_kind}"
    )
    start = warm_start(config, folder, env, model, params, events)
    untrained = lora.merge(start, params, build_lora(config))
    trained = train(config, folder, env, model, params, start, events)
    results, examples = final_table(config, env, model, untrained, trained)
    if jax.process_index():
        return {"results": results}  # only the first process writes files
    console.print(results_table(f"test instances, {config.title}", results))
    console.print(f"{LEGEND}.", markup=False)
    write_timeline(folder / "timeline.html", config.title, dict.fromkeys(examples, env), examples)
    told = [describe_episode(name, its_episodes[0]) for name, its_episodes in examples.items()]
    (folder / "memory.txt").write_text("\n".join([f"{which_example(examples)}.", *told]))
    picture = draw_curves(folder, config.title)
    summary = {
        "title": config.title,
        "seed": config.seed,
        "parameters": count,
        "results": results,
        "host_share": host_share(folder),
        "language_models": {role: asdict(engine.usage) for role, engine in engines.items()},
        "seconds": round(time.monotonic() - began, 1),
        "device": device.device_kind,
        "jax": jax.__version__,
    }
    write_json(folder / "summary.json", summary)
    console.print(_memories(examples), markup=False)
    console.print(f"curves {picture}\nmemory before and after {folder / 'memory.txt'}")
    console.print(f"memory step by step {folder / 'timeline.html'}\nreport {write_report(folder)}")
    console.print(f"summary {folder / 'summary.json'}, {summary['seconds']:.0f} s")
    return summary


def final_table(
    config: ConfigDict, env: Environment, model: ModelConfig, untrained: Params, trained: Params
) -> tuple[dict, dict[str, list[Episode]]]:
    """Results of every system on the same test instances, and example episodes: one of each source
    before and after training, with views, in the order of `widest_first`."""
    instances = build_every(config, "test", config.eval.test_instances)
    rows = rollout_rows(config)
    writers = {"perfect writer": perfect_writer(env)} if _scripted(instances) else {}
    for name, params in {"after RL": trained, "untrained (warm start)": untrained}.items():
        writers[name] = trained_writer(config, env, model, params, rows)
        if config.eval.temperature:
            writers[name + ", greedy"] = trained_writer(config, env, model, params, rows, 0.0)
    results = {}
    with progress("test", len(writers) + len(SIMPLE_MEMORIES)) as report:
        for name, writer in writers.items():
            results[name], episodes = table_of_writer(env, instances, writer, rows)
            check_answers(config, episodes, f"test, {name}")
            report(len(results), name)
        for name, recall in SIMPLE_MEMORIES.items():
            episodes = run_baseline(env, instances, recall)
            check_answers(config, episodes, f"test, {name}")
            results[name] = table_rows(episodes)
            report(len(results), name)
    of_source: dict[str, Instance] = {}
    for instance in instances:
        of_source.setdefault(instance.source, instance)
    first = list(of_source.values())
    examples = {
        "before training": run_episodes(env, first, writers["untrained (warm start)"], 0, True),
        "after training": run_episodes(env, first, writers["after RL"], 0, True),
    }
    return results, widest_first(examples)


def widest_first(examples: dict[str, list[Episode]]) -> dict[str, list[Episode]]:
    """The same episodes, sorted by the gain of r1 from the first writer to the last, largest first.

    The sort is stable; episodes without r1 come last."""
    before, after = list(examples.values())[0], list(examples.values())[-1]
    gains = np.nan_to_num([b.r1 - a.r1 for a, b in zip(before, after, strict=True)], nan=-np.inf)
    order = np.argsort(-gains, kind="stable")
    return {name: [its_episodes[i] for i in order] for name, its_episodes in examples.items()}


def which_example(examples: dict[str, list[Episode]]) -> str:
    """A sentence that says how the first example was chosen: it is not an average one."""
    first, *_ = examples.values()
    return (
        f"Of {len(first)} test instances, the first of each source, this is the one whose r1 gained"
        f" most ({first[0].instance.source}); the table has the means"
    )


def _scripted(instances: Sequence[Instance]) -> bool:
    """Whether there is a perfect writer: only the notes of synthetic text say what to store."""
    return all(is_synthetic(instance.source) for instance in instances)


HOST_STAGES = ("render", "parse", "judge", "retrieve", "read")


def host_share(folder: Path) -> float:
    """The median share of a training step that is spent on host work (HOST_STAGES)."""
    shares = []
    for line in read_metrics(folder / "timing.jsonl"):
        host = sum(line.get(stage, 0.0) for stage in HOST_STAGES)
        shares.append(host / (line["step_seconds"] - line.get("validate", 0.0)))
    return float(np.median(shares)) if shares else float("nan")


def _memories(examples: dict[str, list[Episode]]) -> str:
    parts = [f"{which_example(examples)}, timeline.html all of them."]
    for name, (episode, *_) in examples.items():
        view = episode.view
        entries = [f"    [{e.id}] {e.text}" for e in (*view.semantic, *view.episodic)]
        core = [f"    core: {view.core}"] if view.core else []
        parts.append(f"memory {name}, r1 {episode.r1:.2f}:")
        parts += core + (entries or ["    (empty)"])
    return "\n".join(parts)
