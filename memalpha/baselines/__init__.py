"""The systems of the tables, one file each, and their names on a command line.

Each file has a `recall(env, instances, *, ...) -> list[Recall]`. Systems whose memory is written by
a language model take it as the argument `model`. `make_baseline` binds the model and the settings,
so that all systems have the same signature.
"""

import inspect
from functools import partial

from memalpha.baselines import (
    long_context,
    mem0,
    mem1,
    memagent,
    memgpt,
    no_memory,
    rag_matched,
    rag_top2,
    store_everything,
)
from memalpha.episode import Recaller
from memalpha.lm.interface import LanguageModel

BASELINES = {
    "long_context": long_context.recall,
    "rag_top2": rag_top2.recall,
    "rag_matched": rag_matched.recall,
    "no_memory": no_memory.recall,
    "store_everything": store_everything.recall,
    "memagent": memagent.recall,
    "mem1": mem1.recall,
    "memgpt": memgpt.recall,
    "mem0": mem0.recall,
}
LABELS = {  # as tables call them
    "long_context": "Long-Context",
    "rag_top2": "RAG-Top2",
    "rag_matched": "RAG, budget matched",
    "no_memory": "no memory",
    "store_everything": "store everything",
    "memagent": "MemAgent",
    "mem1": "MEM1",
    "memgpt": "MemGPT",
    "mem0": "Mem0",
}


def needs_model(name: str) -> bool:
    """Whether the memory of a baseline is written by a language model."""
    return "model" in _settings(name)


def make_baseline(name: str, model: LanguageModel | None = None, **settings: object) -> Recaller:
    """The baseline of that name, for `reading.run_baseline`.

    `settings` are the keyword arguments of its `recall`. `model` may be given for any baseline;
    those that do not need one ignore it.

    Raises:
        ValueError: an unknown name or setting, a setting or the model missing.
    """
    known = _settings(name)
    if unknown := settings.keys() - known.keys():
        raise ValueError(
            f"baseline {name!r} has no setting {', '.join(sorted(unknown))}; known:"
            f" {', '.join(known.keys() - {'model'}) or 'none'}"
        )
    given = settings | ({"model": model} if "model" in known and model is not None else {})
    empty = inspect.Parameter.empty
    if missing := [k for k, v in known.items() if v.default is empty and k not in given]:
        raise ValueError(f"baseline {name!r} needs {', '.join(missing)}: give it")
    return partial(BASELINES[name], **given)


def _settings(name: str) -> dict[str, inspect.Parameter]:
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}; known baselines: {', '.join(BASELINES)}")
    parameters = inspect.signature(BASELINES[name]).parameters
    return {k: v for k, v in parameters.items() if v.kind is inspect.Parameter.KEYWORD_ONLY}
