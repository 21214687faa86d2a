"""Builds the objects of `memalpha` from a config; `memalpha` itself never sees a config."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from experiments.lib.instances import corpus_texts, is_synthetic
from experiments.lib.readers import build_engines, probe, with_readers
from memalpha import adapters, lora
from memalpha.data import PHRASES, synthetic
from memalpha.episode import Environment, MemorySpec
from memalpha.hub import find_folder, read_config
from memalpha.learner import TrainState, init_state
from memalpha.lm.interface import Counted
from memalpha.lora import LoraConfig
from memalpha.model import ModelConfig, Params, init_params
from memalpha.objective import LossConfig
from memalpha.optimizer import OptimizerConfig, make_optimizer
from memalpha.paths import user_path
from memalpha.policy import Policy, load_policy, read_spec
from memalpha.policy_spec import EnvironmentSpec, PolicySpec, PromptSettings, RetrievalSettings
from memalpha.prompts import load_template, template_fragments
from memalpha.sharding import (
    check_heads,
    make_mesh,
    mesh_of,
    shard,
    shardings,
    spec_of,
)
from memalpha.tokenizer import load_tokenizer, stated_stops, train_tokenizer
from memalpha.tools import fixed_fragments
from memalpha.weights import load_params

TOKENIZER = "tokenizer"  # folder in the workdir for a tokenizer that the run trained
# Fields of config.model that also apply to a loaded model.
CHOICES = ("dtype", "param_dtype", "remat", "scan_layers", "attention")


def build_tokenizer(config: ConfigDict, workdir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of `config.tokenizer.path`, else of `config.model.path`, else one that is
    trained on the training split and stored in the workdir."""
    if config.tokenizer.path or config.model.path:
        return load_tokenizer(config.tokenizer.path or config.model.path)
    folder = workdir / TOKENIZER
    if jax.process_index() == 0 and not (folder / "tokenizer.json").exists():
        template = load_template(config.prompt.template)
        phrases = [*template_fragments(template), *fixed_fragments(config.prompt.dialect)]
        corpus = list(corpus_texts(config))
        if any(map(is_synthetic, config.data.sources)):
            phrases += synthetic.PHRASES
        if not all(map(is_synthetic, config.data.sources)):
            phrases += PHRASES
        aside = workdir / "tokenizer.tmp"
        train_tokenizer(corpus, config.tokenizer.vocab_size, phrases).save_pretrained(aside)
        aside.rename(folder)  # so that the folder is complete or missing
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tokenizer")
    return load_tokenizer(str(folder))


def environment_spec(config: ConfigDict) -> EnvironmentSpec:
    """The part of the environment that is plain values."""
    prompt, memory, reward = config.prompt, config.memory, config.reward
    return EnvironmentSpec(
        PromptSettings(
            template=prompt.template,
            dialect=prompt.dialect,
            enabled=(memory.core, memory.semantic, memory.episodic),
            recent=prompt.recent,
            prompt_tokens=prompt.tokens,
            response_tokens=prompt.response_tokens,
            stops=stated_stops(find_folder(config.model.path)) if config.model.path else (),
        ),
        MemorySpec(
            entry_tokens=memory.entry_tokens,
            core_tokens=memory.core_tokens,
            max_calls=memory.max_calls,
            first_ids=tuple(memory.first_ids),
        ),
        RetrievalSettings(reward.retriever, reward.dimensions, reward.top_k),
    )


def policy_spec(config: ConfigDict, model: ModelConfig) -> PolicySpec:
    """The contents of `policy.json`, from which the writer of a run is loaded without a config."""
    return PolicySpec(
        title=config.title,
        tokenizer=config.tokenizer.path or config.model.path or TOKENIZER,
        base=config.model.path,
        model=model,
        lora=build_lora(config),
        environment=environment_spec(config),
    )


def build_environment(
    config: ConfigDict,
    tokenizer: PreTrainedTokenizerBase,
    engines: Mapping[str, Counted] | None = None,
) -> Environment:
    """The environment of a config; `engines` None: those of reader and judge are built here."""
    engines = build_engines(config, build_mesh(config)) if engines is None else engines
    return with_readers(environment_spec(config).build(tokenizer), config, engines)


def find_model(config: ConfigDict) -> tuple[Path, ModelConfig]:
    """The local folder of `config.model.path`, downloaded if necessary, and its configuration.

    Raises:
        ValueError: no such model, or one that cannot be loaded.
    """
    folder = find_folder(config.model.path)
    choices = {name: config.model[name] for name in CHOICES}
    return folder, read_config(folder, value_head=has_critic(config), **choices)


def model_config(config: ConfigDict, vocab_size: int) -> ModelConfig:
    """The configuration of a model that is trained from scratch."""
    sizes = {name: value for name, value in config.model.to_dict().items() if name != "path"}
    return ModelConfig(vocab_size=vocab_size, value_head=has_critic(config), **sizes)


def has_critic(config: ConfigDict) -> bool:
    return config.rl.algorithm == "ppo"


