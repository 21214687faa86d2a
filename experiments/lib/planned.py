"""The plan of a reproduction: which systems read which streams, and what that takes; and what the
paper's own sizes would take."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ml_collections import ConfigDict

from experiments.lib import estimate
from experiments.lib.estimate import Calls, Needed, Streams, Window
from experiments.lib.pool import Pool
from experiments.lib.render import Table
from experiments.lib.streams import SOURCES_OF
from experiments.lib.systems import FITTED, is_prompted, reader_room
from memalpha import cost
from memalpha.baselines import BASELINES
from memalpha.data.instance import Instance
from memalpha.data.sizes import PUBLISHED
from memalpha.data.text import approximate_tokens
from memalpha.hub import find_folder, read_config
from memalpha.model_config import ModelConfig
from memalpha.policy import read_spec

SYSTEMS = (*BASELINES, "prompted")
GENERATED = 8  # tokens that are read in the time of one that is generated, for progress


@dataclass(frozen=True)
class Part:
    """The streams of one size and split; `about`: what those of each source depend on."""

    size: str
    split: str
    sources: dict[str, list[Instance]]
    about: dict[str, Any]


class Plan:
    """names: systems that can be run. left_out: those that no model is named for. checkpoints:
    system -> checkpoint, of the trained writers."""

    def __init__(
        self,
        config: ConfigDict,
        systems: Sequence[str],
        checkpoints: dict[str, str],
        slow_instances: int,
    ):
        for name in systems:
            if name not in SYSTEMS:
                raise ValueError(f"unknown system {name!r}; known: {', '.join(SYSTEMS)}")
        offline = config.reader.engine == config.writer.engine == "offline"
        wanted = systems or SYSTEMS
        self.names = [name for name in wanted if not (offline and is_prompted(name))]
        self.left_out = [name for name in wanted if name not in self.names]
        self.config, self.checkpoints, self.room = config, checkpoints, reader_room(config)
        self.slow_instances = slow_instances
        self.specs = {name: read_spec(path) for name, path in checkpoints.items()}
        self.models = {  # a checkpoint that is no run and no adapters is a pretrained model
            name: spec.model if spec else read_config(find_folder(checkpoints[name]))
            for name, spec in self.specs.items()
        }

    def is_slow(self, name: str) -> bool:
        """Whether a language model writes the memory of a system."""
        return name in self.checkpoints or is_prompted(name)

    def choose(self, name: str, instances: Sequence[Instance]) -> Sequence[Instance]:
        """The instances that a system reads."""
        return instances[: self.slow_instances] if self.is_slow(name) else instances

    def effort(self, name: str, instances: Sequence[Instance]) -> int:
        """By which progress is told: thousands of tokens, those that are generated counted more."""
        calls = [call for part in self._calls(name, instances) for call in part]
        return 1 + int(sum(c.count * (c.prompt + GENERATED * c.reply) for c in calls)) // 1000

    def shown(self, chunk_tokens: int) -> dict[str, float]:
        """System -> tokens of evidence of a question, about, of those that are not fitted to the
        reader."""
        names = [name for name in (*self.names, *self.checkpoints) if name not in FITTED]
        return {name: estimate.evidence(name, chunk_tokens, self._window(name)) for name in names}

    def tables(self, parts: Sequence[Part]) -> list[Table]:
        """What is run, and what it is estimated to take on this machine."""
        rows = []
        for part in parts:
            for source, all_of in part.sources.items():
                slow = min(self.slow_instances, len(all_of))
                chunks = sum(len(one.chunks) for one in all_of) / len(all_of)
                questions = sum(len(one.questions) for one in all_of) / len(all_of)
                name = f"{source}, {part.split}, {part.size}"
                rows.append(
                    (name, f"{len(all_of)}", f"{slow}", f"{chunks:.0f}", f"{questions:.0f}")
                )
        heads = ("streams", "instances", "for slow systems", "chunks", "questions")
        slow = ", ".join(filter(self.is_slow, (*self.names, *self.checkpoints)))
        notes = [f"Slow systems, whose memory a language model writes: {slow or 'none'}."]
        return [Table("Streams", heads, tuple(rows), tuple(notes)), self._bill(parts)]

    def _bill(self, parts: Sequence[Part]) -> Table:
        needed, all_of = {}, [i for part in parts for i in part.sources.values()]
        reader, writer = _shape(self.config.reader), _shape(self.config.writer)
        for name in (*self.names, *self.checkpoints):
            calls = [self._calls(name, self.choose(name, instances)) for instances in all_of]
            write, read = ([c for one in calls for c in one[part]] for part in (0, 1))
            needed[name] = Needed(write, read, self.models.get(name, writer or reader), reader)
        rates = estimate.measured_rates()
        left_out = ", ".join(self.left_out)
        notes = [f"Left out, since no model was named for them: {left_out}."] if left_out else []
        return estimate.bill("Estimate for this machine", needed, rates, notes)

    def _calls(self, name: str, instances: Sequence[Instance]) -> tuple[list[Calls], list[Calls]]:
        """Those that write, and those that read; a reader of rules is not called."""
        chunks = [chunk for instance in instances for chunk in instance.chunks]
        tokens = sum(map(_tokens, chunks)) / len(chunks)
        questions = sum(len(instance.questions) for instance in instances) / len(instances)
        of = Streams(len(instances), len(chunks) / len(instances), tokens, questions)
        window = self._window(name)
        offline = self.config.reader.engine == "offline"
        reads = [] if offline else [estimate.reading(name, of, window)]
        return estimate.writing(name, of, window), reads

    def _window(self, name: str) -> Window:
        prompt, memory = self.config.prompt, self.config.memory
        sizes = (prompt.tokens, prompt.response_tokens, memory.core_tokens)
        if spec := self.specs.get(name):
            own = spec.environment
            sizes = (own.prompt.prompt_tokens, own.prompt.response_tokens, own.memory.core_tokens)
        return Window(*sizes, context=self.room, top_k=self.config.reward.top_k)


def describe_rows(pool: Pool) -> list[str]:
    """What stands below every table of the folders of a pool: systems that read a part of what
    others did, and those of `SYSTEMS` that were not run."""
    of: dict[str, dict[tuple, int]] = {}  # system -> split and source -> instances
    for key, instances in pool.small.items():
        of.setdefault(key.system, {})[key.split, key.column] = len(instances)
    most = {place: max(of_one.get(place, 0) for of_one in of.values())
            for of_one in of.values() for place in of_one}  # fmt: skip
    shares: dict[str, list[str]] = {}
    for name, counts in of.items():
        fewer = {(count, most[place]) for place, count in counts.items() if count < most[place]}
        if fewer:
            texts = " or ".join(f"{count} of {whole}" for count, whole in sorted(fewer))
            shares.setdefault(texts, []).append(name)
    told = [f"{', '.join(names)} read the first {share} instances of a source."
            for share, names in shares.items()]  # fmt: skip
    absent = ", ".join(name for name in SYSTEMS if name not in of)
    return told + ([f"Not run: {absent}."] if absent else [])


_tokens = cache(approximate_tokens)


def _shape(role: ConfigDict) -> ModelConfig | None:
    """The model of a role, if it runs in this process."""
    if role.engine != "flax":
        return None
    return read_config(find_folder(role.model), dtype=role.dtype, param_dtype=role.dtype)


def full_bill(hardware: str) -> Table:
    """The cost of the paper's sizes with its models on one device of this kind."""
    known = [name for name in cost.DEVICES if name.lower().startswith(hardware.lower())]
    if len(known) != 1:
        raise ValueError(f"--hardware={hardware!r}: give one of {', '.join(cost.DEVICES)}")
    streams = [Streams(*row) for split in SOURCES_OF for row in PUBLISHED[split].values()]
    needed = {
        name: Needed(
            [c for of in streams for c in estimate.writing(name, of, Window())],
            [estimate.reading(name, of, Window()) for of in streams],
            estimate.WRITER,
            estimate.READER,
        )
        for name in (*SYSTEMS, "trained writer")
    }
    title = f"The paper's validation and test sets on {known[0]}"
    told = "Writers: Qwen3-4B, reader: Qwen3-32B, in bfloat16 (65 GB: a smaller device is one of"
    return estimate.bill(title, needed, cost.DEVICES[known[0]], [f"{told} several)."])
