"""A folder of results: what was measured, one row a question and one row an instance.

`about.json` says what the rows depend on, `questions.jsonl` holds a row a question and
`instances.jsonl` a row an instance, which is written after the rows of its questions: an instance
counts as finished once its own row is there, newline included. A process that is killed leaves at
most rows of an unfinished instance behind, and the next one to open the folder drops them.
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.lib.workdir import differences, write_json
from memalpha.data.files import write_text
from memalpha.data.instance import Instance
from memalpha.episode import Episode
from memalpha.memory import Outcome
from memalpha.paths import user_path

ABOUT, INSTANCES, QUESTIONS = "about.json", "instances.jsonl", "questions.jsonl"
Row = dict[str, Any]


class ResultsError(ValueError):
    """A results folder that belongs to something else, is in use, or is damaged."""


class Results:
    """The results in a folder, made if it is not there; a context manager that holds it alone."""

    def __init__(self, folder: str | Path, about: Row):
        """Opens the folder and repairs what a kill has left.

        Args:
            about: what the rows depend on. All of it has to be as in the rows that are there,
                except that `systems` and `sources` ({name: what its rows depend on}) may bring
                names that are new.

        Raises:
            ResultsError: rows of something else (says what differs), another process at work in
                the folder, or a damaged file.
        """
        self.folder = user_path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResultsError(f"{folder}: another process is writing results there") from error
        write_json(self.folder / ABOUT, self._agree(json.loads(json.dumps(about))))
        rows = read_lines(self.folder / INSTANCES)
        self.done = {row_key(row): row["digest"] for row in rows}
        asked = [r for r in read_lines(self.folder / QUESTIONS) if row_key(r) in self.done]
        for name, finished in ((INSTANCES, rows), (QUESTIONS, asked)):
            write_text(self.folder / name, _lines(finished))

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_) -> None:
        self.lock.close()  # which gives it up, as the end of the process does

    def _agree(self, about: Row) -> Row:
        """What the folder says it is about, with the names that are new."""
        path = self.folder / ABOUT
        if not path.exists():
            return about
        before, merged = _read_about(path), dict(about)
        for part in ("systems", "sources"):
            known = before.get(part, {})
            about[part] = {k: v for k, v in about[part].items() if k in known}
            merged[part] = known | merged[part]
            before[part] = {k: v for k, v in known.items() if k in about[part]}
        if differ := sorted(differences(before, about), key=lambda item: item[0]):
            lines = "\n".join(f"  {name}: was {old!r}, is {new!r}" for name, old, new in differ)
            raise ResultsError(
                f"{self.folder} holds results of something else:\n{lines}\nChoose another folder,"
                " or what those were measured with."
            )
        return merged

    def missing(self, system: str, instance: Instance) -> bool:
        """Whether there is no row of this system for an instance yet.

        Raises ResultsError where there is one for other text of the same name.
        """
        measured = self.done.get((system, instance.source, instance.instance_id))
        if measured is not None and measured != digest(instance):
            raise ResultsError(
                f"{self.folder}: {instance.source}/{instance.instance_id} has other chunks or"
                " questions than when it was measured; choose another folder"
            )
        return measured is None

    def add(self, system: str, episodes: Sequence[Episode], seconds: Sequence[float]) -> None:
        """Writes episodes whose instances are missing; returns when they are on disk.

        seconds: (of an instance, all in all; of a question, reading alone).
        """
        of_instance, of_question = seconds
        asked = [row for e in episodes for row in question_rows(system, e, of_question)]
        rows = [instance_row(system, e, of_instance) for e in episodes]
        for name, new in ((QUESTIONS, asked), (INSTANCES, rows)):
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(_lines(new))
                file.flush()
                os.fsync(file.fileno())
        self.done |= {row_key(row): row["digest"] for row in rows}


def digest(instance: Instance) -> str:
    """A hash of chunks, questions, their dates and answers."""
    asked = [
        (q.question, q.answers, q.asked_at)[: 3 if q.asked_at else 2] for q in instance.questions
    ]
    return hashlib.sha256(json.dumps([instance.chunks, asked]).encode()).hexdigest()[:16]


def question_rows(system: str, episode: Episode, seconds: float) -> list[Row]:
    """One row a question. A failed answer has neither prediction nor score."""
    verdicts = episode.verdicts or [""] * len(episode.answers)
    asked = zip(episode.instance.questions, episode.answers, episode.scores, verdicts, strict=True)
    return [
        _name(system, episode)
        | {
            "number": number,
            "question": question.question,
            "gold": list(question.answers),
            "prediction": answer.text,
            "score": _or_none(score),
            "verdict": verdict or None,
            "retrieved": list(answer.ids),
            "reader_tokens": answer.tokens if episode.has_memory else None,
            "seconds": round(seconds, 6),
            "failed": math.isnan(score),
        }
        for number, (question, answer, score, verdict) in enumerate(asked)
    ]


def instance_row(system: str, episode: Episode, seconds: float) -> Row:
    """One row an instance. r2 and r4 are None for a system that makes no calls, r1 where every
    answer failed; where the model of a baseline failed, there is no memory, so no size of one."""
    steps, complete = episode.steps, episode.has_memory
    read = [answer.tokens for answer in episode.answers]
    calls = [outcome for step in steps for outcome in step.outcomes]
    return _name(system, episode) | {
        "digest": digest(episode.instance),
        "r1": _or_none(episode.r1),
        "r2": _mean_or_none([step.r2 for step in steps]),
        "r3": episode.r3 if complete else None,
        "r4": _mean_or_none([step.r4 for step in steps]),
        "memory_tokens": int(episode.memory_tokens) if complete else None,
        "chunk_tokens": int(episode.chunk_tokens),
        "chunks": len(episode.instance.chunks),
        "calls": len(calls),
        "ok_calls": calls.count(Outcome.OK),
        "questions": len(episode.scores),
        "failed": sum(map(math.isnan, episode.scores)),
        "reader_tokens": sum(read) / len(read) if complete else None,
        "seconds": round(seconds, 6),
    }


def read_results(folder: str | Path) -> tuple[Row, list[Row]]:
    """What a results folder is about, and the rows of its finished instances.

    Raises ResultsError where there are none.
    """
    folder = user_path(folder)
    path = folder / ABOUT
    if not path.exists():
        raise ResultsError(f"{folder} holds no results: python -m experiments.evaluate makes them")
    return _read_about(path), read_lines(folder / INSTANCES)


def read_lines(path: Path) -> list[Row]:
    """The rows of a file; what stands after the last newline was cut off by a kill and is left out.

    Raises ResultsError for any other line that is no object.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ResultsError(f"{path}: line {number} is damaged; take it out, or the file away")
        rows.append(row)
    return rows


def _read_about(path: Path) -> Row:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ResultsError(f"{path} is no JSON ({error}); take the folder away") from None


def row_key(row: Row) -> tuple[str, str, str]:
    """System, source and instance of a row."""
    return row["system"], row["source"], row["instance"]


def _name(system: str, episode: Episode) -> Row:
    instance = episode.instance
    return {"system": system, "source": instance.source, "instance": instance.instance_id}


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _mean_or_none(values: Sequence[float]) -> float | None:
    """Of the steps that have a value: the judge may have failed on some."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None
