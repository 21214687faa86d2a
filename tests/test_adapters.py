"""Adapters as a folder: what is written is read back, on the same base model and no other."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from memalpha import adapters, lora
from memalpha.episode import MemorySpec
from memalpha.lora import LoraConfig
from memalpha.model import Transformer, init_params
from memalpha.policy import load_policy, read_spec
from memalpha.policy_spec import EnvironmentSpec, PolicySpec, PromptSettings, RetrievalSettings
from memalpha.weights import export

LORA = LoraConfig(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def trained(micro, tmp_path_factory):
    """A base model on disk, its parameters, adapters in the middle of training, and their spec."""
    folder = tmp_path_factory.mktemp("models") / "base"
    base = init_params(micro.model, jax.random.key(0))
    export(base, micro.model, folder, micro.tokenizer)
    flat, unravel = ravel_pytree(lora.init(base, LORA, jax.random.key(1)))
    ours = unravel(0.3 * jax.random.normal(jax.random.key(2), flat.shape))
    prompt = PromptSettings("brief", "lines", (True, True, True), 2, 320, 32)
    env = EnvironmentSpec(prompt, MemorySpec(64, 128, 16), RetrievalSettings("bm25", 512, 10))
    spec = PolicySpec("a writer", str(folder), str(folder), micro.model, LORA, env)
    return base, ours, spec


@pytest.fixture
def folder(trained, tmp_path):
    base, ours, spec = trained
    return adapters.write(tmp_path / "writer", ours, base, spec)


def rewrite(folder, change, metadata=None):
    """Changes the tensors of a folder in place."""
    path = folder / adapters.WEIGHTS
    with safe_open(path, "np") as file:
        metadata = metadata or file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


def test_written_and_read_back_to_the_precision_of_the_file(trained, folder):
    base, ours, spec = trained
    again = adapters.read(folder, base, spec)
    rounded = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), ours)
    jax.tree.map(np.testing.assert_array_equal, again, rounded)
    assert read_spec(folder) == replace(spec, model=replace(spec.model, attention="auto"))


def test_the_folder_is_a_writer_for_load_policy(trained, folder):
    base, ours, spec = trained
    policy = load_policy(folder)
    merged = lora.merge(adapters.read(folder, base, spec), base, LORA)
    jax.tree.map(np.testing.assert_allclose, policy.params, merged)
    assert policy.env.prompt.dialect == "lines" and policy.env.prompt.template.name == "brief"


def test_a_shipped_name_is_its_folder(trained, folder, monkeypatch):
    monkeypatch.setitem(adapters.SHIPPED, "our-writer", folder)
    assert load_policy("our-writer").name == "our-writer"
    assert adapters.find("~/x") != "~/x" and adapters.find("our-writer") == folder


def test_the_fingerprint_does_not_depend_on_the_dtype(trained):
    base, _, _ = trained
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    other = jax.tree.map(lambda x: x * 1.1, base)
    assert adapters.fingerprint(base) == adapters.fingerprint(half) != adapters.fingerprint(other)


def test_another_base_model_is_refused(trained, folder):
    base, _, spec = trained
    other = jax.tree.map(lambda x: x * 1.1, base)
    with pytest.raises(ValueError, match="for another model than .*revision"):
        adapters.read(folder, other, spec)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.pop(min(t)), "lacks base_model.*down_proj.lora_A"),
        (lambda t: t.update(more=np.zeros(2, np.float16)), "1 tensors too many, such as more"),
        (lambda t: t.update({min(t): np.zeros((2, 2), np.float16)}), "has shape"),
    ],
)
def test_other_tensors_than_the_spec_says_are_refused(trained, folder, change, said):
    base, _, spec = trained
    rewrite(folder, change)
    with pytest.raises(ValueError, match=said):
        adapters.read(folder, base, spec)


def test_a_damaged_file_is_named(trained, folder):
    base, _, spec = trained
    path = folder / adapters.WEIGHTS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="adapter_model.safetensors is damaged"):
        adapters.read(folder, base, spec)


def test_nothing_is_written_over_and_the_whole_model_is_no_adapter(trained, folder, tmp_path):
    base, ours, spec = trained
    with pytest.raises(ValueError, match="exists already"):
        adapters.write(folder, ours, base, spec)
    with pytest.raises(ValueError, match="has no adapters"):
        adapters.write(tmp_path / "x", base, base, replace(spec, lora=LoraConfig()))


def test_the_settings_are_those_of_peft(folder):
    settings = json.loads((folder / adapters.CONFIG).read_text())
    assert settings["r"] == 3 and settings["lora_alpha"] == 6.0
    assert settings["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


def test_live_peft_gives_the_same_logits(trained, folder):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base, ours, spec = trained
    theirs = AutoModelForCausalLM.from_pretrained(spec.base)
    theirs = peft.PeftModel.from_pretrained(theirs, str(folder)).eval()
    tokens = jnp.arange(20)[None]
    params = lora.merge(adapters.read(folder, base, spec), base, LORA)
    from memalpha.model import logits

    hidden, _ = Transformer(spec.model).apply(
        {"params": params}, tokens, jnp.arange(20)[None], tokens >= 0
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(np.array(tokens))).logits.float().numpy()
    np.testing.assert_allclose(logits(params, hidden, spec.model), expected, atol=1e-4)
