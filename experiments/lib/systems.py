"""The systems of the tables by name.

All systems of an evaluation read the same instances and use the same reader. Each carries the
settings that its results depend on, which are stored in the results folder.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.common import finish, language_model
from experiments.lib.instances import is_synthetic
from experiments.lib.objects import build_environment, build_mesh, open_stage
from experiments.lib.readers import ROLES, build_engines, check_readers, comparable, probe
from experiments.lib.workdir import differences
from experiments.lib.writers import perfect_writer
from memalpha.baselines import BASELINES, make_baseline, needs_model
from memalpha.data.instance import Instance
from memalpha.episode import Clock, Environment, Episode
from memalpha.lm.interface import Counted, LanguageModel
from memalpha.paths import user_path
from memalpha.reading import run_baseline
from memalpha.rollout import run_episodes
from memalpha.tokenizer import load_tokenizer

BUDGET = 1024  # tokens that rag_matched shows its reader, at most
WRITERS = ("trained", "untrained", "perfect", "flat")
Reporter = Callable[[int, int], None]  # (chunks done, chunks in all) of a batch


@dataclass(frozen=True)
class System:
    """A row of the tables. `about`: settings its results depend on, apart from the reading."""

    run: Callable[[Sequence[Instance], Clock, Reporter], list[Episode]]
    about: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A workdir opened for evaluation: its config, with changes applied, and the environment.

    engines: the language models among reader and judge, by role.
    """

    folder: Path
    config: ConfigDict
    env: Environment
    engines: Mapping[str, Counted] = field(default_factory=dict)

    @property
    def model(self) -> LanguageModel | None:
        """The model that writes for the baselines that need one: that of the reader."""
        return self.engines.get("reader")


def open_workdir(workdir: str | Path, changes: str = "") -> Run:
    """Opens a workdir for evaluation, with `changes` to its config ("field=value,...").

    Raises ValueError if config or tokenizer of the run are missing, for a change of an unknown
    field, or for a reader or judge that is misconfigured or does not answer.
    """
    folder = user_path(workdir)
    settings = _settings(folder)
    for role in ROLES:  # fields that configs of older versions lack and that --set may change
        settings.setdefault(role, language_model())
    settings["data"].setdefault("built", "")
    config = finish(ConfigDict(settings), changes, {})
    check_readers(config)
    name = config.tokenizer.path or config.model.path or str(folder / "tokenizer")
    engines = build_engines(config, build_mesh(config))
    env = build_environment(config, load_tokenizer(name), engines)
    probe(engines)
    return Run(folder, config, env, engines)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no workdir of run_experiment.py: it has no config.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from None


def describe_reading(env: Environment) -> dict[str, Any]:
    """The settings that the results of all systems depend on: reader, judge, retrieval, tokens."""
    vocabulary = json.dumps(sorted(env.prompt.tokenizer.get_vocab().items()))
    return {
        "reader": _name(env.reading.answerer),
        "judge": _name(env.reading.answer_judge),
        "retriever": env.reading.retriever,
        "dimensions": env.reading.dimensions,
        "top_k": env.reading.top_k,
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest()[:16],
    }


def check_reading(runs: Mapping[str, Run]) -> None:
    """Raises ValueError if the settings of reading differ between runs; --set can align them."""
    (first, one), *others = runs.items()
    before = describe_reading(one.env) | {"tokenizer": ""}  # differs between runs
    for name, run in others:
        differ = differences(before, describe_reading(run.env) | {"tokenizer": ""})
        if differ:
            lines = "; ".join(f"{what}: {old!r} and {new!r}" for what, old, new in sorted(differ))
            raise ValueError(f"{first} and {name} are read in different ways ({lines}): --set them")


def _name(model: Any) -> str:
    return getattr(model, "name", None) or getattr(model, "__name__", None) or repr(model)


def open_systems(
    names: Sequence[str], run: Run, flat: Run | None, rows: int, budget: int = BUDGET
) -> dict[str, System]:
    """The systems by name; `rows`: episodes of a device batch; `budget`: reader tokens of
    rag_matched.

    Raises ValueError for an unknown name (lists the known), `flat` without its run, or a missing
    checkpoint.
    """
    known = (*WRITERS, *BASELINES)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown system {name!r}; known: {', '.join(known)}")
    if "flat" in names and flat is None:
        raise ValueError("system 'flat' is the trained writer of a second run: give its workdir")
    if flat is not None:
        check_reading({"the run": run, "flat": flat})
    return {name: _open(name, run, flat, rows, budget) for name in names}


def _open(name: str, run: Run, flat: Run | None, rows: int, budget: int) -> System:
    if name in BASELINES:
        if needs_model(name) and run.model is None:
            raise ValueError(
                f"system {name!r} writes with the language model that reads, and the reader is"
                " offline: give --set=reader.engine=flax,reader.model=FOLDER, or a server"
            )
        settings = {"budget": budget} if name == "rag_matched" else {}
        recall = make_baseline(name, run.model, **settings)
        about = settings | (_sizes(run.config) if needs_model(name) else {})
        return System(
            lambda instances, clock, report: run_baseline(run.env, instances, recall), about
        )
    if name == "perfect":
        return _writes(run.env, perfect_writer(run.env), _sizes(run.config))
    of = flat if name == "flat" else run
    return trained_system(of, "warm_start" if name == "untrained" else "rl", rows)


def trained_system(run: Run, stage: str, rows: int) -> System:
    """The writer of the last checkpoint of a stage ("rl" or "warm_start") of a run."""
    policy = open_stage(run.config, run.folder, stage, run.env)
    about = {"checkpoint": policy.name, "rows": rows, "temperature": run.config.eval.temperature}
    about |= {"trained": comparable(_settings(run.folder))} | _sizes(run.config)
    writer = policy.writer(rows, run.config.eval.temperature, run.config.seed)
    return _writes(run.env, writer, about)


def _sizes(config: ConfigDict) -> dict[str, Any]:
    """The settings of prompt and memory, which --set may have changed."""
    return {name: json.loads(config.to_json())[name] for name in ("prompt", "memory")}


def _writes(env: Environment, writer, about: dict[str, Any]) -> System:
    return System(
        lambda instances, clock, report: run_episodes(
            env, instances, writer, clock=clock, on_chunk=report
        ),
        about,
    )


def applies(name: str, source: str) -> bool:
    """Whether a system can be measured on a source: the perfect writer needs the notes of synthetic
    text, which say what to store."""
    return name != "perfect" or is_synthetic(source)


def describe_reward(config: ConfigDict) -> Mapping[str, float]:
    """The reward weights, which identify the rows of the ablation tables."""
    return {"beta": config.reward.beta, "gamma": config.reward.gamma}
