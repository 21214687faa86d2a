"""A folder of results: one row per question and one row per instance.

`about.json` has the settings that the rows depend on, `questions.jsonl` one row per question,
`memories.jsonl` the final memory of each instance that has a written one, and `instances.jsonl` one
row per instance. The row of an instance is written after its others: an instance is finished once
its own row is there, newline included. A process that is killed leaves at most the rows of an
unfinished instance, and the next process that opens the folder drops them.
"""

import fcntl
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.lib.workdir import differences, write_json
from memalpha.data.files import write_text
from memalpha.data.instance import Instance
from memalpha.echoes import echoed_share, repeated_share
from memalpha.episode import Episode, Response
from memalpha.exactness import exact_share
from memalpha.memory import Outcome
from memalpha.paths import user_path
from memalpha.reading import question_kind

ABOUT, INSTANCES, QUESTIONS = "about.json", "instances.jsonl", "questions.jsonl"
MEMORIES = "memories.jsonl"
Row = dict[str, Any]


class ResultsError(ValueError):
    """A results folder with other settings, in use by another process, or damaged."""


class Results:
    """The results in a folder, which is created if necessary; a context manager with a lock."""

    def __init__(self, folder: str | Path, about: Row):
        """Opens the folder and drops the rows of unfinished instances.

        Args:
            about: the settings that the rows depend on. They must equal those of the existing rows,
                except that `systems` and `sources` ({name: settings}) may have new names. The list
                `versions` may differ: the folder keeps all of them.

        Raises:
            ResultsError: rows with other settings (says what differs), another process that writes
                to the folder, or a damaged file.
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
        write_text(self.folder / INSTANCES, _lines(rows))
        for name in (QUESTIONS, MEMORIES):
            kept = [row for row in read_lines(self.folder / name) if row_key(row) in self.done]
            write_text(self.folder / name, _lines(kept))

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_) -> None:
        self.lock.close()  # releases the lock, as the end of the process would

    def _agree(self, about: Row) -> Row:
        """The settings of the folder, extended by new systems and sources."""
        path = self.folder / ABOUT
        if not path.exists():
            return about
        before, merged = _read_about(path), dict(about)
        versions = [*before.pop("versions", []), *about.pop("versions", [])]
        if versions:
            merged["versions"] = [v for i, v in enumerate(versions) if v not in versions[:i]]
        if "prompts" not in before:  # rows of before prompts were written down
            about.pop("prompts", None)
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

        Raises ResultsError if the row is of an instance with the same name and other text.
        """
        measured = self.done.get((system, instance.source, instance.instance_id))
        if measured is not None and measured != digest(instance):
            raise ResultsError(
                f"{self.folder}: {instance.source}/{instance.instance_id} has other chunks or"
                " questions than when it was measured; choose another folder"
            )
        return measured is None

    def add(self, system: str, episodes: Sequence[Episode], seconds: Sequence[float]) -> None:
        """Writes the rows of new episodes; returns when they are on disk.

        seconds: (total time per instance, time of reading per question).
        """
        of_instance, of_question = seconds
        asked = [row for e in episodes for row in question_rows(system, e, of_question)]
        held = [memory_row(system, e) for e in episodes if e.view is not None]
        rows = [instance_row(system, e, of_instance) for e in episodes]
        for name, new in ((QUESTIONS, asked), (MEMORIES, held), (INSTANCES, rows)):
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
    """One row per question. A failed answer has no prediction and no score.

    `corrected` are the gold answers by a corrected key: None without one, empty where it leaves the
    question without an answer.
    """
    corrected = episode.instance.metadata.get("corrected_answers")
    verdicts = episode.verdicts or [""] * len(episode.answers)
    asked = zip(episode.instance.questions, episode.answers, episode.scores, verdicts, strict=True)
    return [
        _name(system, episode)
        | {
            "number": number,
            "kind": question_kind(episode.instance, number),
            "question": question.question,
            "gold": list(question.answers),
            "corrected": None if corrected is None else list(corrected[number]),
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


def memory_row(system: str, episode: Episode) -> Row:
    """The final memory of an instance, to be read: core, and the entries with the number of the
    chunk that they are of."""
    lists = {"semantic": episode.view.semantic, "episodic": episode.view.episodic}
    return _name(system, episode) | {
        "core": episode.view.core,
        **{name: [[entry.written_at, entry.text] for entry in of] for name, of in lists.items()},
    }


def instance_row(system: str, episode: Episode, seconds: float) -> Row:
    """The row of an instance. r2 and r4 are None for a system without calls, `exact` where nothing
    was stored, r1 if all answers failed; r3 and the sizes of memory and evidence if the model of a
    baseline failed. `write_calls` are those of a language model; a scripted writer makes none.
    `rejected`: parts of replies that were no-ops, by reason. `echoed`, `repeated`: see
    `memalpha.echoes`; None where nothing was stored."""
    steps, complete = episode.steps, episode.has_memory
    read = [answer.tokens for answer in episode.answers]
    by_model = [(step.response, _read(step.response)) for step in steps if _read(step.response)]
    recall = episode.recall
    calls = [outcome for step in steps for outcome in step.outcomes]
    refused = Counter(_in_words(outcome) for outcome in calls if outcome != Outcome.OK)
    return _name(system, episode) | {
        "digest": digest(episode.instance),
        "r1": _or_none(episode.r1),
        "r2": _mean_or_none([step.r2 for step in steps]),
        "r3": episode.r3 if complete else None,
        "r4": _mean_or_none([step.r4 for step in steps]),
        "exact": _or_none(exact_share([episode])),
        "memory_tokens": int(episode.memory_tokens) if complete else None,
        "chunk_tokens": int(episode.chunk_tokens),
        "chunks": len(episode.instance.chunks),
        "calls": len(calls),
        "ok_calls": calls.count(Outcome.OK),
        "rejected": dict(Counter(recall.rejected) + refused),
        "echoed": _or_none(echoed_share(episode.view)) if episode.view else None,
        "repeated": _or_none(repeated_share(episode.view)) if episode.view else None,
        "questions": len(episode.scores),
        "write_calls": recall.generations + len(by_model),
        "write_prompt_tokens": recall.prompt_tokens + sum(read for _, read in by_model),
        "write_tokens": recall.completion_tokens + sum(len(r.tokens) for r, _ in by_model),
        "dropped": episode.instance.metadata.get("dropped_questions", 0),
        "failed": sum(map(math.isnan, episode.scores)),
        "reader_tokens": sum(read) / len(read) if complete else None,
        "seconds": round(seconds, 6),
    }


def _read(response: Response) -> int:
    """Tokens that a model read for a response; 0 of a writer without one."""
    return response.prompt.size or response.prompt_tokens


def _in_words(outcome: Outcome) -> str:
    return f"call: {outcome.name.lower().replace('_', ' ')}"


def read_results(folder: str | Path) -> tuple[Row, list[Row]]:
    """The settings of a results folder, and the rows of its finished instances.

    Raises ResultsError if the folder has no results.
    """
    folder = user_path(folder)
    path = folder / ABOUT
    if not path.exists():
        raise ResultsError(f"{folder} holds no results: python -m experiments.evaluate makes them")
    return _read_about(path), read_lines(folder / INSTANCES)


def read_lines(path: Path) -> list[Row]:
    """The rows of a file; text after the last newline is of a killed process and is ignored.

    Raises ResultsError for any other line that is not a JSON object.
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
    """The mean without NaN, which marks steps that the judge failed on; None if all are NaN."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None
