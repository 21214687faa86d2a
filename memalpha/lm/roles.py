"""Reader, judges and writer on a language model of `lm`: the functions that `rollout` takes.

What the model is shown goes through `prompts`, as data between tags. Thinking is removed from what
it says (`replies.visible`). Where the engine failed, reader and score judge give None and the
content judge a failed verdict; the engine's words go to `on_failure`. Reader and judges carry a
`name` for result files.
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
from memalpha.lm.interface import Chat, LanguageModel, own_seed
from memalpha.memory import MEMORY_NAMES
from memalpha.prompts import (
    BUILT_IN,
    PromptSpec,
    Template,
    escape,
    fit_messages,
    load_template,
    render_judge,
    render_reader,
)
from memalpha.reader import Answerer, Request
from memalpha.replies import breaks_off, find_with, visible
from memalpha.scoring import Claim
from memalpha.tokenizer import encode, response_end, train_tokenizer
from memalpha.tools import Call, parse_prompted_calls, tool_schemas

OnFailure = Callable[[str], None]
READER_TOKENS, VERDICT_TOKENS = 2048, 512  # of a reply; the first as in Mem-alpha
BYTES_A_TOKEN = 4  # of English text
_VALID = re.compile(r"""["']VALID["']\s*:\s*["']?(true|false)\b""", re.IGNORECASE)
SHOWN = 200  # characters of a reply in an account of it
READER_KIND = {
    "retrieval": "reader",
    "labels": "reader_classification",
    "summary": "reader_summary",
}
# Marks of chat turns that are not of the form <|...|>, which `escape` knows.
CHAT_MARKS = ("<s>", "</s>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>")
VERDICT_TAGS = tuple(
    tag for name in ("question", "expected", "reply") for tag in (f"<{name}>", f"</{name}>")
)
# Question types of LongMemEval, and the rule by which a reply to each is judged.
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
) -> Answerer:
    """The `reader.Answerer` of a model; `template` None: the built-in "full"."""
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

    def answer(requests: Sequence[Request]) -> list[str | None]:
        chats = [chat(request) for request in requests]
        return _say(engine, chats, max_new_tokens, temperature, seed, "reader", on_failure)

    answer.name = _name(engine, max_new_tokens, temperature, template.name)
    return answer


def lm_score_judge(
    engine: LanguageModel,
    max_new_tokens: int = VERDICT_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    on_failure: OnFailure = logging.warning,
) -> scoring.Judge:
    """The `scoring.Judge` of a model: yes or no, by the rule for the type of the question.

    A reply that is neither is given as it is: `scoring` counts it as a failure, not as a no.
    """

    def decide(claims: Sequence[Claim]) -> list[str | None]:
        chats = [render_verdict(claim) for claim in claims]
        said = _say(engine, chats, max_new_tokens, temperature, seed, "judge", on_failure)
        for reply in said:
            if reply is not None and math.isnan(scoring.verdict(reply)):
                on_failure(f"the judge said neither yes nor no: {reply[:SHOWN]!r}")
        return said

    decide.name = _name(engine, max_new_tokens, temperature)
    return decide


def render_verdict(claim: Claim) -> Chat:
    """The messages that ask whether a reply is right. A type of question that LongMemEval does not
    have is judged like its plain ones."""
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
    return (BUILT_IN / "verdict" / f"{name}.txt").read_text(encoding="utf-8").strip()


def lm_content_judge(
    engine: LanguageModel,
    template: Template | None = None,
    max_new_tokens: int = VERDICT_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    on_failure: OnFailure = logging.warning,
) -> ContentJudge:
    """The content judge of r4 on a model.

    It is asked only of calls that have a content; a reply without a verdict in it is a failure.
    """
    template = load_template("full") if template is None else template

    def decide(calls: Sequence[Call]) -> list[Verdict]:
        found = [to_judge(call) for call in calls]
        asked = [i for i, item in enumerate(found) if isinstance(item, tuple)]
        chats = [
            render_judge(template, MEMORY_NAMES[found[i][0]], found[i][1], CHAT_MARKS)
            for i in asked
        ]
        said = _say(engine, chats, max_new_tokens, temperature, seed, "judge", on_failure)
        for i, reply in zip(asked, said, strict=True):
            found[i] = read_verdict(reply)
            if found[i].failed and reply is not None:
                on_failure(f"the judge gave no verdict: {reply[:SHOWN]!r}")
        return found

    decide.name = _name(engine, max_new_tokens, temperature, template.name)
    return decide


def read_verdict(reply: str | None) -> Verdict:
    """The last verdict {"VALID": bool, "ISSUES": [...], ...} of a reply.

    Of an object that is broken but does not break off, `VALID` alone is read.
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
    """A model as a writer, prompted and untrained, in the environment it is given.

    The tools are described in the prompt and called in the text, so any chat model will do. As many
    entries are shown as fit `env.prompt.prompt_tokens`, counted by the tokenizer of `env`. A server
    is given the schemas of the tools too. A model that fails leaves `Response.error`: its episode
    is not scored.
    """

    def chat(turn: Turn) -> Chat:
        return fit_messages(env.prompt, turn.view, turn.text, CHAT_MARKS)[0]

    # Calls that a server returns apart from the text come in the dialect qwen3.
    tools = tool_schemas(env.prompt.enabled) if env.prompt.dialect == "qwen3" else None

    end = response_end(env.prompt.tokenizer)

    def write(turns: Sequence[Turn]) -> list[Response]:
        chats = [chat(turn) for turn in turns]
        # A sample depends on its episode and chunk alone, not on which others run beside it.
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
            responses.append(Response(np.array(tokens, np.int32), error=generation.error))
        return responses

    return write


def prompted_environment(tokenizer=None) -> Environment:
    """The sizes and instructions for a pretrained model as writer (Mem-alpha, section 3.2).

    Without a tokenizer what goes in is counted in bytes, four to a token: close enough for English.
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
    """Says in result files by whom and how something was read or judged."""
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
) -> list[str | None]:
    """What the model says, thinking removed; None where it failed."""
    if not chats:
        return []
    said: list[str | None] = []
    for generation in engine.generate(chats, max_new_tokens, temperature, seed):
        if generation.error:
            on_failure(f"{who} {engine.name}: {generation.error}")
        said.append(None if generation.error else visible(generation.text))
    return said
