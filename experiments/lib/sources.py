"""The sources that systems are measured on: synthetic, from published files, or built data."""

import json
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.lib.instances import PREFIX, build_instances, empty_share, is_synthetic
from memalpha.data import SOURCES, built_sets, synthetic
from memalpha.data.instance import Instance


def define_flags() -> None:
    """Flags that select sources and instances."""
    flags.DEFINE_list("sources", [], "Names; default: those of the config, or all of --data.")
    flags.DEFINE_string("data", "", "Folder that `python -m memalpha.data build` made.")
    flags.DEFINE_string("split", "test", "train, validation or test.")
    flags.DEFINE_integer("instances", 20, "At most so many of each source.", lower_bound=1)
    flags.DEFINE_integer("chunks", 0, "Length of synthetic instances; 0: as in training.")
    flags.DEFINE_string("set", "", "Changes to the config of a run: field=value,...")


def changes() -> str:
    """The changes to the config of a run that the flags ask for."""
    args = flags.FLAGS
    return ",".join(filter(None, [f"data.built={args.data}" if args.data else "", args.set]))


def from_flags(config: ConfigDict) -> tuple[dict[str, list[Instance]], dict[str, Any]]:
    """Source -> instances selected by the flags, and source -> settings they depend on.

    Raises ValueError for an unknown source or split.
    """
    args = flags.FLAGS
    if args.split not in synthetic.SPLITS:
        raise ValueError(f"unknown split {args.split!r}; known: {', '.join(synthetic.SPLITS)}")
    known = known_sources(config, args.split)
    built = [name for name in known if not is_synthetic(name)] if args.data else []
    names = args.sources or built or list(config.data.sources)
    loaded = load_sources(config, names, args.split, args.instances, args.chunks)
    return loaded, {n: describe_source(config, n, args.split, args.chunks) for n in names}


def known_sources(config: ConfigDict, split: str) -> list[str]:
    """Names that `load_sources` knows, given the data folders of the config."""
    real = built_sets.find_split(config.data.built, split) if config.data.built else SOURCES
    return [*(PREFIX + family for family in synthetic.FAMILIES), *real]


def load_sources(
    config: ConfigDict, names: Sequence[str], split: str, count: int, chunks: int = 0
) -> dict[str, list[Instance]]:
    """At most `count` instances of every source; raises ValueError for an unknown one."""
    known = known_sources(config, split)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown source {name!r}; known: {', '.join(known)}")
    return {name: build_instances(config, name, split, count, chunks=chunks) for name in names}


def describe_source(config: ConfigDict, name: str, split: str, chunks: int) -> dict[str, Any]:
    """The settings that the instances of a source depend on."""
    data = json.loads(config.to_json())["data"]
    if is_synthetic(name):
        settings = {k: data[k] for k in ("facts_per_chunk", "filler_share")}
        if name == "synthetic_chats" and empty_share(data) != data["filler_share"] / 2:
            settings["empty_share"] = empty_share(data)
    elif config.data.built:
        built = built_sets.open_source(config.data.built, name, split).manifest["sha256"]
        return {"built": built, "max_questions": data["max_questions"]}
    else:
        settings = {"chunk_tokens": data["chunk_tokens"]}
    size = {"chunks": chunks or data["chunks"], "max_questions": data["max_questions"]}
    return {"seed": config.seed} | size | settings
