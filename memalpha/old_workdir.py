"""Reads the config.json of workdirs without a `policy.json`, from older versions.

The layout of those files is fixed, so this module does not follow changes of the configs.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from memalpha.episode import MemorySpec
from memalpha.hub import find_folder, read_config
from memalpha.lora import LoraConfig
from memalpha.model import ModelConfig
from memalpha.policy_spec import (
    EnvironmentSpec,
    PolicySpec,
    PromptSettings,
    RetrievalSettings,
    from_plain,
)

# Fields of `model` that config.json chose for a loaded model; the shape came from the model.
CHOICES = ("dtype", "param_dtype", "remat", "scan_layers", "attention")


def read_spec(settings: Mapping[str, Any], path: Path) -> PolicySpec | None:
    """The spec of a run from the contents of its config.json; None: not the config of a run.

    `path` is the file, for error messages. Raises ValueError where a field is missing or wrong.
    """
    if not {"prompt", "memory", "rl", "model"} <= settings.keys():
        return None
    adapters = {k: v for k, v in settings.get("lora", {}).items() if k != "path"}
    try:
        spec = PolicySpec(
            title=settings["title"],
            tokenizer=settings["tokenizer"]["path"] or settings["model"]["path"] or "tokenizer",
            base=settings["model"]["path"],
            model=_model(settings, path.parent),
            lora=LoraConfig(**adapters),
            environment=_environment(settings),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no config of a run: {error!r}") from None
    return from_plain(PolicySpec, asdict(spec), path)  # refuses values of a wrong type


def _environment(settings: Mapping[str, Any]) -> EnvironmentSpec:
    prompt, memory, reward = settings["prompt"], settings["memory"], settings["reward"]
    return EnvironmentSpec(
        PromptSettings(
            template=prompt["template"],
            dialect=prompt["dialect"],
            enabled=(memory["core"], memory["semantic"], memory["episodic"]),
            recent=prompt["recent"],
            prompt_tokens=prompt["tokens"],
            response_tokens=prompt["response_tokens"],
        ),
        MemorySpec(
            memory["entry_tokens"],
            memory["core_tokens"],
            memory["max_calls"],
            tuple(memory["first_ids"]),
        ),
        RetrievalSettings(reward["retriever"], reward["dimensions"], reward["top_k"]),
    )


def _model(settings: Mapping[str, Any], workdir: Path) -> ModelConfig:
    fields = dict(settings["model"])
    critic = settings["rl"]["algorithm"] == "ppo"
    origin = fields.pop("path")
    if origin:
        choices = {name: fields[name] for name in CHOICES}
        return read_config(find_folder(origin), value_head=critic, **choices)
    tokenizer = Tokenizer.from_file(str(workdir / "tokenizer" / "tokenizer.json"))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    return ModelConfig(vocab_size=size, value_head=critic, **fields)
