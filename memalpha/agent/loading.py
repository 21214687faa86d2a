"""The agent of a run or of pretrained models that run in this process."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from rich.console import Console

from memalpha.agent.memory_agent import MemoryAgent
from memalpha.agent.store import Store
from memalpha.episode import Environment
from memalpha.hub import find_folder
from memalpha.lm.interface import LanguageModel
from memalpha.lm.local import FlaxModel
from memalpha.lm.roles import lm_reader, lm_writer, prompted_environment
from memalpha.paths import user_path
from memalpha.policy import read_spec

REPLY_TOKENS = 512  # of a writer or reader in this process: what a laptop generates in a minute
MIN_CONTEXT = 1024  # tokens: the instructions of a prompted writer alone are about 700


def load_model(path_or_hub_id: str) -> FlaxModel:
    """The model of a folder, GGUF file, hub id or name of `models`, with a line on stderr.

    Raises ValueError, which says what to do, for what cannot be loaded.
    """
    # A CPU computes in float32 whatever is stored: bfloat16 is slower there.
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    with _loading(path_or_hub_id):
        return FlaxModel.load(str(user_path(path_or_hub_id)), dtype)


def open_agent(
    checkpoint: str, store: str, namespace: str, reader: str | None = None
) -> MemoryAgent:
    """The writer of a run, or a pretrained chat model that is prompted to write; `reader`: the
    pretrained model that answers, by default the offline rules. One model for both is loaded once.

    Raises ValueError for what is neither, a checkpoint that is missing, or an unusable store.
    """
    engine = None
    if read_spec(checkpoint) is not None:
        with _loading(checkpoint):
            agent = MemoryAgent.from_checkpoint(checkpoint, store=store, namespace=namespace)
    else:
        engine = load_model(checkpoint)
        agent = prompted_agent(engine, writer_environment(engine), store, namespace)
    if reader:
        same = engine is not None and _place(reader) == _place(checkpoint)
        let_answer(agent, engine if same else load_model(reader))
    return agent


def prompted_agent(
    engine: LanguageModel, env: Environment, store: str, namespace: str
) -> MemoryAgent:
    """The agent of a chat model that writes, prompted and untrained."""
    write = lm_writer(env, engine, on_failure=env.reading.failures.append)
    return MemoryAgent(env, write, Store(store), namespace, engine.name)


def writer_environment(engine: FlaxModel) -> Environment:
    """Instructions and sizes for a model in this process, within its context.

    Raises ValueError where the context is too short for the instructions.
    """
    if engine.context_tokens < MIN_CONTEXT:
        raise ValueError(
            f"{engine.name} has a context of {engine.context_tokens} tokens, a prompted writer"
            f" needs {MIN_CONTEXT}: take another model"
        )
    env = prompted_environment(engine.tokenizer)
    response = min(REPLY_TOKENS, engine.context_tokens // 4)
    prompt = min(env.prompt.prompt_tokens, engine.context_tokens - response)
    return env.replace(prompt_tokens=prompt, response_tokens=response)


def let_answer(agent: MemoryAgent, engine: LanguageModel) -> None:
    """Makes a model the reader of an agent."""
    local = isinstance(engine, FlaxModel)
    size = {"max_new_tokens": min(REPLY_TOKENS, engine.context_tokens // 4)} if local else {}
    read = lm_reader(engine, **size, on_failure=agent.env.reading.failures.append)
    agent.env = agent.env.replace(answerer=read)


def _place(path_or_hub_id: str) -> Path:
    return find_folder(str(user_path(path_or_hub_id))).resolve()


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """A line on stderr while something is loaded, and how long it took."""
    begin, console = time.monotonic(), Console(stderr=True, highlight=False, markup=False)
    with console.status(f"loading {name}"):
        yield
    if console.is_terminal:
        print(f"{name}: loaded in {time.monotonic() - begin:.0f} s", file=sys.stderr)
