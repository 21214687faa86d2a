"""Shared by all tests: a CPU backend that compiles fast, and one small environment."""

import os

# Before jax is imported: at the sizes of the tests, compiling costs more than running.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from types import SimpleNamespace  # noqa: E402

import pytest  # noqa: E402

from memalpha.data import synthetic  # noqa: E402
from memalpha.model import ModelConfig  # noqa: E402
from memalpha.prompts import load_template, template_fragments  # noqa: E402
from memalpha.rollout import Environment  # noqa: E402
from memalpha.tokenizer import train_tokenizer  # noqa: E402
from memalpha.tools import fixed_fragments  # noqa: E402


@pytest.fixture(scope="session")
def micro() -> SimpleNamespace:
    """A trained tokenizer with its phrases, an Environment around it, and a micro ModelConfig."""
    phrases = template_fragments(load_template("compact"))
    phrases += [*fixed_fragments("qwen3"), *synthetic.PHRASES]
    instances = synthetic.generate_many(list(synthetic.FAMILIES), "train", 10)
    corpus = [chunk for instance in instances for chunk in instance.chunks]
    tokenizer = train_tokenizer(corpus, 1000, phrases)
    env = Environment(
        tokenizer=tokenizer,
        template=load_template("compact"),
        recent=2,
        prompt_tokens=320,
        response_tokens=128,
        entry_tokens=64,
        core_tokens=128,
        max_calls=16,
    )
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
