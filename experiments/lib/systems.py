"""The systems of the tables by name.

All systems of an evaluation read the same instances and use the same reader. Each carries the
settings that its results depend on, which are stored in the results folder. An evaluation is opened
from the workdir of a run, or from a config alone; writers come from that run, or from any
checkpoint that `load_policy` reads.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.common import finish, language_model
from experiments.lib.instances import is_synthetic
from experiments.lib.objects import build_environment, build_mesh, open_stage
from experiments.lib.provenance import prompt_hashes
from experiments.lib.readers import (
    ROLES,
    WRITER,
    build_engines,
    check_readers,
    comparable,
    context_tokens,
    probe,
)
from experiments.lib.workdir import differences
from experiments.lib.writers import perfect_writer
from experiments.lib.written import Reporter, write_and_read
from memalpha import adapters
from memalpha.baselines import BASELINES, long_context, make_baseline, needs_model
from memalpha.data.files import digest
from memalpha.data.instance import Instance
from memalpha.episode import Clock, Environment, Episode, Writer
from memalpha.lm.interface import Counted, LanguageModel
from memalpha.lm.roles import lm_writer, prompted_environment
from memalpha.paths import user_path
from memalpha.pieces import as_given
from memalpha.policy import load_policy, read_spec
from memalpha.policy_spec import PromptSettings
from memalpha.reading import read_later, run_baseline
from memalpha.rollout import run_episodes
from memalpha.tokenizer import load_tokenizer

BUDGET = 1024  # tokens that rag_matched shows its reader, at most
WRITERS = ("trained", "untrained", "perfect", "flat", "prompted")
FITTED = ("long_context", "store_everything")  # show what the reader has room for
# Tokens of a reader's context that these leave for instructions, question and escaping.
BESIDE = 512


@dataclass(frozen=True)
class System:
    """A row of the tables. `about`: settings its results depend on, apart from the reading."""

    run: Callable[[Sequence[Instance], Clock, Reporter], list[Episode]]
    about: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A workdir or a config opened for evaluation: the config, with changes applied, and the
    environment in which systems are read.

    folder: the workdir; None for a config alone. engines: the language models by role.
    """

    folder: Path | None
    config: ConfigDict
    env: Environment
    engines: Mapping[str, Counted] = field(default_factory=dict)

    @property
    def model(self) -> LanguageModel | None:
        """The model that writes for the systems that need one; without one of its own, the
        reader."""
        return self.engines.get(WRITER) or self.engines.get("reader")


def open_workdir(workdir: str | Path, changes: str = "") -> Run:
    """Opens a workdir for evaluation, with `changes` to its config ("field=value,...").

    Raises ValueError if config or tokenizer of the run are missing, for a change of an unknown
    field, or for a reader or judge that is misconfigured or does not answer.
    """
    folder = user_path(workdir)
    settings = _settings(folder)
    settings["data"].setdefault("built", "")
    return open_config(finish(add_roles(ConfigDict(settings)), changes, {}), folder)


def add_roles(config: ConfigDict) -> ConfigDict:
    """The config with all fields of reader, judge and writer: those that it lacks, as of older runs
    and of configs that only train, are offline and can then be changed."""
    with config.unlocked():
        for role in (*ROLES, WRITER):
            config[role] = language_model() | dict(config.get(role, {}))
    return config


