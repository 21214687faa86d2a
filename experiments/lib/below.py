"""What stands below every table: how memories were read and judged, and of each system what it cost
and how far its model followed the form that was asked for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.lib.intervals import DRAWS, LEVEL
from experiments.lib.judged import (
    describe_check,
    is_judged,
    judged_title,
    not_measured,
    read_checks,
    total,
)
from experiments.lib.pool import Key, Pool, Weights
from experiments.lib.results import ResultsError, Row


class Shown(NamedTuple):
    """A row of a table: what the table calls a system, and its cells."""

    label: str
    keys: tuple[Key, ...]


def below(pool: Pool, shown: Sequence[Shown], small: bool) -> tuple[str, list[str]]:
    """What a title ends with where the judge is not fit, and the notes that stand below the table.

    Raises ResultsError where a judge scored any of it and nobody measured the judge.
    """
    rows = {one: [row for key in one.keys for row in pool.rows_of(key, small)] for one in shown}
    rows = {one: its_rows for one, its_rows in rows.items() if its_rows}
    notes = [_reading(pool)]
    if not rows:
        return "", notes
    check = _judge(pool, {row["source"] for its_rows in rows.values() for row in its_rows})
    notes += [check[1]] if check else []
    notes.append(_questions([row for its_rows in rows.values() for row in its_rows]))
    for one, of in rows.items():
        parts = (_cost(of), _followed(of), _training(pool, one.keys))
        notes.append(f"{one.label}: {'; '.join(filter(None, parts))}.")
    return check[0] if check else "", [*notes, *_made_with(pool)]


def _reading(pool: Pool) -> str:
    reading = pool.reading
    size = f" of {reading['dimensions']} dimensions" if reading["retriever"] == "scann" else ""
    return (
        f"Reader: {reading['reader']}; judge: {reading['judge']}; retriever: {reading['retriever']}"
        f"{size}; top k: {reading['top_k']}."
    )


def _judge(pool: Pool, sources: set[str]) -> tuple[str, str] | None:
    """What is known of the judge of these sources, for the title and for below the table; None
    where none of them is judged. Measured on other sources, where not on these."""
    judged = sorted(filter(is_judged, sources))
    if not judged:
        return None
    checks = read_checks(pool.abouts, pool.reading["judge"])
    if not checks:
        raise ResultsError(not_measured(pool.reading["judge"], judged))
    own = {source: check for source, check in checks.items() if source in judged} or checks
    check = total(own.values())
    return judged_title("", check), f"{describe_check(check)} Measured on {', '.join(own)}."


def _questions(rows: Sequence[Row]) -> str:
    """How many questions there were, each instance counted once."""
    of_source: dict[str, dict[str, Row]] = {}
    for row in rows:
        of_source.setdefault(row["source"], {})[row["instance"]] = row
    texts = []
    for source, instances in of_source.items():
        asked = sum(row["questions"] for row in instances.values())
        dropped = sum(row.get("dropped", 0) for row in instances.values())
        texts.append(f"{source} {asked}, {dropped} more dropped before they were asked")
    return f"Questions: {'; '.join(texts)}."


def _followed(rows: Sequence[Row]) -> str:
    """How far the model that wrote followed its form: what was refused, echoed and repeated."""
    counted = [Counter(row["rejected"]) for row in rows if "rejected" in row]
    refused, parts = sum(counted, Counter()), []
    if refused:
        each = {reason: count / len(counted) for reason, count in refused.most_common()}
        reasons = ", ".join(f"{reason} {count:.2g}" for reason, count in each.items())
        parts.append(f"parts of replies refused an instance: {reasons}")
    for name, what in (("echoed", "words that repeat our prompts"), ("repeated", "copied entries")):
        shares = [row[name] for row in rows if row.get(name) is not None]
        parts += [f"{what} {np.mean(shares):.0%}"] if any(shares) else []
    return ", ".join(parts)


def _cost(rows: Sequence[Row]) -> str:
    """Means over instances, and of reading over questions."""

    def mean(name: str) -> float | None:
        values = [row[name] for row in rows if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    calls, read = mean("write_calls"), mean("reader_tokens")
    parts = []
    if calls is not None:
        parts.append(
            f"writes with {calls:.1f} model calls an instance, {mean('write_prompt_tokens'):.0f}"
            f" tokens in and {mean('write_tokens'):.0f} out"
            if calls
            else "writes without a model"
        )
    parts += [f"the reader gets {read:.0f} tokens a question"] if read is not None else []
    seconds = mean("seconds")
    parts += [f"{seconds:.3g} s an instance"] if seconds is not None else []
    failed = sum(row["failed"] for row in rows)
    parts += [f"{failed} questions failed"] if failed else []
    return ", ".join(parts) or "cost not told"


def _training(pool: Pool, keys: Sequence[Key]) -> str:
    """What a system was trained on and with which seeds, by the settings of its folders."""
    systems = {(key.split, key.weights, key.system) for key in keys}
    texts = []
    for about in pool.abouts.values():
        weights = Weights(**about["reward"])
        for split, wanted, system in systems:
            if (about["split"], weights) == (split, wanted) and system in about["systems"]:
                texts.append(_trained_on(system, about["systems"][system]))
    return " and ".join(dict.fromkeys(texts)) or "training not told"


def _trained_on(system: str, about: Mapping) -> str:
    if system == "perfect":
        return "not trained, it is told what to store"
    config = about.get("trained")
    if config is None:
        return "not trained here"
    sources = ", ".join(dict.fromkeys(config.get("data", {}).get("sources", ())))
    return f"trained on {sources or 'sources not told'}, seed {config.get('seed')}"


def _made_with(pool: Pool) -> list[str]:
    abouts = pool.abouts.values()
    seeds = sorted({about["seed"] for about in abouts if "seed" in about})
    lines = [
        f"Seeds of the evaluation: {', '.join(map(str, seeds)) or 'not told'}; intervals:"
        f" {LEVEL:.0%}, bootstrap over instances, {DRAWS:,} draws."
    ]
    for head, name in (("Prompts (SHA-256)", "prompts"), ("Versions", "versions")):
        of_all = [about[name] for about in abouts if about.get(name)]
        flat = [one for some in of_all for one in (some if isinstance(some, list) else [some])]
        told = [" ".join(f"{key} {value}," for key, value in one.items())[:-1] for one in flat]
        lines += [f"{head}: {'; '.join(dict.fromkeys(told))}."] if told else []
    return lines
