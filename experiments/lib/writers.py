"""Writers of a config: the policy, the perfect writer, and the teachers of the warm start."""

import jax
from ml_collections import ConfigDict

from memalpha.baselines.scripted import Flaws, careful, perfect, poor_response
from memalpha.episode import Clock, Environment, Turn, Writer
from memalpha.model import ModelConfig, Params
from memalpha.rollout import scripted_writer
from memalpha.sharding import gather
from memalpha.tokenizer import encode
from memalpha.tools import format_response
from memalpha.writer import policy_writer


def is_flat(env: Environment) -> bool:
    return not any(env.prompt.enabled[1:])


def perfect_writer(env: Environment) -> Writer:
    def respond(turn: Turn) -> str:
        calls = perfect(turn.instance, turn.chunk, turn.view, is_flat(env))
        return format_response(calls, env.prompt.dialect)

    return scripted_writer(env, respond)


def poor_writer(config: ConfigDict, env: Environment, rng) -> Writer:
    """A teacher with the flaws of `config.warm_start`; its responses carry their prompts."""
    flaws = Flaws(**{k: config.warm_start[k] for k in Flaws.__dataclass_fields__})

    def respond(turn: Turn) -> str:
        return poor_response(
            turn.instance, turn.chunk, turn.view, env.prompt.dialect, rng, flaws, is_flat(env)
        )

    return scripted_writer(env, respond, with_prompts=True)


def careful_writer(config: ConfigDict, env: Environment) -> Writer:
    """Stores what `careful` chooses, as far as a response has room; its responses carry their
    prompts. It does not know the questions."""
    room = config.prompt.response_tokens - 1  # one token is the end of sequence
    count = lambda text: len(encode(env.prompt.tokenizer, text))

    def respond(turn: Turn) -> str:
        said = ""
        for call in careful(turn.instance, turn.chunk, turn.view, is_flat(env)):
            longer = "\n".join(filter(None, (said, format_response([call], env.prompt.dialect))))
            said = longer if count(longer) <= room else said
        return said

    return scripted_writer(env, respond, with_prompts=True)


TEACHERS = ("poor", "careful")


def teacher(config: ConfigDict, env: Environment, rng) -> Writer:
    """The writer that the warm start imitates: `config.warm_start.teacher`."""
    if config.warm_start.teacher == "careful":
        return careful_writer(config, env)
    return poor_writer(config, env, rng)


def rollout_rows(config: ConfigDict) -> int:
    """The number of rows of a rollout batch."""
    return config.rl.rollout_rows or config.rl.instances * config.rl.rollouts


def trained_writer(
    config: ConfigDict,
    env: Environment,
    model: ModelConfig,
    params: Params,
    rows: int,
    temperature: float | None = None,
) -> Writer:
    """The policy as a writer, at `config.eval.temperature` unless another is given; 0: greedy."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    temperature = config.eval.temperature if temperature is None else temperature
    return policy_writer(
        for_sampling(config, params), model, env, rows, key, temperature,
        draft_tokens=config.rl.draft_tokens,
    )  # fmt: skip


def training_writer(
    config: ConfigDict,
    env: Environment,
    model: ModelConfig,
    params: Params,
    step: int,
    clock: Clock,
) -> Writer:
    """The policy as a writer with the sampling settings and keys of a training step."""
    rl, key = config.rl, jax.random.fold_in(jax.random.key(config.seed), 1)
    return policy_writer(
        for_sampling(config, params), model, env, rollout_rows(config),
        jax.random.fold_in(key, step), rl.temperature, rl.top_p, clock=clock,
        draft_tokens=rl.draft_tokens,
    )  # fmt: skip


def for_sampling(config: ConfigDict, params: Params) -> Params:
    """The parameters for sampling: gathered over fsdp if `config.mesh.gather` is set."""
    return gather(params) if config.mesh.gather else params
