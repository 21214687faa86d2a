"""The policy as a writer of episodes: prompts to the device, responses back, in few shapes.

The number of rows of a batch is rounded up to one of a few sizes, so that a run of short and long
episodes compiles few programs and computes few empty rows. The tokens that all prompts begin with
are the same for a whole run, so their keys and values are computed once per writer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from os.path import commonprefix

import jax
import jax.numpy as jnp
import numpy as np

from memalpha import sampler
from memalpha.batch import row_bucket
from memalpha.drafts import Drafts, make_drafts
from memalpha.episode import Clock, Environment, Response, Turn, Writer
from memalpha.memory import EMPTY_VIEW, Entry, MemoryView
from memalpha.model import Cache, ModelConfig, Params
from memalpha.prompts import PromptSpec, fit_prompt
from memalpha.sharding import mesh_of, row_parts
from memalpha.tokenizer import encode, response_end, stop_ids
from memalpha.tools import example_calls

MIN_PREFIX = 64  # tokens; a shorter common prefix is not worth compiling a second program for


@dataclass(frozen=True)
class Sampling:
    """What one writer samples with; the fields are the arguments of `policy_writer`.

    stop_ids: [n] int32, the tokens that end a response. shared: the token ids that every prompt
    begins with and whose keys and values are computed once; empty: no prefix is shared.
    """

    params: Params
    config: ModelConfig
    spec: PromptSpec
    key: jax.Array
    temperature: float
    top_p: float
    stop_ids: jax.Array
    shared: list[int]
    drafts: Drafts

    @cached_property
    def cache(self) -> Cache | None:
        """Keys and values of `shared`, computed when they are first needed."""
        return sampler.prefill(self.params, self.config, self.shared) if self.shared else None


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
    draft_tokens: int = 0,
) -> Writer:
    """The policy as a writer.

    Args:
        rows: the largest device batch. More turns than that are written in several batches; fewer
            take one batch of `row_bucket` rows.
        key: the sample of a turn depends on key, chunk and episode alone.
        min_prefix: the keys and values of the tokens that all prompts of `env` begin with are
            computed once if there are at least this many; 0: never.
        clock: counts the time of rendering as "render".
        draft_tokens: how many tokens, copied from the prompt, the response and `draft_text`, one
            pass checks beside the newest one; the samples are the same; 0: none.
    """
    spec, clock = env.prompt, Clock() if clock is None else clock
    stops = jnp.asarray(stop_ids(spec.tokenizer, spec.stops), jnp.int32)
    parts = row_parts(mesh_of(params))

    @lru_cache(maxsize=1)
    def sampling() -> Sampling:
        # Not before the first batch: finding the prefix renders prompts.
        shared = common_prefix(spec) if min_prefix else []
        shared = shared if len(shared) >= max(min_prefix, 1) else []
        drafts = make_drafts(draft_tokens, [*draft_text(spec), *shared])
        return Sampling(params, config, spec, key, temperature, top_p, stops, shared, drafts)

    def write(turns: Sequence[Turn]) -> list[Response]:
        responses = []
        for start in range(0, len(turns), rows):
            batch = turns[start : start + rows]
            with clock("render"):
                prompts = [fit_prompt(spec, turn.view, turn.text) for turn in batch]
            size = row_bucket(len(batch), rows, parts)
            responses += sample_batch(sampling(), batch, prompts, size)
        return responses

    return write


def sample_batch(
    sampling: Sampling, turns: Sequence[Turn], prompts: Sequence[list[int]], size: int
) -> list[Response]:
    """One response a turn, sampled in one device batch of `size` rows; the spare rows write
    nothing."""
    spec, shared = sampling.spec, sampling.shared
    # A tokenizer may merge the end of the prefix with what follows it: then nothing is shared.
    if not all(prompt[: len(shared)] == shared for prompt in prompts):
        shared = []
    skipped = len(shared)
    tokens, mask = sampler.pad_prompts(
        [prompt[skipped:] for prompt in prompts], [spec.prompt_tokens - skipped], size
    )
    spare = size - len(turns)
    keys = sampler.row_keys(
        sampling.key,
        [turn.chunk for turn in turns] + [0] * spare,
        [turn.episode for turn in turns] + [2**31 - 1 - i for i in range(spare)],
    )
    limits = np.where(np.arange(size) < len(turns), spec.response_tokens, 0)
    samples = jax.device_get(
        sampler.generate(
            sampling.params, sampling.config, tokens, mask, keys, sampling.temperature,
            sampling.top_p, limits, sampling.stop_ids, spec.response_tokens,
            sampling.cache if shared else None, sampling.drafts,
        )
    )  # fmt: skip
    lengths = samples.mask.sum(axis=1)
    return [
        Response(
            samples.tokens[row, : lengths[row]],
            samples.logps[row, : lengths[row]],
            bool(samples.finished[row]),
            prompt=np.asarray(prompt, np.int32),
            passes=int(samples.passes[row]),
        )
        for row, prompt in enumerate(prompts)
    ]


@lru_cache(maxsize=8)
def draft_text(spec: PromptSpec) -> list[int]:
    """Token ids of an example of each call and of the end of a response, to copy drafts from."""
    examples = encode(spec.tokenizer, example_calls(spec.dialect, spec.enabled))
    return [*examples, response_end(spec.tokenizer)]


@lru_cache(maxsize=8)
def common_prefix(spec: PromptSpec) -> list[int]:
    """The token ids that all prompts begin with, whatever the memory and the chunk are."""
    entries = (Entry(1, "a", 0),)
    views = (
        EMPTY_VIEW,
        MemoryView("a", entries, entries, 1, 1, 3),
        MemoryView("1", (), (), 0, 0, 1),
    )
    prompts = [
        fit_prompt(spec, view, chunk) for view, chunk in zip(views, ("a", "1", "."), strict=True)
    ]
    return list(commonprefix(prompts))
