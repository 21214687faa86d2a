"""From a config to the objects of `memalpha`, which never sees a config itself."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from experiments.readers import build_engines, check_readers, probe, with_readers
from memalpha.baselines.scripted import Flaws, perfect, poor_response
from memalpha.data import PHRASES, built_sets, load_source, synthetic
from memalpha.data.batches import batch_indices
from memalpha.data.instance import Instance
from memalpha.data.notes import add_notes
from memalpha.data.sizes import Sizes
from memalpha.learner import LossConfig, make_optimizer
from memalpha.lm import Counted
from memalpha.lora import LoraConfig
from memalpha.losses import group_ids
from memalpha.model import ModelConfig, Params, init_params
from memalpha.policy import Policy, environment, find_model, load_run, model_config
from memalpha.prompts import load_template, template_fragments
from memalpha.retrieval import make_index
from memalpha.rollout import Environment, Turn, Writer, scripted_writer
from memalpha.sharding import check_heads, check_rows, gather, make_mesh, shardings, spec_of
from memalpha.tokenizer import load_tokenizer, train_tokenizer
from memalpha.tools import fixed_fragments, format_response
from memalpha.weights import load_params

PREFIX = "synthetic_"
CORPUS_INSTANCES = 200  # of each source, for a tokenizer trained on the spot


def is_synthetic(source: str) -> bool:
    return source.startswith(PREFIX)


def build_instances(
    config: ConfigDict, source: str, split: str, count: int, first: int = 0, chunks: int = 0
) -> list[Instance]:
    """Instances of one source. `chunks` 0: as long as in training. Real ones come from the folder
    `config.data.built`, where it is given: as they are there, and at most `count`."""
    data = config.data
    chunks = chunks or data.chunks
    if is_synthetic(source):
        return [
            synthetic.generate(
                source.removeprefix(PREFIX),
                split,
                first + index,
                seed=config.seed,
                chunks=chunks,
                facts_per_chunk=data.facts_per_chunk,
                filler_share=data.filler_share,
                max_questions=data.max_questions,
            )
            for index in range(count)
        ]
    if built := data.get("built", ""):
        return _read_built(source, built, split, data.max_questions)[first : first + count]
    sizes = (chunks, data.chunk_tokens, data.max_questions)
    return _load(source, data.dir, split, first + count, config.seed, *sizes)[first:]


def build_every(
    config: ConfigDict, split: str, count: int, first: int = 0, chunks: int = 0
) -> list[Instance]:
    """`build_instances` of every source of the config, source by source."""
    return [
        instance
        for source in config.data.sources
        for instance in build_instances(config, source, split, count, first, chunks)
    ]


@lru_cache(maxsize=32)  # read by the tokenizer, by both stages of training and at every evaluation
def _load(source: str, folder: str, split: str, count: int, seed: int, *sizes: int):
    asked = Sizes(count, *sizes)
    return _with_notes(load_source(source, folder, split, asked, seed, rough_tokens))


@lru_cache(maxsize=32)
def _read_built(source: str, folder: str, split: str, questions: int) -> list[Instance]:
    built = built_sets.open_source(folder, source, split)
    return _with_notes([replace(i, questions=i.questions[:questions]) for i in built])


def _with_notes(instances: list[Instance]) -> list[Instance]:
    try:
        return [add_notes(instance) for instance in instances]
    except ValueError:  # chunks of another form; a scripted writer says that there are no notes
        return instances


def rough_tokens(text: str) -> int:
    """Words between white space, and bytes past ASCII: scripts without spaces count by those. No
    tokenizer can count yet: it is trained on the instances."""
    ascii_letters = sum(map(str.isascii, text))
    return len(text.split()) + len(text.encode()) - ascii_letters


def training_batches(config: ConfigDict) -> Callable[[int, int], list[Instance]]:
    """A function (step, size) -> the `size` instances of a training step.

    `step` is the number of the step, counted from 0: the number of updates done before it. A
    checkpoint carries this number as its name, so a run resumed from checkpoint n asks for step n
    next and gets what the uninterrupted run got; no position is stored beside it. The same
    (step, size) gives the same instances in any process, but every call of a run has to pass the
    same size: the step stands at instance step * size of an endless order.

    In that order the sources take turns. With S sources instance number n is number n // S of its
    own source, called its turn: synthetic instances are generated by that number and never
    repeated; real ones come in epochs, and their turn is the `step` that `batch_indices` gets, with
    a batch of one.
    """
    sources = config.data.sources
    fixed = {
        source: build_instances(config, source, "train", config.data.instances)
        for source in sources
        if not is_synthetic(source)
    }
    longest = max((len(i.chunks) for pool in fixed.values() for i in pool), default=0)
    if longest > config.data.chunks:
        raise ValueError(
            f"config.data.chunks={config.data.chunks}, but there are instances of {longest} chunks"
        )

    def pick(step: int, size: int) -> Iterator[Instance]:
        for slot in range(step * size, (step + 1) * size):
            source, turn = sources[slot % len(sources)], slot // len(sources)
            if source in fixed:
                pool = fixed[source]
                yield pool[batch_indices(len(pool), 1, config.seed, turn)[0]]
            else:
                yield build_instances(config, source, "train", 1, first=turn)[0]

    return lambda step, size: list(pick(step, size))


def build_tokenizer(config: ConfigDict, workdir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the config, else that of the model it starts from, else one trained on the
    training split and kept in the workdir."""
    if config.tokenizer.path or config.model.path:
        return load_tokenizer(config.tokenizer.path or config.model.path)
    folder = workdir / "tokenizer"
    if jax.process_index() == 0 and not (folder / "tokenizer.json").exists():
        template = load_template(config.prompt.template)
        phrases = [*template_fragments(template), *fixed_fragments(config.prompt.dialect)]
        corpus = list(_corpus(config))
        if any(map(is_synthetic, config.data.sources)):
            phrases += synthetic.PHRASES
        if not all(map(is_synthetic, config.data.sources)):
            phrases += PHRASES
        aside = workdir / "tokenizer.tmp"
        train_tokenizer(corpus, config.tokenizer.vocab_size, phrases).save_pretrained(aside)
        aside.rename(folder)  # whole or not at all
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tokenizer")
    return load_tokenizer(str(folder))


