"""A trained policy as a writer on the engine of `local`, which compiles in seconds.

`writer.policy_writer` samples with log-probabilities, in programs for one prompt size each: that is
for training. Here prompts of any length are read by the same two programs, and what they begin with
is kept from call to call: that is for use, and for models of many layers.
"""

from collections.abc import Sequence

import numpy as np

from memalpha.drafts import make_drafts
from memalpha.episode import Environment, Response, Turn, Writer
from memalpha.lm.interface import own_seed
from memalpha.lm.local import FlaxModel
from memalpha.model import ModelConfig, Params
from memalpha.prompts import fit_prompt
from memalpha.tokenizer import stop_ids
from memalpha.writer import draft_text

DRAFT_TOKENS = 7  # of one row on a CPU: a pass over eight tokens costs that of two to three


def trained_writer(
    params: Params,
    model: ModelConfig,
    env: Environment,
    temperature: float = 0.0,
    seed: int = 0,
    name: str = "writer",
    draft_tokens: int = DRAFT_TOKENS,
) -> Writer:
    """The policy as a writer; its responses have no log-probabilities. A sample depends on `seed`,
    its episode and its chunk, not on the other turns. draft_tokens: see `writer.policy_writer`."""
    spec = env.prompt
    engine = FlaxModel(
        name,
        model,
        params,
        spec.tokenizer,
        context_tokens=spec.prompt_tokens + spec.response_tokens,
        stop_ids=stop_ids(spec.tokenizer, spec.stops),
        drafts=make_drafts(draft_tokens, draft_text(spec)),
    )

    def write(turns: Sequence[Turn]) -> list[Response]:
        prompts = [fit_prompt(spec, turn.view, turn.text) for turn in turns]
        own = [own_seed(seed, turn.episode, turn.chunk) for turn in turns] if temperature else seed
        replies = engine.complete(prompts, spec.response_tokens, temperature, own)
        return [
            Response(
                np.array(reply.tokens, np.int32),
                finished=reply.tokens[-1] in engine.stop_ids,
                prompt=np.asarray(prompt, np.int32),
                passes=reply.passes,
            )
            for prompt, reply in zip(prompts, replies, strict=True)
        ]

    return write
