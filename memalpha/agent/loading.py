"""The agent of a run or of pretrained models that run in this process."""

from pathlib import Path

from memalpha.agent.memory_agent import MemoryAgent
from memalpha.agent.store import Store
from memalpha.agent.writers import REPLY_TOKENS, load_model, open_writer
from memalpha.episode import Environment
from memalpha.hub import find_folder
from memalpha.lm.interface import LanguageModel
from memalpha.lm.local import FlaxModel
from memalpha.lm.roles import lm_reader, lm_writer
from memalpha.paths import user_path


def open_agent(
    checkpoint: str, store: str, namespace: str, reader: str | None = None
) -> MemoryAgent:
    """The writer of a run, or a pretrained chat model that is prompted to write; `reader`: the
    pretrained model that answers, by default the offline rules. One model for both is loaded once.

    Raises ValueError for what is neither, a checkpoint that is missing, or an unusable store.
    """
    env, write, name, engine = open_writer(checkpoint)
    agent = MemoryAgent(env, write, Store(store), namespace, name)
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


def let_answer(agent: MemoryAgent, engine: LanguageModel) -> None:
    """Makes a model the reader of an agent."""
    local = isinstance(engine, FlaxModel)
    # Small models go on after their answer, and thinking is off where the model runs here.
    size = {"max_new_tokens": min(REPLY_TOKENS, engine.context_tokens // 4)} if local else {}
    read = lm_reader(engine, **size, one_line=local, on_failure=agent.env.reading.failures.append)
    agent.env = agent.env.replace(answerer=read)


def _place(path_or_hub_id: str) -> Path:
    return find_folder(str(user_path(path_or_hub_id))).resolve()
