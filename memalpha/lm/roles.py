"""Reader, judges and writer on a language model: the functions that an environment takes.

Prompts are rendered by `prompts`, with data escaped between tags, and thinking is removed from
replies (`replies.visible`). Where the engine fails, reader and score judge return None and the
content judge a failed verdict; the error message is passed to `on_failure`. Reader and judges have
an attribute `name` for result files.
"""

import math
import re
import string
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from absl import logging

from memalpha import scoring
from memalpha.episode import Environment, Response, Turn, Writer
from memalpha.judge import ContentJudge, Verdict, to_judge
from memalpha.lm.interface import Chat, LanguageModel, cut_at, own_seed
from memalpha.memory import MEMORY_NAMES
from memalpha.prompts import (
    BUILT_IN,
    PromptSpec,
    Template,
    escape,
    fit_messages,
    load_template,
    read_form,
    render_judge,
    render_reader,
)
from memalpha.reader import Answerer, Request
from memalpha.replies import breaks_off, find_with, visible
from memalpha.scoring import Claim
from memalpha.tokenizer import encode, response_end, train_tokenizer
from memalpha.tools import Call, parse_prompted_calls, tool_schemas

OnFailure = Callable[[str], None]
READER_TOKENS, VERDICT_TOKENS = 2048, 512  # limits of a reply; the first is that of Mem-alpha
BYTES_A_TOKEN = 4  # of English text
_VALID = re.compile(r"""["']VALID["']\s*:\s*["']?(true|false)\b""", re.IGNORECASE)
SHOWN = 200  # characters of a reply that an error message quotes
READER_KIND = {
    "retrieval": "reader",
    "labels": "reader_classification",
    "summary": "reader_summary",
}
# Marks of chat turns that `escape` does not know by itself: they are not of the form <|...|>.
CHAT_MARKS = ("<s>", "</s>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>")
VERDICT_TAGS = tuple(
    tag for name in ("question", "expected", "reply") for tag in (f"<{name}>", f"</{name}>")
)
FRAME_FIELDS = ("criteria", "question", "expected", "reply")  # placeholders of verdict/frame.txt
# Question type of LongMemEval -> the file with the criteria for its replies.
CRITERIA = {
    "single-session-user": "answer",
    "single-session-assistant": "answer",
    "multi-session": "answer",
    "temporal-reasoning": "temporal",
    "knowledge-update": "update",
    "single-session-preference": "preference",
    scoring.ABSTENTION: "abstention",
}


def lm_reader(
    engine: LanguageModel,
    template: Template | None = None,
    max_new_tokens: int = READER_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    on_failure: OnFailure = logging.warning,
    one_line: bool = False,
) -> Answerer:
    """The `reader.Answerer` of a model; `template` None: the built-in "full".

    one_line: a reply ends with its first line, but for summaries; for small models, which go on
    after their answer, and not for models that think before it.

    Its attributes `engine` and `chat`, which renders the prompt of a request, are for those who
    score replies (`lm.likelihood`).
    """
    template = load_template("full") if template is None else template

    def chat(request: Request) -> Chat:
        evidence = request.evidence
        date = f"[Asked at {request.asked_at}] " if request.asked_at else ""
        return render_reader(
            template,
            scoring.instruction(request.source) + date + request.question,
            evidence.core,
            [entry.text for entry in evidence.semantic],
            [entry.text for entry in evidence.episodic],
            READER_KIND[scoring.category(request.source)],
            special=CHAT_MARKS,
        )

    def say(requests: Sequence[Request], stop: tuple[str, ...]) -> list[str | None]:
        return _say(
            engine, list(map(chat, requests)), max_new_tokens, temperature, seed, "reader",
            on_failure, stop,
        )  # fmt: skip

    def answer(requests: Sequence[Request]) -> list[str | None]:
        replies: list[str | None] = [""] * len(requests)
        short = [i for i, request in enumerate(requests) if is_short(request)]
        for i, reply in zip(short, say([requests[i] for i in short], ("\n",)), strict=True):
            replies[i] = reply
        # The others, and those whose reply began with a line end: all of it is needed.
        rest = [i for i, reply in enumerate(replies) if reply == ""]
        for i, reply in zip(rest, say([requests[i] for i in rest], ()), strict=True):
            replies[i] = cut_at(reply, ("\n",)) if reply and i in short else reply
        return replies

    def is_short(request: Request) -> bool:
        return one_line and scoring.category(request.source) != "summary"

    answer.name = _name(engine, max_new_tokens, temperature, template.name)
    answer.name += ", one line" if one_line else ""
    answer.engine, answer.chat = engine, chat
    return answer


def lm_score_judge(
    engine: LanguageModel,
    max_new_tokens: int = VERDICT_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    on_failure: OnFailure = logging.warning,
) -> scoring.Judge:
    """The `scoring.Judge` of a model: yes or no, by the criteria for the type of the question.

    A reply that says neither is returned unchanged; `scoring` counts it as a failure, not as a no.
    """

    def decide(claims: Sequence[Claim]) -> list[str | None]:
        chats = [render_verdict(claim) for claim in claims]
        replies = _say(engine, chats, max_new_tokens, temperature, seed, "judge", on_failure)
        for reply in replies:
            if reply is not None and math.isnan(scoring.verdict(reply)):
                on_failure(f"the judge said neither yes nor no: {reply[:SHOWN]!r}")
        return replies

    decide.name = _name(engine, max_new_tokens, temperature)
    return decide


def render_verdict(claim: Claim) -> Chat:
    """The messages that ask whether a reply is right. A question of an unknown type is judged by
    the criteria for plain answers."""
    also = (*VERDICT_TAGS, *CHAT_MARKS)
    text = string.Template(_text("frame")).substitute(
        criteria=_text(CRITERIA.get(claim.kind, "answer")),
        question=escape(claim.question, also),
        expected=escape("\n".join(claim.answers), also),
        reply=escape(claim.prediction, also),
    )
    return [{"role": "user", "content": text}]


