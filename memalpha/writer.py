"""The policy as a writer of episodes: prompts to the device, responses back, in few shapes.

A batch has one of a few row counts, so that a run of short and long episodes neither compiles anew
nor carries many empty rows. The tokens that all prompts begin with are the same for a whole run,
and their keys and values are computed once a writer.
"""

from collections.abc import Sequence
from functools import lru_cache
from os.path import commonprefix

import jax
import jax.numpy as jnp
import numpy as np

from memalpha import sampler
from memalpha.batch import row_bucket
from memalpha.episode import Clock, Environment, Response, Turn, Writer
from memalpha.memory import Entry, MemoryView
from memalpha.model import Cache, ModelConfig, Params
from memalpha.prompts import PromptSpec, fit_prompt
from memalpha.sharding import mesh_of, row_parts
from memalpha.tokenizer import stop_ids

MIN_PREFIX = 64  # tokens that prompts share, from which on they are worth a program of their own


def policy_writer(
    params: Params,
    config: ModelConfig,
    env: Environment,
    rows: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_p: float = 1.0,
    min_prefix: int = MIN_PREFIX,
    clock: Clock | None = None,
) -> Writer:
    """The policy as a writer.

    rows: the most of a device batch; more turns than that go in several batches, fewer in one of
    `row_bucket` rows. key: an episode samples from (key, chunk, episode) alone. min_prefix: what
    all prompts of `env` begin with is computed once if it has so many tokens, 0: never. clock:
    takes the time of rendering.
    """
    spec, clock = env.prompt, Clock() if clock is None else clock
    stops = jnp.asarray(stop_ids(spec.tokenizer, spec.stops), jnp.int32)
    parts = row_parts(mesh_of(params))

    @lru_cache(maxsize=1)
    def prefix() -> tuple[list[int], Cache | None]:
        shared = common_prefix(spec) if min_prefix else []
        if len(shared) < max(min_prefix, 1):
            return [], None
        return shared, sampler.prefill(params, config, shared)

    def write(turns: Sequence[Turn]) -> list[Response]:
        responses = []
        for start in range(0, len(turns), rows):
            responses += write_batch(turns[start : start + rows])
        return responses

    def write_batch(turns: Sequence[Turn]) -> list[Response]:
        size = row_bucket(len(turns), rows, parts)
        with clock("render"):
            prompts = [fit_prompt(spec, turn.view, turn.text) for turn in turns]
        shared, cache = prefix()
        # A tokenizer may join the end of the prefix with what follows: then there is none to share.
        if not all(prompt[: len(shared)] == shared for prompt in prompts):
            shared, cache = [], None
        skipped = len(shared)
        tokens, mask = sampler.pad_prompts(
            [prompt[skipped:] for prompt in prompts], [spec.prompt_tokens - skipped], size
        )
        spare = size - len(turns)
        keys = sampler.row_keys(
            key,
            [turn.chunk for turn in turns] + [0] * spare,
            [turn.episode for turn in turns] + [2**31 - 1 - i for i in range(spare)],
        )
        limits = np.where(np.arange(size) < len(turns), spec.response_tokens, 0)
        samples = jax.device_get(
            sampler.generate(
                params, config, tokens, mask, keys, temperature, top_p, limits, stops,
                spec.response_tokens, cache,
            )
        )  # fmt: skip
        lengths = samples.mask.sum(axis=1)
        return [
            Response(
                samples.tokens[row, : lengths[row]],
                samples.logps[row, : lengths[row]],
                bool(samples.finished[row]),
                prompt=np.asarray(prompt, np.int32),
            )
            for row, prompt in enumerate(prompts)
        ]

    return write


@lru_cache(maxsize=8)
def common_prefix(spec: PromptSpec) -> list[int]:
    """The token ids that all prompts begin with, whatever memory and chunk."""
    empty = MemoryView("", (), (), 0, 0, 0)
    entries = (Entry(1, "a", 0),)
    views = (empty, MemoryView("a", entries, entries, 1, 1, 3), MemoryView("1", (), (), 0, 0, 1))
    prompts = [
        fit_prompt(spec, view, chunk) for view, chunk in zip(views, ("a", "1", "."), strict=True)
    ]
    return list(commonprefix(prompts))
