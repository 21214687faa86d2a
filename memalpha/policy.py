"""A trained writer from disk: model, parameters, and the environment it was trained in.

`load_policy` reads what `run_experiment.py` leaves in a workdir. A pretrained model of another
origin becomes a `Policy` by `pretrained`, from parameters in the form of `memalpha.model`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from memalpha.checkpoint import restore_params
from memalpha.model import ModelConfig, Params, init_params
from memalpha.prompts import load_template
from memalpha.rollout import Environment, Writer, policy_writer
from memalpha.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Policy:
    """All it takes to write as a model was trained to; `name` says whose writing it is."""

    name: str
    model: ModelConfig
    params: Params
    env: Environment

    def writer(self, rows: int = 1, temperature: float = 0.0, seed: int = 0) -> Writer:
        """The policy as a writer; greedy by default, as in the tables."""
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


def load_run(workdir: str | Path, stage: str = "rl") -> Policy:
    """The writer of a run of `run_experiment.py` as of its last checkpoint of `stage` ("rl", or
    "warm_start": the untrained one).

    Raises:
        ValueError: no such folder, no config, or no checkpoint yet; says what to do.
        CheckpointError: a checkpoint that cannot be read.
    """
    folder = Path(workdir)
    settings = _settings(folder)
    if settings is None or not {"prompt", "memory", "rl", "model"} <= settings.keys():
        raise ValueError(f"{workdir} is no workdir of run_experiment.py: it has no config of a run")
    own = folder / "tokenizer"
    tokenizer = load_tokenizer(settings["tokenizer"]["path"] or str(own))
    model = model_config(settings, len(tokenizer))
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    found = restore_params(folder / "checkpoints" / stage, shapes)
    if found is None:
        raise ValueError(
            f"{workdir} has no checkpoint of stage {stage!r} yet: run run_experiment.py on it"
        )
    step, params = found
    name = f"{settings['title']}, {stage} step {step}"
    return Policy(name, model, params, environment(settings, tokenizer))


def pretrained(name: str, model: ModelConfig, params: Params, tokenizer) -> Policy:
    """A pretrained chat model as a writer, with the instructions and sizes made for one."""
    return Policy(name, model, params, Environment(tokenizer, load_template("full")))


def load_policy(path_or_hub_id: str | Path) -> Policy:
    """A writer from the workdir of a run. Raises as `load_run`, and ValueError for all else."""
    folder = Path(path_or_hub_id)
    settings = _settings(folder)
    if settings is not None and "model_type" in settings:
        raise ValueError(
            f"{path_or_hub_id} holds a Hugging Face model: convert its weights and give them to"
            " memalpha.policy.pretrained"
        )
    if not folder.is_dir():
        raise ValueError(
            f"no checkpoint at {path_or_hub_id}: give the workdir of a run of run_experiment.py"
        )
    return load_run(folder)


def _settings(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from None
    return settings if isinstance(settings, dict) else None