def build_model(config: ConfigDict, vocab_size: int) -> tuple[ModelConfig, Params]:
    """The model of `config.model.path`, or a model from scratch, and its parameters, sharded over
    the mesh of the config.

    Raises:
        ValueError: the model cannot be loaded, has fewer tokens than the tokenizer, or is not
            divisible by the mesh; or the mesh does not match the devices.
    """
    mesh = build_mesh(config)
    if config.model.path:
        folder, model = find_model(config)
        if vocab_size > model.vocab_size:
            raise ValueError(
                f"the tokenizer has {vocab_size} tokens, but the model in {folder} only"
                f" {model.vocab_size}: set config.tokenizer.path to the tokenizer of that model"
            )
        parameter_shardings(model, mesh)
        where = None if mesh is None else lambda path: NamedSharding(mesh, spec_of(path))
        return model, load_params(folder, model, where)
    model = model_config(config, vocab_size)
    init, key = partial(init_params, model), jax.random.fold_in(jax.random.key(config.seed), 0)
    if mesh is not None:
        init = jax.jit(init, out_shardings=parameter_shardings(model, mesh))
    return model, init(key)


def open_trained(workdir: str | Path) -> tuple[ConfigDict, Policy]:
    """The config and the trained writer of a run, with the reader and judge of the config. Ends the
    program if there is no trained writer, or if reader or judge do not answer."""
    try:
        policy = load_policy(workdir, "rl")
        config = ConfigDict(json.loads((user_path(workdir) / "config.json").read_text()))
        engines = build_engines(config, build_mesh(config))
        env = with_readers(policy.env, config, engines)
        probe(engines)
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))
    return config, replace(policy, env=env)


def open_stage(config: ConfigDict, workdir: str | Path, stage: str, env: Environment) -> Policy:
    """The writer of the last checkpoint of a stage ("rl" or "warm_start"), in `env`. Without a warm
    start, "warm_start" is the model that the run started from."""
    if stage == "warm_start" and not config.warm_start.steps:
        model, base = build_model(config, len(env.prompt.tokenizer))
        params = first_whole(config, base)
        return Policy(f"{config.title}, as it was", model, params, env)
    return replace(load_policy(workdir, stage), env=env)


def build_mesh(config: ConfigDict) -> Mesh | None:
    sizes = config.mesh
    return make_mesh(sizes.data, sizes.fsdp, sizes.tensor)


def parameter_shardings(model: ModelConfig, mesh: Mesh | None):
    """The shardings of the parameters; ValueError if the model is not divisible by the mesh."""
    if mesh is None:
        return None
    check_heads(mesh, model.num_kv_heads)
    return shardings(jax.eval_shape(partial(init_params, model), jax.random.key(0)), mesh)


def build_lora(config: ConfigDict) -> LoraConfig:
    return LoraConfig(config.lora.rank, config.lora.alpha, config.lora.layers)


def build_loss(config: ConfigDict) -> LossConfig:
    rl = config.rl
    return LossConfig(
        algorithm=rl.algorithm,
        aggregation=rl.aggregation,
        clip_low=rl.clip_low,
        clip_high=rl.clip_high,
        kl=rl.kl,
        kl_coef=rl.kl_coef,
        entropy_coef=rl.entropy_coef,
        is_cap=rl.is_cap or None,
        value_coef=rl.value_coef,
        value_clip=rl.value_clip or None,
        gamma=rl.gae_gamma,
        lam=rl.gae_lambda,
        temperature=rl.temperature,
        dr_grpo_constant=config.prompt.response_tokens,
        head_chunk=rl.head_chunk,
    )


def first_trained(config: ConfigDict, params: Params) -> Params:
    """What is trained, before its first update: a copy of the model, new adapters for it, or those
    of `config.lora.path`.

    Raises ValueError where these are for another model, or of another rank than the config's.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    first = lora.init(params, build_lora(config), key)
    if config.lora.path:
        spec = read_adapter_spec(config)
        given = adapters.read(adapters.find(config.lora.path), params, spec)
        first = unflatten_dict(flatten_dict(first) | flatten_dict(given))  # keeps a value head
    return shard(first, mesh_of(params))


def first_whole(config: ConfigDict, base: Params) -> Params:
    """The whole model that training starts from: `base`, with the adapters of `config.lora.path`
    where there are any."""
    if not config.lora.path:
        return base
    return lora.merge(first_trained(config, base), base, build_lora(config))


def read_adapter_spec(config: ConfigDict) -> PolicySpec:
    """What the adapters of `config.lora.path` are; ValueError where they do not fit the config."""
    path, asked = config.lora.path, build_lora(config)
    folder = adapters.find(path)
    spec = read_spec(folder)
    if spec is None or not (folder / adapters.WEIGHTS).is_file():
        raise ValueError(f"config.lora.path={path!r} is no folder of adapters")
    if spec.lora != asked:
        raise ValueError(f"config.lora.path={path!r} has {spec.lora}, config.lora says {asked}")
    return spec


def copy_state(trained: Params, optimizer) -> TrainState:
    """The state before the first step of a stage, which leaves `trained` as it is."""
    return init_state(jax.tree.map(jnp.copy, trained), optimizer)


def build_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    rl = config.rl
    updates = rl.epochs * rl.minibatches if rl.algorithm == "ppo" else 1  # per step
    return make_optimizer(
        OptimizerConfig(
            learning_rate=rl.learning_rate,
            warmup_steps=rl.warmup_steps * updates,
            total_steps=rl.steps * updates + 1,
            schedule=rl.schedule,
            optimizer=rl.optimizer,
            weight_decay=rl.weight_decay,
            max_grad_norm=rl.max_grad_norm or None,
            b2=rl.b2,
        )
    )
