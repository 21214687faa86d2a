"""What is known of an answer judge: its false accepts, in a file beside the rows it scored."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lib.render import Table
from experiments.lib.workdir import write_json
from memalpha.data.instance import Instance
from memalpha.data.names import JUDGED, family
from memalpha.paths import user_path
from memalpha.planted import KINDS, MAX_FALSE_ACCEPTS, JudgeCheck
from memalpha.reading import question_kind
from memalpha.scoring import Claim

FILE = "judge.json"
Checks = Mapping[str, JudgeCheck]  # by source


def claims_of(instances: Iterable[Instance], count: int) -> list[list[Claim]]:
    """The first `count` questions of the instances, a list an instance, without predictions."""
    texts, left = [], count
    for instance in instances:
        asked = list(enumerate(instance.questions))[:left]
        left -= len(asked)
        if asked:
            kinds = [question_kind(instance, number) for number, _ in asked]
            texts.append(
                [
                    Claim(instance.source, question.question, "", question.answers, kind)
                    for (_, question), kind in zip(asked, kinds, strict=True)
                ]
            )
    return texts


def total(checks: Iterable[JudgeCheck]) -> JudgeCheck:
    """The counts of several checks, added."""
    checks = list(checks)

    def by_kind(name: str) -> dict[str, int]:
        return {kind: sum(getattr(check, name)[kind] for check in checks) for kind in KINDS}

    others = ("gold_accepted", "gold_decided", "undecided")
    sums = {name: sum(getattr(check, name) for check in checks) for name in others}
    return JudgeCheck(by_kind("accepted"), by_kind("decided"), **sums)


def write_checks(folder: str | Path, judge: str, checks: Checks) -> Path:
    """Leaves the checks of a judge in a results folder; those of other sources stay."""
    path = user_path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read_checks([path.parent], judge)
    sources = {source: vars(check) for source, check in (dict(before) | dict(checks)).items()}
    write_json(path, {"judge": judge, "sources": sources})
    return path


def read_checks(folders: Iterable[str | Path], judge: str) -> dict[str, JudgeCheck]:
    """Source -> check of this judge, from all of the folders that have one."""
    checks: dict[str, JudgeCheck] = {}
    for folder in folders:
        path = user_path(folder) / FILE
        if path.exists() and (known := _read(path))["judge"] == judge:
            checks |= {source: JudgeCheck(**counts) for source, counts in known["sources"].items()}
    return checks


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); take it away") from None


def is_judged(source: str) -> bool:
    """Whether the score of a source, or of a column of a table, is the word of a judge."""
    return family(source) in JUDGED


def judged_title(title: str, check: JudgeCheck) -> str:
    """The head of a table whose judge accepts too many wrong answers says so."""
    return title if check.fit else f"{title}: judge not fit"


def describe_check(check: JudgeCheck) -> str:
    """A line for below a table."""
    if math.isnan(check.false_accepts):
        return (
            f"The judge decided on none of the planted wrong answers ({check.undecided} replies)."
        )
    kinds = ", ".join(
        f"{kind} {check.accepted[kind]} of {check.decided[kind]}"
        for kind in KINDS
        if check.decided[kind]
    )
    undecided = f"; no verdict on {check.undecided}" if check.undecided else ""
    limit = f"; not fit: more than {MAX_FALSE_ACCEPTS:.0%} of all or of a kind"
    return (
        f"The judge accepts {check.false_accepts:.1%} of planted wrong answers ({kinds}), and"
        f" {check.gold_accepted} of {check.gold_decided} gold answers{undecided}"
        f"{'' if check.fit else limit}."
    )


def check_table(judge: str, checks: Checks) -> Table:
    """False accepts of a judge by source and kind of planted answer."""
    rows = []
    both = {"all": total(checks.values())} if len(checks) > 1 else {}
    for source, check in (dict(checks) | both).items():
        cells = [_share(check.accepted[kind], check.decided[kind]) for kind in KINDS]
        planted = _share(sum(check.accepted.values()), sum(check.decided.values()))
        gold = _share(check.gold_accepted, check.gold_decided)
        rows.append((source, planted, *cells, gold, str(check.undecided)))
    heads = ("source", "false accepts", *KINDS, "gold answers accepted", "no verdict")
    title = judged_title(f"Planted wrong answers, judged by {judge}", total(checks.values()))
    return Table(title, heads, tuple(rows))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f} ({part} of {whole})" if whole else ""


def judge_notes(folder: str | Path, sources: Iterable[str]) -> list[str]:
    """Lines for figures that a judge scored, by judge.json of their folder; none for other sources,
    and a warning where the judge was not measured."""
    judged = sorted(filter(is_judged, sources))
    path = user_path(folder) / FILE
    if not judged:
        return []
    if not path.exists():
        return [not_measured("of the config", judged)]
    judge = _read(path)["judge"]
    checks = read_checks([folder], judge)
    return [f"{', '.join(judged)} by {judge}. {describe_check(total(checks.values()))}"]


def not_measured(judge: str, sources: Sequence[str]) -> str:
    """What a command says that refuses a table, or warns of its figures."""
    return (
        f"{', '.join(sources)}: scored by the judge {judge!r}, of which nobody knows how many wrong"
        " answers it accepts: python -m experiments.judge_check with the same --workdir, --set and"
        " --out measures it"
    )
