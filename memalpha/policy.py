"""A trained writer from disk: model, parameters, and the environment it was trained in.

A run leaves `policy.json` (a `PolicySpec`) and checkpoints; `load_policy` reads both, or a
pretrained chat model.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from memalpha import adapters, lora, old_workdir
from memalpha.checkpoint import restore_params
from memalpha.episode import Environment, Writer
from memalpha.hub import find_folder, read_config
from memalpha.lm.trained import trained_writer
from memalpha.model import ModelConfig, Params, init_params
from memalpha.policy_spec import POLICY, PolicySpec, from_plain
from memalpha.prompts import PromptSpec, load_template
from memalpha.tokenizer import load_tokenizer, stated_stops
from memalpha.tools import parse_prompted_calls
from memalpha.weights import load_params, trim_memory
from memalpha.writer import policy_writer

DEEP = 8  # layers; more of them take minutes to compile as the one program of `sampler.generate`
CONFIG = "config.json"  # in the workdir of a run, beside POLICY
CHECKPOINTS = "checkpoints"  # in the workdir, with one folder per stage


@dataclass(frozen=True)
class Policy:
    """A trained model with the environment it was trained in; `name` identifies it in results."""

    name: str
    model: ModelConfig
    params: Params
    env: Environment

    def writer(self, rows: int = 1, temperature: float = 0.0, seed: int = 0) -> Writer:
        """The policy as a writer; greedy by default. `rows`: the largest batch of a small model."""
        if self.model.num_layers > DEEP:
            return trained_writer(self.params, self.model, self.env, temperature, seed, self.name)
        return policy_writer(
            self.params, self.model, self.env, rows, jax.random.key(seed), temperature
        )


def read_spec(workdir: str | Path) -> PolicySpec | None:
    """The spec of a run, or of adapters (`adapters`); None where the folder is neither.

    A workdir without `policy.json`, from an older version, is read from its config.json.

    Raises ValueError, which names file and field, for a file that is damaged or has other fields.
    """
    folder = adapters.find(workdir)
    if (folder / POLICY).is_file():
        return from_plain(PolicySpec, _read_json(folder / POLICY), folder / POLICY)
    if not (folder / CONFIG).is_file():
        return None
    settings = _read_json(folder / CONFIG)
    if not isinstance(settings, dict) or "model_type" in settings:
        return None  # the config.json of a model in the hub's layout
    return old_workdir.read_spec(settings, folder / CONFIG)


def load_policy(
    path_or_hub_id: str | Path, stage: str | None = None, step: int | None = None
) -> Policy:
    """The writer of a run of `run_experiment.py`, trained adapters, or a pretrained chat model.

    A workdir gives the writer of its last checkpoint, or of `stage` ("rl", or "warm_start" for the
    writer before reinforcement learning) and `step`. A folder of adapters, or the name of those
    that this package brings ("memalpha-smollm2"), gives the writer that they were trained to be. A
    folder, GGUF file or hub id ("name@revision") gives a pretrained model with the default prompts
    and sizes for such models.

    Raises:
        ValueError: no workdir or model there, or no checkpoint yet; says what to do.
        CheckpointError: a checkpoint that cannot be read, or a step that is no longer stored.
    """
    policy = _load(path_or_hub_id, stage, step)
    jax.block_until_ready(policy.params)  # what they were made from is no longer needed
    trim_memory()
    return policy


def _load(path_or_hub_id: str | Path, stage: str | None, step: int | None) -> Policy:
    folder = adapters.find(path_or_hub_id)
    spec = read_spec(folder)
    if spec is not None and (folder / adapters.WEIGHTS).is_file():
        if stage not in (None, spec.stage) or step is not None:
            raise ValueError(f"{path_or_hub_id} holds one stage of adapters, {spec.stage}")
        return _load_adapters(str(path_or_hub_id), folder, spec)
    if spec is not None:
        return _load_run(folder, spec, stage or spec.stage, step)
    other = (folder / CONFIG).is_file() and "model_type" not in _read_json(folder / CONFIG)
    if stage is not None or step is not None or other:
        raise ValueError(f"{path_or_hub_id} is no workdir of run_experiment.py: it has no {POLICY}")
    name = str(path_or_hub_id)
    origin = find_folder(name)
    model = read_config(origin, attention="auto")
    env = Environment(
        PromptSpec(
            load_tokenizer(name),
            load_template("full"),
            parse=parse_prompted_calls,
            stops=stated_stops(origin),
        )
    )
    return Policy(name, model, load_params(origin, model), env)


def _load_adapters(name: str, folder: Path, spec: PolicySpec) -> Policy:
    base = load_params(find_folder(spec.base), spec.model)
    params = lora.merge(adapters.read(folder, base, spec), base, spec.lora)
    env = spec.environment.build(load_tokenizer(spec.tokenizer))
    return Policy(name, spec.model, params, env)


def _load_run(folder: Path, spec: PolicySpec, stage: str, step: int | None) -> Policy:
    inside = folder / spec.tokenizer
    tokenizer = load_tokenizer(str(inside) if inside.is_dir() else spec.tokenizer)
    base, params, step = restore_trained(folder, spec, stage, step)
    if spec.lora.rank:
        params = lora.merge(params, base, spec.lora)
    env = spec.environment.build(tokenizer)
    return Policy(f"{spec.title}, {stage} step {step}", spec.model, params, env)


def restore_trained(
    folder: Path, spec: PolicySpec, stage: str, step: int | None = None
) -> tuple[Params, Params, int]:
    """The base model of a run, what it trained, and the step of the checkpoint (default: the last).

    Where the whole model was trained, the first is only its shapes. Raises: see `load_policy`.
    """
    base = jax.eval_shape(lambda key: init_params(spec.model, key), jax.random.key(0))
    trained = jax.eval_shape(lambda p: lora.init(p, spec.lora, jax.random.key(0)), base)
    checkpoint = restore_params(folder / CHECKPOINTS / stage, trained, step)
    if checkpoint is None:
        raise ValueError(
            f"{folder} has no checkpoint of stage {stage!r} yet: run run_experiment.py on it"
        )
    if spec.lora.rank:  # checkpoints of adapters do not hold the base model
        base = load_params(find_folder(spec.base), spec.model)
    return base, checkpoint[1], checkpoint[0]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from None
