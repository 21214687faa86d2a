"""`policy.json`: everything needed to load the writer of a run, as plain values."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

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
    """The part of `ReadingSpec` that is stored; reader and judges are chosen when loading."""

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
    """A trained writer without its parameters: the contents of `policy.json`.

    tokenizer: a folder (a relative path is inside the workdir) or a hub id. base: folder or hub id
    of the pretrained model that training started from and that adapters are added to; "": trained
    from scratch. stage: the folder of checkpoints that holds the trained writer.
    """

    title: str
    tokenizer: str
    base: str
    model: ModelConfig
    lora: LoraConfig
    environment: EnvironmentSpec
    stage: str = "rl"


def write_spec(workdir: Path, spec: PolicySpec) -> None:
    """Writes `policy.json` atomically.

    The attention of the model is written as "auto", because the best implementation depends on the
    machine that loads the model.
    """
    path = workdir / POLICY
    aside = path.with_suffix(".tmp")
    plain = asdict(spec)
    plain["model"]["attention"] = "auto"
    aside.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    aside.replace(path)


def from_plain(cls: type, value: Any, where: Path | str) -> Any:
    """The inverse of `asdict`: a dataclass, nested ones included, from a plain object.

    Raises ValueError, which names `where` and the field, for missing, unknown or wrong fields.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: a JSON object is expected for {cls.__name__}")
    kinds = get_type_hints(cls)
    if unknown := sorted(value.keys() - kinds.keys()):
        raise ValueError(f"{where}: unknown fields {', '.join(unknown)}; of a newer version?")
    given = {n: _read(kinds[n], item, f"{where}: {n}") for n, item in value.items()}
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _read(kind: Any, item: Any, where: str) -> Any:
    """A value of JSON as a field of this type has it: lists as tuples, dataclasses built."""
    if isinstance(kind, UnionType):  # with None, in all of our fields
        if item is None:
            return None
        kind = get_args(kind)[0]
    if is_dataclass(kind):
        return from_plain(kind, item, where)
    if get_origin(kind) is tuple or issubclass(kind, tuple):
        return _read_list(kind, item, where)
    allowed = (int, float) if kind is float else kind
    if not isinstance(item, allowed) or (isinstance(item, bool) and kind is not bool):
        raise ValueError(f"{where}: {item!r} is no {kind.__name__}")
    return item


def _read_list(kind: Any, item: Any, where: str) -> tuple:
    if not isinstance(item, list | tuple):
        raise ValueError(f"{where}: {item!r} is no list")
    kinds = get_args(kind) or tuple(get_type_hints(kind).values())  # of a NamedTuple
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(item)
    if len(kinds) != len(item):
        raise ValueError(f"{where}: {list(item)} has {len(item)} items and not {len(kinds)}")
    return tuple(_read(each, x, where) for each, x in zip(kinds, item, strict=True))
