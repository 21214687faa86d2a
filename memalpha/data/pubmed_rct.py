"""PubMed RCT: sentences of medical abstracts, in the 5 parts of an abstract.

The paper used the set of 200,000 abstracts with digits kept. Of a file that large, the abstracts
with the lowest hashes are kept, so that memory stays bounded and the choice does not depend on the
order in the file.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from memalpha.data import files, text
from memalpha.data.labelled import Labelled, Sentence, build, collect
from memalpha.paths import user_path

__all__ = ["build", "load_folder"]

SOURCE = "pubmed_rct"
LABELS = ("BACKGROUND", "CONCLUSIONS", "METHODS", "OBJECTIVE", "RESULTS")  # the hub's integers
EXAMPLE = "Sample: {text}\nLabels: {label}"
TAIL = "What are the labels for the above medical abstract sentence?"
MAX_ABSTRACTS = 20_000  # of each file: about 230,000 sentences, ten times what the paper shows
VALIDATION_SHARE = 0.1  # of the training abstracts, where no validation file is there
_ID = re.compile(r"###(\S+)")

Abstract = tuple[str, list[Sentence]]


def load_folder(data_dir: str | Path) -> Labelled:
    """Read pubmed_rct/{train,validation,dev,test}*.{txt,jsonl}: the text or the hub layout.

    An abstract is in one split. Errors: ValueError naming file, line and field.
    """
    folder = user_path(data_dir) / SOURCE
    advice = "put train.txt, dev.txt and test.txt (or the hub's *.jsonl) of PubMed RCT there"
    names = {"test": "test", "dev": "validation", "validation": "validation", "train": ""}
    owners: dict[str, str] = {}  # the split of every abstract; the first file that has it decides
    digests: dict[str, str] = {}
    sentences: list[Sentence] = []
    left_out: Counter[str] = Counter()
    files.find(folder, [f"{name}*.{kind}" for name in names for kind in ("txt", "jsonl")], advice)
    for name, split in names.items():
        for path in sorted([*folder.glob(f"{name}*.txt"), *folder.glob(f"{name}*.jsonl")]):
            digests[path.name] = files.digest(path)
            abstracts, total = text.lowest(
                _abstracts(path), MAX_ABSTRACTS, lambda abstract: text.rank("pubmed", abstract[0])
            )
            left_out[f"abstracts past {MAX_ABSTRACTS:,} of a file"] += total - len(abstracts)
            for pmid, rows in abstracts:
                held_out = text.share("pubmed abstract", pmid) < VALIDATION_SHARE
                own = split or ("validation" if held_out else "train")
                if owners.setdefault(pmid, own) == own:
                    sentences += [replace(row, split=own) for row in rows]
                else:
                    left_out["abstracts that stand in another split too"] += 1
    merged = collect(
        SOURCE, sentences, digests, lambda key: "train", classes=LABELS, left_out=left_out
    )
    return replace(merged, example=EXAMPLE, tail=TAIL)


def _abstracts(path: Path) -> Iterator[Abstract]:
    """(abstract id, its sentences); ValueError if an id comes back after another abstract."""
    seen: set[str] = set()
    pmid, rows = "", []
    for owner, row in _hub_rows(path) if path.suffix == ".jsonl" else _text_rows(path):
        if owner != pmid:
            if pmid:
                yield pmid, rows
            if owner in seen:
                raise ValueError(f"{row.record_id}: abstract {owner} stands already further up")
            seen.add(owner)
            pmid, rows = owner, []
        rows.append(row)
    if not pmid:
        raise ValueError(f"{path}: no sentences")
    yield pmid, rows


def _text_rows(path: Path) -> Iterator[tuple[str, Sentence]]:
    pmid = ""
    for number, line in files.lines(path):
        where = f"{path}: line {number}"
        if not line.strip():
            pmid = ""
            continue
        if opened := _ID.fullmatch(line.strip()):
            pmid = opened[1]
            continue
        label, tab, sentence = line.partition("\t")
        if not tab or not sentence.strip():
            raise ValueError(f"{where}: {line[:60]!r} is not LABEL<tab>sentence")
        if label not in LABELS:
            raise ValueError(f"{where}: the label {label!r} is none of {', '.join(LABELS)}")
        if not pmid:
            raise ValueError(f"{where}: a sentence without the ###ID line of its abstract")
        yield pmid, Sentence(f"{path.name}:{number}", sentence.strip(), label)


def _hub_rows(path: Path) -> Iterator[tuple[str, Sentence]]:
    for where, row in files.jsonl_records(path):
        pmid = text.require(row, "abstract_id", str, where)
        label = text.require(row, "labels", int, where)
        sentence = text.require(row, "text", str, where).strip()
        if not 0 <= label < len(LABELS):
            raise ValueError(f"{where}: field 'labels' is {label}; 0 to {len(LABELS) - 1} exist")
        name = f"{path.name}:{where.rpartition(' ')[2]}"
        yield pmid, Sentence(name, sentence, LABELS[label])
