"""`policy.json`: what is written is read again, and what is wrong in it is named."""

import json
from dataclasses import replace

import jax
import pytest

from memalpha.checkpoint import open_checkpoints, save
from memalpha.episode import MemorySpec
from memalpha.learner import init_state
from memalpha.lora import LoraConfig
from memalpha.model import ModelConfig, init_params
from memalpha.model_config import RopeScaling
from memalpha.optimizer import OptimizerConfig, make_optimizer
from memalpha.policy import load_policy, read_spec
from memalpha.policy_spec import (
    POLICY,
    EnvironmentSpec,
    PolicySpec,
    PromptSettings,
    RetrievalSettings,
    write_spec,
)

SPEC = PolicySpec(
    title="a title",
    tokenizer="tokenizer",
    base="",
    model=ModelConfig(
        vocab_size=37,
        hidden_size=12,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=6,
        mlp_size=10,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
        window=3,
        window_layers=(1,),
        window_rope_theta=1e4,
    ),
    lora=LoraConfig(rank=2, alpha=4.0),
    environment=EnvironmentSpec(
        PromptSettings("compact", "qwen_agent", (True, False, True), 3, 320, 128),
        MemorySpec(64, 48, 16, (1, 9999)),
        RetrievalSettings("scann", 256, 7),
    ),
    stage="warm_start",
)


def test_what_is_written_is_read_again(micro, tmp_path):
    write_spec(tmp_path, SPEC)
    spec = read_spec(tmp_path)
    assert spec == SPEC and isinstance(spec.model.rope_scaling, RopeScaling)
    assert hash(spec.model) == hash(SPEC.model)  # it can be a static argument of a jitted function
    assert [path.name for path in tmp_path.iterdir()] == [POLICY]
    env = spec.environment.build(micro.tokenizer)
    assert (env.prompt.template.name, env.prompt.enabled) == ("compact", (True, False, True))
    assert (env.memory, env.reading.top_k) == (MemorySpec(64, 48, 16, (1, 9999)), 7)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("colour", "red", "policy.json: unknown fields colour"),
        ("model.experts", 8, "policy.json: model: unknown fields experts"),
        ("title", 3, "policy.json: title: 3 is no str"),
        ("model.num_layers", "two", "policy.json: model: num_layers: 'two' is no int"),
        ("model.num_layers", 2.5, "model: num_layers: 2.5 is no int"),
        ("model.num_layers", None, "model: num_layers: None is no int"),
        ("model.num_layers", True, "model: num_layers: True is no int"),
        ("model.tie_embeddings", 1, "model: tie_embeddings: 1 is no bool"),
        ("model.window_layers", "01", "model: window_layers: '01' is no list"),
        ("model.window_layers", [0.5], "model: window_layers: 0.5 is no int"),
        ("model.rope_scaling", [32.0, 1.0], "model: rope_scaling: .* has 2 items and not 4"),
        ("model.head_dim", 7, "policy.json: model: ModelConfig: head_dim 7 is odd"),
        ("lora.rank", -1, "policy.json: lora: LoraConfig: rank -1"),
        ("environment.prompt.enabled", [True], "prompt: enabled: .* has 1 items and not 3"),
        ("environment.memory", [64], "environment: memory: a JSON object is expected"),
        ("environment.reading.top_k", "7", "environment: reading: top_k: '7' is no int"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_field(tmp_path, place, value, message):
    write_spec(tmp_path, SPEC)
    plain = json.loads((tmp_path / POLICY).read_text())
    *parents, name = place.split(".")
    inner = plain
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    (tmp_path / POLICY).write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=message):
        read_spec(tmp_path)


def test_a_missing_field_and_broken_json_are_named(tmp_path):
    write_spec(tmp_path, SPEC)
    text = (tmp_path / POLICY).read_text()
    plain = json.loads(text)
    del plain["title"]
    (tmp_path / POLICY).write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="policy.json: .*title"):
        read_spec(tmp_path)
    for broken in (text[:-9].encode(), b"", b"\xff{}"):
        (tmp_path / POLICY).write_bytes(broken)
        with pytest.raises(ValueError, match="policy.json is no JSON"):
            read_spec(tmp_path)
    (tmp_path / POLICY).write_text("[]")
    with pytest.raises(ValueError, match="policy.json: a JSON object is expected"):
        read_spec(tmp_path)


# A config.json as runs left it before there was a policy.json, without what no writer needs.
OLD = {
    "title": "an old run",
    "seed": 3,
    "tokenizer": {"path": "", "vocab_size": 1000},
    "model": {
        "path": "",
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "mlp_size": 32,
        "dtype": "float32",
        "param_dtype": "float32",
        "remat": "none",
        "scan_layers": False,
        "attention": "auto",
    },
    "prompt": {
        "template": "compact",
        "dialect": "qwen3",
        "recent": 2,
        "tokens": 320,
        "response_tokens": 16,
    },
    "memory": {
        "core": True,
        "semantic": False,
        "episodic": True,
        "entry_tokens": 24,
        "core_tokens": 64,
        "max_calls": 8,
        "first_ids": [1, 9999],
    },
    "reward": {"retriever": "bm25", "dimensions": 512, "top_k": 5, "r1": 1.0},
    "rl": {"algorithm": "grpo", "steps": 7},
}


def test_a_workdir_from_before_policy_json_is_opened(micro, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    micro.tokenizer.save_pretrained(tmp_path / "tokenizer")
    params = init_params(micro.model, jax.random.key(3))
    with open_checkpoints(tmp_path / "checkpoints" / "rl") as checkpoints:
        save(checkpoints, 7, init_state(params, make_optimizer(OptimizerConfig(1e-3))))
    policy = load_policy(tmp_path)
    assert policy.name == "an old run, rl step 7"
    assert policy.model == replace(micro.model, attention="blocks")
    prompt = policy.env.prompt
    assert (prompt.enabled, prompt.recent) == ((True, False, True), 2)
    assert (prompt.prompt_tokens, prompt.response_tokens) == (320, 16)
    assert policy.env.memory == MemorySpec(24, 64, 8, (1, 9999))
    assert (policy.env.reading.retriever, policy.env.reading.top_k) == ("bm25", 5)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), policy.params, params)))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"prompt": {}}, "config.json is no config of a run: KeyError\\('template'\\)"),
        ({"prompt": OLD["prompt"] | {"recent": "2"}}, "prompt: recent: '2' is no int"),
        ({"lora": {"rnk": 2}}, "config.json is no config of a run: .*rnk"),
    ],
)
def test_what_is_wrong_in_an_old_config_is_named(micro, tmp_path, place, message):
    (tmp_path / "config.json").write_text(json.dumps(OLD | place))
    micro.tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=message):
        read_spec(tmp_path)
