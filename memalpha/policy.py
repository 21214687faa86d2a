"""A trained writer from disk: model, parameters, and the environment it was trained in.

`load_policy` reads what `run_experiment.py` leaves in a workdir, or a pretrained model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from memalpha import lora
from memalpha.checkpoint import restore_params
from memalpha.hub import find_folder, read_config
from memalpha.lora import LoraConfig
from memalpha.model import ModelConfig, Params, init_params
from memalpha.prompts import load_template
from memalpha.rollout import Environment, Writer
from memalpha.tokenizer import load_tokenizer
from memalpha.weights import load_params
from memalpha.writer import policy_writer


@dataclass(frozen=True)
class Policy:
    """All it takes to write as a model was trained to; `name` says whose writing it is."""

    name: str
    model: ModelConfig
    params: Params
    env: Environment

    def writer(self, rows: int = 1, temperature: float = 0.0, seed: int = 0) -> Writer:
        """The policy as a writer; greedy by default."""
        buckets, key = (self.env.prompt_tokens,), jax.random.key(seed)
        return policy_writer(self.params, self.model, self.env, buckets, rows, key, temperature)


def environment(settings: Mapping[str, Any], tokenizer) -> Environment:
    """The environment of a run, from the plain dict of its config (`config.json`)."""
    prompt, memory, reward = settings["prompt"], settings["memory"], settings["reward"]
    return Environment(
        tokenizer=tokenizer,
        template=load_template(prompt["template"]),
        dialect=prompt["dialect"],
        enabled=(memory["core"], memory["semantic"], memory["episodic"]),
        recent=prompt["recent"],
        prompt_tokens=prompt["tokens"],
        response_tokens=prompt["response_tokens"],
        entry_tokens=memory["entry_tokens"],
        core_tokens=memory["core_tokens"],
        max_calls=memory["max_calls"],
        first_ids=tuple(memory["first_ids"]),
        retriever=reward["retriever"],
        dimensions=reward["dimensions"],
        top_k=reward["top_k"],
    )


def model_config(settings: Mapping[str, Any], vocab_size: int) -> ModelConfig:
    """The model of a run, from the plain dict of its config."""
    fields = {k: v for k, v in settings["model"].items() if k != "path"}
    critic = settings["rl"]["algorithm"] == "ppo"
    return ModelConfig(vocab_size=vocab_size, value_head=critic, **fields)


def load_run(workdir: str | Path, stage: str = "rl", step: int | None = None) -> Policy:
    """The writer of a run of `run_experiment.py` as of its last checkpoint of `stage` ("rl", or
    "warm_start": the untrained one), or that of `step`.

    Raises:
        ValueError: no such folder, no config, or no checkpoint yet; says what to do.
        CheckpointError: a checkpoint that cannot be read, or a step that is not kept.
    """
    folder = Path(workdir)
    settings = _settings(folder)
    if settings is None or not {"prompt", "memory", "rl", "model"} <= settings.keys():
        raise ValueError(f"{workdir} is no workdir of run_experiment.py: it has no config of a run")
    start, own = settings["model"]["path"], folder / "tokenizer"
    tokenizer = load_tokenizer(settings["tokenizer"]["path"] or start or str(own))
    adapters = LoraConfig(**settings.get("lora", {}))
    origin, model = find_model(settings) if start else ("", model_config(settings, len(tokenizer)))
    # Adapters are kept without the model they belong to.
    base = load_params(origin, model) if adapters.rank else _shapes(model)
    key = jax.random.key(0)
    trained = jax.eval_shape(lambda params: lora.init(params, adapters, key), base)
    found = restore_params(folder / "checkpoints" / stage, trained, step)
    if found is None:
        raise ValueError(
            f"{workdir} has no checkpoint of stage {stage!r} yet: run run_experiment.py on it"
        )
    step, params = found
    name = f"{settings['title']}, {stage} step {step}"
    params = lora.merge(params, base, adapters) if adapters.rank else params
    return Policy(name, model, params, environment(settings, tokenizer))


def _shapes(model: ModelConfig) -> Params:
    return jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))


def find_model(settings: Mapping[str, Any]) -> tuple[Path, ModelConfig]:
    """The folder that `model.path` of a config stands for, and the model in it; downloads it if
    need be.

    Raises:
        ValueError: there is none, or it is not of a kind that can be loaded.
    """
    fields = settings["model"]
    folder = find_folder(fields["path"])
    names = ("dtype", "param_dtype", "remat", "scan_layers", "attention")
    choices = {name: fields[name] for name in names}
    return folder, read_config(folder, value_head=settings["rl"]["algorithm"] == "ppo", **choices)


def pretrained(name: str, model: ModelConfig, params: Params, tokenizer) -> Policy:
    """A pretrained chat model as a writer, with the instructions and sizes made for one."""
    return Policy(name, model, params, Environment(tokenizer, load_template("full")))


def load_policy(path_or_hub_id: str | Path) -> Policy:
    """A writer from the workdir of a run, or from a model folder or hub id ("name@revision").

    Raises ValueError where there is neither; says what to do.
    """
    settings = _settings(Path(path_or_hub_id))
    if settings is not None and "model_type" not in settings:
        return load_run(path_or_hub_id)
    folder = find_folder(str(path_or_hub_id))
    model = read_config(folder, attention="auto")
    tokenizer = load_tokenizer(str(path_or_hub_id))
    return pretrained(str(path_or_hub_id), model, load_params(folder, model), tokenizer)


def _settings(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from None
    return settings if isinstance(settings, dict) else None