def open_config(config: ConfigDict, folder: Path | None = None) -> Run:
    """Opens a config for evaluation; `folder`: the workdir of its run, if there is one.

    Raises ValueError for a tokenizer, reader or judge that is not there, misconfigured or silent.
    """
    check_readers(config)
    name = config.tokenizer.path or config.model.path or (folder and str(folder / "tokenizer"))
    if not name:
        raise ValueError(
            "config.tokenizer.path and config.model.path are empty: --set=tokenizer.path=FOLDER, or"
            " a GGUF file, hub id or smollm2"
        )
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
    names: Sequence[str],
    run: Run,
    flat: Run | None,
    rows: int,
    budget: int = BUDGET,
    checkpoints: Mapping[str, str] | None = None,
) -> dict[str, System]:
    """The systems by name, then those of `checkpoints`: name -> what `load_policy` takes.

    rows: episodes of a device batch. budget: reader tokens of rag_matched.

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
    systems = {name: _open(name, run, flat, rows, budget) for name in names}
    return systems | {
        name: checkpoint_system(run, path, rows) for name, path in (checkpoints or {}).items()
    }


def _open(name: str, run: Run, flat: Run | None, rows: int, budget: int) -> System:
    if is_prompted(name) and run.model is None:
        raise ValueError(
            f"system {name!r} writes with the language model that reads, and the reader is"
            " offline: give --set=reader.engine=flax,reader.model=FOLDER, or a server"
        )
    model = {"model": run.model.name} if is_prompted(name) and WRITER in run.engines else {}
    if name == "prompted":
        return prompted_system(run, model)
    if name in BASELINES:
        settings = {"budget": budget} if name == "rag_matched" else {}
        if name in FITTED and (room := reader_room(run.config)) < long_context.BUDGET:
            settings = {"budget": room}
        recall = make_baseline(name, run.model, **settings)
        about = settings | (model | _sizes(run.config) if needs_model(name) else {})
        return System(
            lambda instances, clock, report: run_baseline(run.env, instances, recall), about
        )
    if name == "perfect":
        return _writes(run.env, perfect_writer(run.env), _sizes(run.config))
    of = flat if name == "flat" else run
    if of.folder is None:
        raise ValueError(f"system {name!r} is of a workdir: give --workdir, or --checkpoints")
    return trained_system(of, "warm_start" if name == "untrained" else "rl", rows)


def trained_system(run: Run, stage: str, rows: int) -> System:
    """The writer of the last checkpoint of a stage ("rl" or "warm_start") of a run."""
    policy = open_stage(run.config, run.folder, stage, run.env)
    about = {"checkpoint": policy.name, "rows": rows, "temperature": run.config.eval.temperature}
    about |= {"trained": comparable(_settings(run.folder))} | _sizes(run.config)
    writer = policy.writer(rows, run.config.eval.temperature, run.config.seed)
    return _writes(run.env, writer, about)


def checkpoint_system(run: Run, path: str, rows: int) -> System:
    """The writer of a workdir, of adapters or of a pretrained model, in its own environment; what
    it writes is read as `run` says. It samples at `eval.temperature` of `run`."""
    policy, temperature = load_policy(path), run.config.eval.temperature
    spec, folder = read_spec(path), adapters.find(path)
    about = {"checkpoint": policy.name, "rows": rows, "temperature": temperature}
    about["prompts"] = prompt_hashes(policy.env.prompt, run.config)["writer"]
    if spec is not None:
        about |= {"base": spec.base, "stage": spec.stage}
        about |= {part: asdict(spec.environment)[part] for part in ("prompt", "memory")}
    if (folder / adapters.WEIGHTS).is_file():
        about["weights"] = digest(folder / adapters.WEIGHTS)
    if (folder / "config.json").is_file() and spec is not None:
        about["trained"] = comparable(_settings(folder))
    writer = policy.writer(rows, temperature, run.config.seed)
    return System(write_and_read(run.env, policy.env, writer), about)


def prompted_system(run: Run, about: Mapping[str, Any]) -> System:
    """An untrained model, prompted with the memory tools, in the window of the config."""
    prompt, memory = run.config.prompt, run.config.memory
    own = prompted_environment(run.env.prompt.tokenizer).replace(
        prompt_tokens=prompt.tokens,
        response_tokens=prompt.response_tokens,
        recent=prompt.recent,
        enabled=run.env.prompt.enabled,
        entry_tokens=memory.entry_tokens,
        core_tokens=memory.core_tokens,
        max_calls=memory.max_calls,
    )
    temperature, note = run.config.eval.temperature, run.env.reading.failures.append
    writer = lm_writer(own, run.model, temperature, run.config.seed, on_failure=note)
    sizes = [f.name for f in fields(PromptSettings) if f.name != "template"]
    about = {"temperature": temperature} | dict(about)
    about["prompts"] = prompt_hashes(own.prompt, run.config)["writer"]
    about |= {"prompt": {name: getattr(own.prompt, name) for name in sizes}}
    about |= {"memory": asdict(own.memory)}
    return System(write_and_read(run.env, own, writer), about)


def is_prompted(name: str) -> bool:
    """Whether a language model, prompted and untrained, writes the memory of a system."""
    return name == "prompted" or (name in BASELINES and needs_model(name))


def reader_room(config: ConfigDict) -> int:
    """Tokens of evidence that a reader in this process has room for; of another reader, what the
    paper's has (`long_context.BUDGET`)."""
    if config.reader.engine != "flax":
        return long_context.BUDGET
    room = context_tokens(config.reader) - config.reader.max_new_tokens - BESIDE
    return min(max(room, 1), long_context.BUDGET)


def _sizes(config: ConfigDict) -> dict[str, Any]:
    """The settings of prompt and memory, which --set may have changed."""
    return {name: json.loads(config.to_json())[name] for name in ("prompt", "memory")}


def _writes(env: Environment, writer: Writer, about: dict[str, Any]) -> System:
    def run(instances: Sequence[Instance], clock: Clock, report: Reporter) -> list[Episode]:
        episodes = run_episodes(env, instances, writer, clock=clock, on_chunk=report, ask=False)
        return read_later(env, as_given(episodes, instances), clock)

    return System(run, about)


def applies(name: str, source: str) -> bool:
    """Whether a system can be measured on a source: the perfect writer needs the notes of synthetic
    text, which say what to store."""
    return name != "perfect" or is_synthetic(source)


def describe_reward(config: ConfigDict) -> Mapping[str, float]:
    """The reward weights, which identify the rows of the ablation tables."""
    return {"beta": config.reward.beta, "gamma": config.reward.gamma}
