"""The writer of a run, or a pretrained model that writes in this process; progress on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from rich.console import Console

from memalpha.episode import Environment, Writer
from memalpha.lm.local import FlaxModel
from memalpha.lm.roles import lm_writer, prompted_environment
from memalpha.paths import user_path
from memalpha.policy import load_policy, read_spec

REPLY_TOKENS = 128  # of a writer or reader in this process: seconds on a laptop
MIN_CONTEXT = 1024  # tokens: the instructions of a prompted writer alone are about 700


def load_model(path_or_hub_id: str) -> FlaxModel:
    """The model of a folder, GGUF file, hub id or name of `models`, with a line on stderr.

    Raises ValueError, which says what to do, for what cannot be loaded.
    """
    # A CPU computes in float32 whatever is stored: bfloat16 is slower there.
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    with _loading(path_or_hub_id):
        engine = FlaxModel.load(str(user_path(path_or_hub_id)), dtype)
    engine.on_progress = _say_progress
    return engine


def open_writer(checkpoint: str) -> tuple[Environment, Writer, str, FlaxModel | None]:
    """Environment, writer and name of a run or of a pretrained model, and that model.

    Raises ValueError, which says what to do, for what is neither or cannot be loaded.
    """
    if read_spec(checkpoint) is not None:
        with _loading(checkpoint):
            policy = load_policy(checkpoint)
        return policy.env, policy.writer(), policy.name, None
    engine = load_model(checkpoint)
    env = writer_environment(engine)
    write = lm_writer(env, engine, on_failure=env.reading.failures.append)
    return env, write, engine.name, engine


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


def _say_progress(done: int, chats: int, tokens_per_second: float) -> None:
    print(f"{done} of {chats} replies, {tokens_per_second:.0f} tokens/s", file=sys.stderr)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """A line on stderr while something is loaded, and how long it took."""
    begin, console = time.monotonic(), Console(stderr=True, highlight=False, markup=False)
    with console.status(f"loading {name}"):
        yield
    if console.is_terminal:
        print(f"{name}: loaded in {time.monotonic() - begin:.0f} s", file=sys.stderr)
