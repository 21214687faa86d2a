"""What a run says of its writer, in plain values: `policy.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from memalpha.episode import Environment, MemorySpec, ReadingSpec
from memalpha.lora import LoraConfig
from memalpha.model import ModelConfig
from memalpha.prompts import PromptSpec, load_template

POLICY = "policy.json"  # in the workdir of a run


@dataclass(frozen=True)
class PromptSettings:
    """`PromptSpec` in plain values; `template` is a name or a folder."""

    template: str
    dialect: str
    enabled: tuple[bool, bool, bool]
    recent: int
    prompt_tokens: int
    response_tokens: int
    stops: tuple[int, ...] = ()


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


def write_spec(workdir: Path, spec: PolicySpec) -> None:
    """Writes `policy.json`; whole or not at all.

    The attention of the model is written as "auto": which one is best is up to the machine that
    loads it.
    """
    path = workdir / POLICY
    aside = path.with_suffix(".tmp")
    plain = asdict(spec)
    plain["model"]["attention"] = "auto"
    aside.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    aside.replace(path)


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
