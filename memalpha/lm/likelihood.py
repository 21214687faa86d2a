"""How much likelier a memory makes the right answers: a reward without decoding.

    gain = (log P(gold | memory, question) - log P(gold | question)) / tokens of gold

P is a language model in this process that reads the same prompt as `roles.lm_reader`, with the
evidence and without. One forward pass scores all questions of a batch. Where a reply is either
right or wrong, the gain tells a memory that nearly holds the answer from one that does not. After
MemPO (arXiv:2603.00680).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from memalpha.batch import from_tokens
from memalpha.episode import Episode
from memalpha.learner import make_token_logps
from memalpha.lm.interface import Chat
from memalpha.lm.local import FlaxModel
from memalpha.model import ModelConfig
from memalpha.objective import LossConfig
from memalpha.prompts import encode_messages
from memalpha.reader import Evidence, Request
from memalpha.tokenizer import encode, response_end

STEP = 64  # tokens; prompts and answers are padded to a multiple, so that few shapes are compiled
ROWS = 8  # questions of one forward pass


def gains(
    episodes: Sequence[Episode], engine: FlaxModel, chat: Callable[[Request], Chat]
) -> np.ndarray:
    """The mean gain of each episode over its questions, in nats a token: [episodes] float32; NaN
    where none fits the context.

    chat: renders the prompt of a request. The first accepted answer of a question counts as gold.
    """
    asked = [
        (e, request, question.answers[0])
        for e, episode in enumerate(episodes)
        for request, question in zip(
            episode.recall.requests, episode.instance.questions, strict=False
        )
    ]
    golds = [gold for _, _, gold in asked]
    known = log_likelihoods(engine, [chat(request) for _, request, _ in asked], golds)
    bare = {r.question: Request(r.question, r.source, Evidence(), r.asked_at) for _, r, _ in asked}
    pairs = list(dict.fromkeys((r.question, gold) for _, r, gold in asked))
    unaided = log_likelihoods(
        engine, [chat(bare[q]) for q, _ in pairs], [gold for _, gold in pairs]
    )
    guessed = dict(zip(pairs, unaided, strict=True))
    result: list[list[float]] = [[] for _ in episodes]
    for (e, request, gold), value in zip(asked, known, strict=True):
        result[e].append(value - guessed[request.question, gold])
    fitting = [[gain for gain in mine if not np.isnan(gain)] for mine in result]
    return np.array([np.mean(mine) if mine else np.nan for mine in fitting], np.float32)


def log_likelihoods(
    engine: FlaxModel, chats: Sequence[Chat], replies: Sequence[str]
) -> list[float]:
    """log P(reply | chat) a token of the reply, its end included; NaN where both together do not
    fit the context of the engine."""
    tokenizer = engine.tokenizer
    end = response_end(tokenizer)
    prompts = [encode_messages(list(chat), tokenizer) for chat in chats]
    answers = [[*encode(tokenizer, reply), end] for reply in replies]
    sizes = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    fitting = [i for i, size in enumerate(sizes) if size <= engine.context_tokens]
    result = [float("nan")] * len(chats)
    order = sorted(fitting, key=lambda i: sizes[i])
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        filled = [*rows, *rows[:1] * (ROWS - len(rows))]
        p, t = (_padded(max(len(of[i]) for i in rows)) for of in (prompts, answers))
        batch = from_tokens([prompts[i] for i in filled], [answers[i] for i in filled], p, t)
        logps, _ = _scorer(engine.config)(engine.params, batch)
        for row, i in enumerate(rows):
            result[i] = float(logps[row, : len(answers[i])].mean())
    return result


@lru_cache(maxsize=4)
def _scorer(config: ModelConfig):
    return make_token_logps(config, LossConfig())


def _padded(size: int) -> int:
    return -(-size // STEP) * STEP
