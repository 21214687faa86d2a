"""Shared by all tests: a CPU backend that compiles fast, and one small environment."""

import os
import shutil
import tempfile

# Before jax is imported: at the sizes of the tests, compiling costs more than running.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# One folder of compiled programs for this session: the workers of xdist and the programs that tests
# start inherit the variable, so that what one of them has compiled the others load.
CACHE_IS_OURS = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if CACHE_IS_OURS:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="memalpha_tests_")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

from dataclasses import replace  # noqa: E402
from types import SimpleNamespace  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from chat_server import ChatServer  # noqa: E402

from memalpha.data import synthetic  # noqa: E402
from memalpha.data.instance import Instance  # noqa: E402
from memalpha.episode import Environment, MemorySpec  # noqa: E402
from memalpha.model import ModelConfig  # noqa: E402
from memalpha.prompts import PromptSpec, load_template, template_fragments  # noqa: E402
from memalpha.tokenizer import train_tokenizer  # noqa: E402
from memalpha.tools import fixed_fragments  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_unconfigure():
    if CACHE_IS_OURS:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def bound_memory():
    """Forgets compiled programs after each module: a worker need not hold those of all of them."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def micro() -> SimpleNamespace:
    """A trained tokenizer with its phrases, an Environment around it, and a micro ModelConfig."""
    phrases = template_fragments(load_template("compact"))
    phrases += [*fixed_fragments("qwen3"), *synthetic.PHRASES]
    instances = synthetic.generate_many(list(synthetic.GENERATORS), "train", 10)
    corpus = [chunk for instance in instances for chunk in instance.chunks]
    tokenizer = train_tokenizer(corpus, 1000, phrases)
    prompt = PromptSpec(
        tokenizer, load_template("compact"), recent=2, prompt_tokens=320, response_tokens=128
    )
    env = Environment(prompt, MemorySpec(entry_tokens=64, core_tokens=128, max_calls=16))
    model = ModelConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_size=32,
    )
    return SimpleNamespace(tokenizer=tokenizer, phrases=phrases, env=env, model=model)


@pytest.fixture(scope="session")
def long_instance() -> Instance:
    """Two chunks of facts with their notes; the second is too long for a prompt of `micro`."""
    instance = synthetic.generate("facts", "train", 0, chunks=12)
    notes = instance.metadata["notes"]
    chunks = (instance.chunks[0], "\n".join(instance.chunks[1:]))
    joined = {"notes": [notes[0], [note for of_chunk in notes[1:] for note in of_chunk]]}
    return replace(instance, chunks=chunks, metadata=instance.metadata | joined)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def tab(browser):
    """A page of it; `problems` holds what it said, failed at, or asked the network for."""
    made = browser.new_page()
    made.problems = []
    made.on("console", lambda message: made.problems.append(message.text))
    made.on("pageerror", lambda error: made.problems.append(str(error)))
    made.on(
        "request",
        lambda r: None if r.url[:5] in ("file:", "data:") else made.problems.append(r.url),
    )
    yield made
    made.close()


@pytest.fixture
def chat_server():
    """An OpenAI-compatible server on this machine; see `chat_server.ChatServer`."""
    made = ChatServer()
    yield made
    made.stop()
