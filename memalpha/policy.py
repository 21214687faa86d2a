"""A trained writer from disk: model, parameters, and the environment it was trained in.

A run leaves `policy.json` (a `PolicySpec`) and checkpoints; `load_policy` reads both, or a
pretrained chat model.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import jax

from memalpha import lora
from memalpha.checkpoint import restore_params
from memalpha.episode import Environment, MemorySpec, ReadingSpec, Writer
from memalpha.hub import find_folder, read_config
from memalpha.lora import LoraConfig
from memalpha.model import ModelConfig, Params, init_params
from memalpha.paths import user_path
from memalpha.prompts import PromptSpec, load_template
from memalpha.tokenizer import load_tokenizer
from memalpha.tools import parse_prompted_calls
from memalpha.weights import load_params
from memalpha.writer import policy_writer

POLICY, CONFIG = "policy.json", "config.json"  # in the workdir of a run
CHECKPOINTS = "checkpoints"  # a folder a stage in it


@dataclass(frozen=True)
class PromptSettings:
    """`PromptSpec` in plain values; `template` is a name or a folder."""

    template: str
    dialect: str
    enabled: tuple[bool, bool, bool]
    recent: int
    prompt_tokens: int
    response_tokens: int


@dataclass(frozen=True)
class RetrievalSettings:
    """The part of `ReadingSpec` that a run is trained with; readers and judges are given anew."""

    retriever: str
    dimensions: int
    top_k: int


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment in plain values, without tokenizer, reader and judges."""

    prompt: PromptSettings
    memory: MemorySpec
    reading: RetrievalSettings

    def build(self, tokenizer) -> Environment:
        """The environment with the offline reader and judge."""
        prompt = asdict(self.prompt) | {"template": load_template(self.prompt.template)}
        return Environment(
            PromptSpec(tokenizer, **prompt), self.memory, ReadingSpec(**asdict(self.reading))
        )


@dataclass(frozen=True)
class PolicySpec:
    """All that a trained writer is, but for its parameters; what `policy.json` holds.

    tokenizer: folder, where a relative one is in the workdir, or hub id. base: folder or hub id of
    the model that training began from and that adapters belong to; "" from scratch. stage: the
    checkpoints that hold the trained writer.
    """

    title: str
    tokenizer: str
    base: str
    model: ModelConfig
    lora: LoraConfig
    environment: EnvironmentSpec
    stage: str = "rl"


@dataclass(frozen=True)
class Policy:
    """All it takes to write as a model was trained to; `name` says whose writing it is."""

    name: str
    model: ModelConfig
    params: Params
    env: Environment

    def writer(self, rows: int = 1, temperature: float = 0.0, seed: int = 0) -> Writer:
        """The policy as a writer; greedy by default."""
        return policy_writer(
            self.params, self.model, self.env, rows, jax.random.key(seed), temperature
        )


def write_spec(workdir: Path, spec: PolicySpec) -> None:
    """Writes `policy.json`; whole or not at all."""
    path = workdir / POLICY
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(asdict(spec), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    aside.replace(path)


def read_spec(workdir: str | Path) -> PolicySpec | None:
    """The spec of a run, also of one from before there was a `policy.json`; None: no workdir.

    Raises ValueError, which names file and field, for a file that is broken or of another form.
    """
    folder = user_path(workdir)
    if (folder / POLICY).is_file():
        return from_plain(PolicySpec, _read_json(folder / POLICY), folder / POLICY)
    if not (folder / CONFIG).is_file():
        return None
    settings = _read_json(folder / CONFIG)
    if not isinstance(settings, dict) or "model_type" in settings:
        return None  # of a model in the hub's layout
    from memalpha import old_workdir  # which needs the structs of this module

    return old_workdir.read_spec(settings, folder / CONFIG)


def load_policy(
    path_or_hub_id: str | Path, stage: str | None = None, step: int | None = None
) -> Policy:
    """The writer of a run of `run_experiment.py`, or a pretrained chat model.

    A workdir gives the writer as of its last checkpoint, or of `stage` ("rl", or "warm_start": the
    untrained one) and `step`. A folder, GGUF file or hub id ("name@revision") gives a pretrained
    model with the instructions and sizes made for one.

    Raises:
        ValueError: there is neither, or no checkpoint yet; says what to do.
        CheckpointError: a checkpoint that cannot be read, or a step that was not kept.
    """
    folder = user_path(path_or_hub_id)
    spec = read_spec(folder)
    if spec is not None:
        return _load_run(folder, spec, stage or spec.stage, step)
    other = (folder / CONFIG).is_file() and "model_type" not in _read_json(folder / CONFIG)
    if stage is not None or step is not None or other:
        raise ValueError(f"{path_or_hub_id} is no workdir of run_experiment.py: it has no {POLICY}")
    name = str(path_or_hub_id)
    origin = find_folder(name)
    model = read_config(origin, attention="auto")
    env = Environment(
        PromptSpec(load_tokenizer(name), load_template("full"), parse=parse_prompted_calls)
    )
    return Policy(name, model, load_params(origin, model), env)


def _load_run(folder: Path, spec: PolicySpec, stage: str, step: int | None) -> Policy:
    inside = folder / spec.tokenizer
    tokenizer = load_tokenizer(str(inside) if inside.is_dir() else spec.tokenizer)
    if spec.lora.rank:  # adapters are stored without the model they belong to
        base = load_params(find_folder(spec.base), spec.model)
    else:
        base = jax.eval_shape(lambda key: init_params(spec.model, key), jax.random.key(0))
    trained = jax.eval_shape(lambda p: lora.init(p, spec.lora, jax.random.key(0)), base)
    checkpoint = restore_params(folder / CHECKPOINTS / stage, trained, step)
    if checkpoint is None:
        raise ValueError(
            f"{folder} has no checkpoint of stage {stage!r} yet: run run_experiment.py on it"
        )
    step, params = checkpoint
    if spec.lora.rank:
        params = lora.merge(params, base, spec.lora)
    env = spec.environment.build(tokenizer)
    return Policy(f"{spec.title}, {stage} step {step}", spec.model, params, env)


def from_plain(cls: type, value: Any, where: Path | str) -> Any:
    """A dataclass from the plain object that `asdict` made of it, dataclasses in it too.

    Raises ValueError, naming `where` and the field, where fields are missing, unknown or wrong.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: a JSON object is expected for {cls.__name__}")
    names = {field.name: field for field in fields(cls)}
    if unknown := sorted(value.keys() - names.keys()):
        raise ValueError(f"{where}: unknown fields {', '.join(unknown)}; of a newer version?")
    given = {}
    for name, item in value.items():
        kind = names[name].type
        if is_dataclass(kind):
            given[name] = from_plain(kind, item, f"{where}: {name}")
        else:
            given[name] = _tuples(item)
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _tuples(item: Any) -> Any:
    return tuple(map(_tuples, item)) if isinstance(item, list) else item


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from None
