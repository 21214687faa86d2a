"""Fetching published files: resumable, checked by hash, and pinned.

A file whose SHA-256 is known here is refused when it has another. The others are pinned at the
first fetch: `downloads.json` beside them records the commit (of the hub) and the hash; from then on
the same commit is taken and other bytes are refused.
"""

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from memalpha.data.files import sha256, write_text

BLOCK = 1 << 20
LOCK = "downloads.json"
HUB = "https://huggingface.co/datasets"


@dataclass(frozen=True)
class Remote:
    """A file: its URL, or its name in a data set repository of the hub; where it goes below the
    data folder; its SHA-256 if known."""

    url: str
    path: str
    sha256: str = ""
    repository: str = ""


def _hub(repository: str, file: str, path: str) -> Remote:
    return Remote(file, path, repository=repository)


_SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
_TREC = "https://cogcomp.seas.upenn.edu/Data/QA/QC"
_RAW = "https://raw.githubusercontent.com"
_HOTPOT = "http://curtis.ml.cmu.edu/datasets/hotpot"
_PERLTQA = f"{_RAW}/Elvin-Yiming-Du/PerLTQA/main/Dataset/en"
_NLU = f"{_RAW}/xliuhw/NLU-Evaluation-Data/master/AnnotatedData"
_NLU_FILE = "NLU-Data-Home-Domain-Annotated-All.csv"
_BENCH = "xinrongzhang2022/InfiniteBench"
# Hashes as TensorFlow Datasets publishes them; the two of TREC were compared with real files. The
# other addresses could not be tried where this was written.
REMOTES: dict[str, tuple[Remote, ...]] = {
    "squad": (
        Remote(
            f"{_SQUAD}/train-v1.1.json",
            "squad/train-v1.1.json",
            "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
        ),
        Remote(
            f"{_SQUAD}/dev-v1.1.json",
            "squad/dev-v1.1.json",
            "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
        ),
    ),
    "trec": (
        Remote(
            f"{_TREC}/train_5500.label",
            "trec/train_5500.label",
            "9e4c8bdcaffb96ed61041bd64b564183d52793a8e91d84fc3a8646885f466ec3",
        ),
        Remote(
            f"{_TREC}/TREC_10.label",
            "trec/TREC_10.label",
            "033f22c028c2bbba9ca682f68ffe204dc1aa6e1cf35dd6207f2d4ca67f0d0e8e",
        ),
    ),
    "nlu": (Remote(f"{_NLU}/{_NLU_FILE}", f"nlu/{_NLU_FILE}"),),
    "hotpotqa": tuple(
        Remote(f"{_HOTPOT}/{name}", f"hotpotqa/{name}")
        for name in ("hotpot_train_v1.1.json", "hotpot_dev_distractor_v1.json")
    ),
    "perltqa": tuple(
        Remote(f"{_PERLTQA}/{name}", f"perltqa/{name}")
        for name in ("perltmem_en.json", "perltqa_en.json")
    ),
    "longmemeval": tuple(
        _hub("xiaowu0162/longmemeval-cleaned", name, f"longmemeval/{name}")
        for name in ("longmemeval_oracle.json", "longmemeval_s_cleaned.json")
    ),
    "banking77": tuple(
        Remote(
            f"{_RAW}/PolyAI-LDN/task-specific-datasets/master/banking_data/{name}",
            f"banking77/{name}",
        )
        for name in ("train.csv", "test.csv")
    ),
    "clinic150": (
        Remote(f"{_RAW}/clinc/oos-eval/master/data/data_full.json", "clinc150/data_full.json"),
    ),
    "booksum": tuple(
        _hub("ubaada/booksum-complete-cleaned", f"chapters/{name}", f"booksum/{name}")
        for name in ("train.jsonl", "val.jsonl", "test.jsonl")
    ),
    "infinitebench": tuple(
        _hub(_BENCH, name, f"infinitebench/{name}")
        for name in ("longbook_sum_eng.jsonl", "longbook_qa_eng.jsonl")
    ),
    "memalpha": tuple(
        _hub("YuWangX/Memalpha", name, f"memalpha/{name}")
        for name in ("train.parquet", "test.parquet")
    ),
    "memoryagentbench": (
        _hub(
            "YuWangX/Memalpha-Memoryagentbench", "test.parquet", "memoryagentbench/test.parquet"
        ),
    ),
}  # fmt: skip


def fetch(remote: Remote, data_dir: str | Path, timeout: float = 60.0) -> Path:
    """Bring a file below `data_dir` and return its path; one that is there is only checked.

    A fetch that broke off goes on where it stopped (`.part`). The file takes its name when its hash
    is right.

    Raises:
        ValueError: a file or a fetch with another hash than the pinned one.
        ConnectionError: no network, or the server refuses; says what to fetch by hand and where to
            put it.
    """
    target = Path(data_dir) / remote.path
    pins = _read_pins(target.parent)
    pin = pins.get(target.name, {})
    expected = remote.sha256 or pin.get("sha256", "")
    if target.exists():
        found = _check(target, expected)
        _pin(target, found, pins, pin.get("origin", remote.url if not remote.repository else ""))
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    origin = pin.get("origin", "")
    try:
        if remote.repository:
            origin = _fetch_from_hub(remote, origin, part)
        else:
            origin = remote.url
            _append(remote.url, part, timeout)
    except OSError as error:
        where = f"{HUB}/{remote.repository} {remote.url}" if remote.repository else remote.url
        raise ConnectionError(
            f"{where}: {error}. Without a network, fetch it on another machine and put it at"
            f" {target}; run again to go on where this stopped"
        ) from error
    try:
        found = _check(part, expected)
    except ValueError:
        part.unlink()  # of no use, and in the way of the next try
        raise
    os.replace(part, target)
    _pin(target, found, pins, origin)
    return target


def _fetch_from_hub(remote: Remote, commit: str, part: Path) -> str:
    """Fetch at the pinned commit, or at the newest one; returns the commit."""
    try:
        commit = commit or HfApi().dataset_info(remote.repository).sha
        found = hf_hub_download(
            remote.repository,
            remote.url,
            repo_type="dataset",
            revision=commit,
            local_dir=part.parent / ".hub",  # beside the target: the client goes on there
        )
    except Exception as error:  # those of the client's transport, which versions of it exchange
        raise OSError(f"{type(error).__name__}: {error}") from error
    os.replace(found, part)
    return commit


def _append(url: str, part: Path, timeout: float) -> None:
    """Fetch what the part does not hold yet."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing is left to fetch: the part is whole
            return
        raise
    resumed = response.status == 206
    with response, part.open("ab" if resumed else "wb") as file:
        while block := response.read(BLOCK):
            file.write(block)
        length = response.headers.get("Content-Length")
        if length is not None and file.tell() < int(length) + (done if resumed else 0):
            raise OSError(f"broke off after {file.tell():,} bytes")


def _check(path: Path, expected: str) -> str:
    """The SHA-256 of a file, which is the expected one where that is known."""
    found = sha256(path)
    if expected and found != expected:
        raise ValueError(
            f"{path}: SHA-256 {found} where {expected} is expected; remove the file and fetch it"
            " again, or put the published one there"
        )
    return found


def _read_pins(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / LOCK
    return json.loads(path.read_text()) if path.exists() else {}


def _pin(path: Path, digest: str, pins: dict[str, dict[str, str]], origin: str) -> None:
    pins[path.name] = {"origin": origin, "sha256": digest}
    write_text(path.parent / LOCK, json.dumps(pins, indent=1, sort_keys=True) + "\n")