def _corpus(config: ConfigDict) -> Iterator[str]:
    for source in config.data.sources:
        count = CORPUS_INSTANCES if is_synthetic(source) else config.data.instances
        for instance in build_instances(config, source, "train", count):
            yield from instance.chunks
            yield from (question.question for question in instance.questions)
            for notes in instance.metadata.get("notes", ()):
                yield from (note["content"] for note in notes)


def build_environment(
    config: ConfigDict,
    tokenizer: PreTrainedTokenizerBase,
    engines: Mapping[str, Counted] | None = None,
) -> Environment:
    """The environment of a config; `engines` None: those of its reader and judge are built."""
    engines = build_engines(config, build_mesh(config)) if engines is None else engines
    return with_readers(environment(config.to_dict(), tokenizer), config, engines)


def build_model(config: ConfigDict, vocab_size: int) -> tuple[ModelConfig, Params]:
    """A model from scratch, or that of `config.model.path`, which then gives the shape; its
    parameters on the mesh of the config.

    Raises:
        ValueError: the folder cannot be loaded, or holds fewer tokens than the tokenizer; or the
            mesh does not divide the devices or a parameter.
    """
    mesh = build_mesh(config)
    if config.model.path:
        folder, model = find_model(config.to_dict())
        if vocab_size > model.vocab_size:
            raise ValueError(
                f"the tokenizer has {vocab_size} tokens, but the model in {folder} only"
                f" {model.vocab_size}: set config.tokenizer.path to the tokenizer of that model"
            )
        _layout(model, mesh)
        where = None if mesh is None else lambda path: NamedSharding(mesh, spec_of(path))
        return model, load_params(folder, model, where)
    model = model_config(config.to_dict(), vocab_size)
    init, key = partial(init_params, model), jax.random.fold_in(jax.random.key(config.seed), 0)
    if mesh is not None:
        init = jax.jit(init, out_shardings=_layout(model, mesh))
    return model, init(key)


def open_run(workdir: str | Path) -> tuple[ConfigDict, Policy]:
    """The config and the trained writer of a run, with reader and judge as configured there; ends
    the program where there is none, or one of them does not answer."""
    try:
        policy = load_run(workdir)
        config = ConfigDict(json.loads((Path(workdir) / "config.json").read_text()))
        engines = build_engines(config, build_mesh(config))
        env = with_readers(policy.env, config, engines)
        probe(engines)
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))
    return config, replace(policy, env=env)


def open_stage(config: ConfigDict, workdir: str | Path, stage: str, env: Environment) -> Policy:
    """The writer of a run as of its last checkpoint of a stage ("rl" or "warm_start"), in `env`;
    where there was no warm start, what the run began with."""
    if stage == "warm_start" and not config.warm_start.steps:
        model, params = build_model(config, len(env.tokenizer))
        return Policy(f"{config.title}, as it was", model, params, env)
    return replace(load_run(workdir, stage), env=env)


