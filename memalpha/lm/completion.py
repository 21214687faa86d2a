"""Replies of the OpenAI chat API: their text and tool calls, the waits they ask for, errors."""

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from memalpha.lm.interface import Generation
from memalpha.tools import format_call

EXCERPT = 500  # characters of a reply or an error message that are quoted
DIALECT = "qwen3"  # of the calls in a generation's text
# Fields in which servers put what a model thought: vLLM and DeepSeek, then newer vLLM, OpenRouter.
REASONING = ("reasoning_content", "reasoning")


def read_completion(completion: Any) -> Generation:
    """The generation in a reply of the API.

    | reply | generation |
    |---|---|
    | text, or a list of text parts | the text |
    | `tool_calls`, with or without text | the text, then every call in the dialect of `DIALECT` |
    | a refusal | its text |
    | nothing, cut at the token limit | an empty text: the model used up what it was given |
    | "" at a stop, without reasoning | an empty text: the model had nothing to say |
    | null at a stop, or reasoning alone | an error: what the model meant to say is not there |
    | nothing, ended in any other way | an error |

    Raises ValueError where the reply has no choice or its content is of another type.
    """
    try:
        choice = completion.choices[0]
        message = choice.message
        content = message.content
    except (AttributeError, TypeError, IndexError):
        reply = completion if isinstance(completion, str) else completion.model_dump_json()
        raise ValueError(f"no choices in {reply[:EXCERPT]!r}") from None
    usage = completion.usage
    sizes = [_size(usage, "prompt_tokens"), _size(usage, "completion_tokens")]
    text = _text(content) or _text(getattr(message, "refusal", None))
    calls = _calls(message)
    if calls or text.strip():
        return Generation("\n".join([*filter(None, [text]), *calls]), *sizes)
    if choice.finish_reason == "length":
        return Generation(text, *sizes)
    thought = any(getattr(message, name, None) for name in REASONING)
    if choice.finish_reason == "stop" and content is not None and not thought:
        return Generation(text, *sizes)
    has = "reasoning but no text" if thought else "no text"
    return Generation("", *sizes, error=f"{has} (finish_reason {choice.finish_reason!r})")


def _text(content: Any) -> str:
    """The text of a content: a string, or a list of parts of which those of type text count."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part for part in content if _field(part, "type") in ("text", "refusal")]
        return "".join(_text(_field(part, _field(part, "type"))) for part in parts)
    if not isinstance(content, str):
        raise ValueError(f"the content is {type(content).__name__}, not text")
    return content


def _calls(message: Any) -> list[str]:
    """The tool calls of a message as text; `function_call` is the older form of a single one."""
    calls = getattr(message, "tool_calls", None) or ()
    if not isinstance(calls, list | tuple):
        raise ValueError(f"tool_calls is {type(calls).__name__}, not a list")
    functions = [_field(call, "function") for call in calls]
    functions += [getattr(message, "function_call", None)]
    return [
        call_text(_field(function, "name"), _field(function, "arguments"))
        for function in functions
        if function
    ]


def call_text(name: Any, arguments: Any) -> str:
    """A call as the model would write it in its text.

    The API gives the arguments as JSON text; what is no JSON object remains text, which the parser
    of the calls judges.
    """
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        value = None
    if isinstance(name, str) and isinstance(value, dict):
        return format_call(name, value, DIALECT)
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False, default=str)
    return f"<tool_call>\n{call}\n</tool_call>"


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _size(usage: Any, name: str) -> int:
    value = _field(usage, name)
    return value if isinstance(value, int) else 0


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a reply asks to wait, as a number or a date; 0 where it says nothing."""
    wait = headers.get("retry-after", "")
    try:
        return max(0.0, float(wait))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(wait).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def error_message(error: openai.APIStatusError) -> str:
    """The server's own message in an error."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else body
    return str(message or error.response.text or error.message)
