"""How chats look: single messages, dialogues with speakers, small talk, long answers."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memalpha.data.chats.dates import Day, clock
from memalpha.data.chats.slots import Draws
from memalpha.data.chats.words import read_toml

ASSISTANTS = ("Assistant", "assistant", "AI", "Bot")
USERS = ("User", "user", "Me", "You")
NOBODY = ""  # a line without a speaker
NOTED = "Noted."  # what `MemoryAgent` answers to all that it is told


@dataclass(frozen=True)
class Line:
    """What somebody says; `says_fact` where it is worth keeping."""

    speaker: str
    text: str
    says_fact: bool = False


def styled(draws: Draws, text: str) -> str:
    """A sentence as it is typed: with or without capital and stop, with words before or after."""
    talk, rng = read_toml("talk.toml"), draws.rng
    if rng.random() < 0.3:
        text = draws.pick(talk["leads"]) + text
    if rng.random() < 0.2 and text[-1] not in "?!":
        return text + draws.pick(talk["tails"])
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
        return text if text[-1] in "?!." else text + "."
    return text.replace("I'm ", "im ") if rng.random() < 0.04 else text


def small_talk(draws: Draws) -> str:
    line = draws.pick(read_toml("talk.toml")["small_talk"])
    return line[0].upper() + line[1:] if draws.rng.random() < 0.3 else line


def reaction(draws: Draws) -> str:
    """What a friend says to a friend."""
    return draws.pick(read_toml("talk.toml")["reactions"])


def reply(draws: Draws) -> str:
    """What an assistant says in a line."""
    return draws.pick(read_toml("talk.toml")["replies"])


def question_and_answer(draws: Draws) -> tuple[str, str]:
    """A question to an assistant and a long answer, in prose or as a list."""
    question, sentences = draws.pick(list(read_toml("talk.toml")["answers"].items()))
    sentences = sentences[: draws.rng.integers(3, len(sentences) + 1)]
    mark = draws.pick(("", "", "- ", "1"))
    if mark == "":
        return question, " ".join(sentences)
    marks = [f"{n}. " if mark == "1" else mark for n in range(1, len(sentences) + 1)]
    lines = [m + sentence for m, sentence in zip(marks, sentences, strict=True)]
    opening = draws.pick(("Here is what helps:", "In short:", "Sure!", "A few points:"))
    return question, "\n".join([opening, *lines])


def message(draws: Draws, day: Day, lines: Sequence[Line]) -> str:
    """What one person types, without a speaker."""
    texts = [line.text for line in lines]
    sentences = [text if text[-1] in ".?!" else f"{text}." for text in texts[:-1]] + texts[-1:]
    body = draws.pick(("\n", " ")).join(sentences)
    return f"{day.header}{draws.pick((chr(10), ' '))}{body}" if day.header else body


def dialogue(draws: Draws, day: Day, lines: Sequence[Line]) -> str:
    """A dialogue, every line after its speaker."""
    style = draws.pick(
        ("{}: {}", "{}: {}", "{}: {}", "<{}> {}", "**{}:** {}", "{}:\n{}", "- {}: {}")
    )
    body = "\n".join(style.format(line.speaker, line.text) for line in lines)
    return f"{day.header}\n{body}" if day.header else body


def logged_day(rng: np.random.Generator, date: datetime.date) -> Day:
    """A day as `logged` states it."""
    return Day(date, clock(rng), stated=date.isoformat())


def logged(day: Day, lines: Sequence[Line]) -> str:
    """A dialogue in the form in which `MemoryAgent` shows its writer what it is told."""
    body = "\n".join(f"<{line.speaker}> {line.text}" for line in lines)
    return f"[Dialogue between User and Assistant on {day.stated} {day.clock}]\n{body}"