@lru_cache
def _text(name: str) -> str:
    return read_form(BUILT_IN / "verdict" / f"{name}.txt", (), FRAME_FIELDS).strip()


def lm_content_judge(
    engine: LanguageModel,
    template: Template | None = None,
    max_new_tokens: int = VERDICT_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    on_failure: OnFailure = logging.warning,
) -> ContentJudge:
    """The content judge of r4 on a model.

    Only calls with a content are sent to the model; a reply without a verdict is a failure.
    """
    template = load_template("full") if template is None else template

    def decide(calls: Sequence[Call]) -> list[Verdict]:
        verdicts = [to_judge(call) for call in calls]
        # The contents of one memory at a time: their prompts begin alike, which a local engine
        # reads once.
        for memory_type, memory in enumerate(MEMORY_NAMES):
            asked = {
                i: item[1]
                for i, item in enumerate(verdicts)
                if isinstance(item, tuple) and item[0] == memory_type
            }
            chats = [render_judge(template, memory, text, CHAT_MARKS) for text in asked.values()]
            replies = _say(engine, chats, max_new_tokens, temperature, seed, "judge", on_failure)
            for i, reply in zip(asked, replies, strict=True):
                verdicts[i] = read_verdict(reply)
                if verdicts[i].failed and reply is not None:
                    on_failure(f"the judge gave no verdict: {reply[:SHOWN]!r}")
        return verdicts

    decide.name = _name(engine, max_new_tokens, temperature, template.name)
    return decide


def read_verdict(reply: str | None) -> Verdict:
    """The last verdict {"VALID": bool, ...} of a reply.

    From an object that is broken but not cut off, only `VALID` is read.
    """
    text = reply or ""
    verdicts = find_with(text, "VALID")
    if not verdicts and not breaks_off(text):
        words = {word.lower() for word in _VALID.findall(text)}
        verdicts = [{"VALID": word} for word in words] if len(words) == 1 else []
    verdict = verdicts[-1] if verdicts else {}
    valid = {"true": True, "false": False}.get(str(verdict.get("VALID")).lower())
    if valid is None:
        return Verdict(False, failed=True)
    return Verdict(valid)


def lm_writer(
    env: Environment,
    engine: LanguageModel,
    temperature: float = 0.0,
    seed: int = 0,
    on_failure: OnFailure = logging.warning,
) -> Writer:
    """A prompted, untrained language model as a writer in an environment.

    The tools are described in the prompt and called in the text, so any chat model can be used; a
    server gets the schemas of the tools too. Prompts are cut to `env.prompt.prompt_tokens`, counted
    by the tokenizer of `env`. Where the model fails, `Response.error` is set and the episode is not
    scored.
    """

    def chat(turn: Turn) -> Chat:
        return fit_messages(env.prompt, turn.view, turn.text, CHAT_MARKS)[0]

    # Calls that a server returns outside of the text are converted to the dialect qwen3.
    tools = tool_schemas(env.prompt.enabled) if env.prompt.dialect == "qwen3" else None

    end = response_end(env.prompt.tokenizer)

    def write(turns: Sequence[Turn]) -> list[Response]:
        chats = [chat(turn) for turn in turns]
        # A sample depends on its episode and chunk only, not on the other chats of the batch.
        own = [own_seed(seed, turn.episode, turn.chunk) for turn in turns] if temperature else seed
        generations = engine.generate(
            chats, env.prompt.response_tokens, temperature, own, tools=tools
        )
        responses = []
        for generation in generations:
            if generation.error:
                on_failure(f"writer {engine.name}: {generation.error}")
            tokens = encode(env.prompt.tokenizer, visible(generation.text))
            tokens = tokens if generation.error else [*tokens, end]
            read = generation.prompt_tokens
            ids = np.array(tokens, np.int32)
            responses.append(Response(ids, error=generation.error, prompt_tokens=read))
        return responses

    return write


def prompted_environment(tokenizer=None) -> Environment:
    """The environment for a pretrained model as writer (Mem-alpha, section 3.2).

    Without a tokenizer, sizes are counted in bytes, four per token, which is close for English.
    """
    template = load_template("full")
    if tokenizer is not None:
        return Environment(PromptSpec(tokenizer, template, parse=parse_prompted_calls))
    env = Environment(PromptSpec(train_tokenizer([], 258), template, parse=parse_prompted_calls))
    return env.replace(
        prompt_tokens=BYTES_A_TOKEN * env.prompt.prompt_tokens,
        entry_tokens=BYTES_A_TOKEN * env.memory.entry_tokens,
        core_tokens=BYTES_A_TOKEN * env.memory.core_tokens,
    )


def _name(engine: LanguageModel, tokens: int, temperature: float, template: str = "") -> str:
    """The description of a reader or judge in result files: engine and settings."""
    form = f", template {template}" if template else ""
    return f"{engine.name}, at most {tokens} tokens, temperature {temperature}{form}"


def _say(
    engine: LanguageModel,
    chats: Sequence[Chat],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    who: str,
    on_failure: OnFailure,
    stop: Sequence[str] = (),
) -> list[str | None]:
    """The replies of the model without thinking; None where it failed."""
    if not chats:
        return []
    replies: list[str | None] = []
    more = {"stop": stop} if stop else {}  # engines of others may not take it
    for generation in engine.generate(chats, max_new_tokens, temperature, seed, **more):
        if generation.error:
            on_failure(f"{who} {engine.name}: {generation.error}")
        replies.append(None if generation.error else visible(generation.text))
    return replies