def build_mesh(config: ConfigDict) -> Mesh | None:
    sizes = config.mesh
    return make_mesh(sizes.data, sizes.fsdp, sizes.tensor)


def for_sampling(config: ConfigDict, params: Params) -> Params:
    """The parameters as the config wants them to be sampled from."""
    return gather(params) if config.mesh.gather else params


def _layout(model: ModelConfig, mesh: Mesh | None):
    """Where the parameters go; ValueError where the mesh does not divide the model."""
    if mesh is None:
        return None
    check_heads(mesh, model.num_kv_heads)
    return shardings(jax.eval_shape(partial(init_params, model), jax.random.key(0)), mesh)


def build_lora(config: ConfigDict) -> LoraConfig:
    return LoraConfig(**config.lora.to_dict())


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


def check(config: ConfigDict) -> None:
    """Raises ValueError for settings that would only fail after minutes of work."""
    rl, stage = config.rl, config.warm_start
    build_loss(config)
    mesh = build_mesh(config)
    if config.model.path:
        _layout(find_model(config.to_dict())[1], mesh)
    if build_lora(config).rank and stage.steps:
        raise ValueError(
            f"config.lora.rank={config.lora.rank} with a warm start: adapters are for a model that"
            " is there already. Set config.model.path, and config.warm_start.steps=0"
        )
    make_index([], config.reward.retriever, config.reward.dimensions)
    group_ids(np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), rl.groups)
    make_optimizer(rl.learning_rate, schedule=rl.schedule, optimizer=rl.optimizer)
    make_optimizer(stage.learning_rate, optimizer=stage.optimizer)
    counts = {
        "data.chunks": config.data.chunks,
        "warm_start.rows": stage.rows,
        "rl.instances": rl.instances,
        "rl.rollouts": rl.rollouts,
        "rl.epochs": rl.epochs,
        "rl.minibatches": rl.minibatches,
        "eval.every": config.eval.every,
        "eval.instances": config.eval.instances,
        "eval.test_instances": config.eval.test_instances,
        "checkpoint_every": config.checkpoint_every,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"config.{name}={value}: give at least 1")
    if rl.call_credit and (
        rl.algorithm == "ppo" or rl.divide_by_std or config.reward.normalise_each
    ):
        raise ValueError(
            "config.rl.call_credit goes with rl.algorithm=grpo, rl.divide_by_std=False and"
            " reward.normalise_each=False alone; set it to False"
        )
    check_readers(config)
    if not config.data.sources:
        raise ValueError("config.data.sources is empty: name at least one source")
    rows = rl.instances * rl.rollouts * config.data.chunks
    if rl.rollout_rows < 0:
        raise ValueError(f"config.rl.rollout_rows={rl.rollout_rows}: give rows, or 0 for all")
    at_once = rl.rollout_rows or rl.instances * rl.rollouts
    whole = "config.rl.instances x config.rl.rollouts"
    check_rows(mesh, at_once, "config.rl.rollout_rows" if rl.rollout_rows else whole)
    if rl.algorithm == "ppo":
        if rows % rl.minibatches:
            raise ValueError(
                f"config.rl.minibatches={rl.minibatches} does not divide the {rows} rows of a step"
                " (instances x rollouts x chunks)"
            )
        rows //= rl.minibatches
    for name, size, whole in (
        ("rl.micro_batch", rl.micro_batch, rows),
        ("warm_start.micro_batch", stage.micro_batch, stage.rows),
    ):
        if size and whole % size:
            raise ValueError(
                f"config.{name}={size} does not divide its {whole} rows; 0: all at once"
            )
        if name.startswith("rl") or stage.steps:
            check_rows(mesh, size or whole, f"config.{name}")


def is_flat(env: Environment) -> bool:
    return not any(env.enabled[1:])


def perfect_writer(env: Environment) -> Writer:
    def respond(turn: Turn) -> str:
        calls = perfect(turn.instance, turn.chunk, turn.view, is_flat(env))
        return format_response(calls, env.dialect)

    return scripted_writer(env, respond)


def poor_writer(config: ConfigDict, env: Environment, rng) -> Writer:
    flaws = Flaws(**{k: config.warm_start[k] for k in Flaws.__dataclass_fields__})

    def respond(turn: Turn) -> str:
        return poor_response(
            turn.instance, turn.chunk, turn.view, env.dialect, rng, flaws, is_flat(env)
        )

    return scripted_writer(env, respond)


def prompt_buckets(config: ConfigDict) -> Sequence[int]:
    return (config.prompt.tokens,)
