"""Fetching published files: resumable, checked by hash, and pinned.

A file whose SHA-256 is known here is refused when it has another. The others are pinned at the
first fetch: `downloads.json` beside them records the commit (of the hub) and the hash; from then on
the same commit is taken and other bytes are refused.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from memalpha.data.files import DOWNLOADS, sha256, write_text
from memalpha.paths import user_path

BLOCK = 1 << 20
HUB = "https://huggingface.co/datasets"


@dataclass(frozen=True)
class Remote:
    """A file: its URL, or its name in a data set repository of the hub; where it goes below the
    data folder; its SHA-256 and the commit of the repository, if known."""

    url: str
    path: str
    sha256: str = ""
    repository: str = ""
    revision: str = ""


def _files(base: str, folder: str, hashes: dict[str, str]) -> tuple[Remote, ...]:
    """Files below one URL; "" for a hash that is not known."""
    return tuple(
        Remote(f"{base}/{name}", f"{folder}/{name}", digest) for name, digest in hashes.items()
    )


def _hub(
    repository: str, folder: str, hashes: dict[str, str], revision: str = ""
) -> tuple[Remote, ...]:
    """Files of a data set repository; without a revision the first fetch pins one."""
    return tuple(
        Remote(name, f"{folder}/{name.rpartition('/')[2]}", digest, repository, revision)
        for name, digest in hashes.items()
    )


_RAW = "https://raw.githubusercontent.com"
_BANKING = f"{_RAW}/PolyAI-LDN/task-specific-datasets/57ec275d8078af65b7731c2a98be812d844a6d6b"
_CLINC = f"{_RAW}/clinc/oos-eval/828f8093932c8fe6ca7936c3d2e52903b1c523de"
_NLU = f"{_RAW}/xliuhw/NLU-Evaluation-Data/f6071b496b17d71e6eb43f543af0707f4ff30557"
_PERLTQA = f"{_RAW}/Elvin-Yiming-Du/PerLTQA/8d9e19868e239740ef701e603ec205cd581f221b"
# Hashes and commits as others have published them (docs/data.md); the two of TREC were compared
# with real files. No address could be tried where this was written.
REMOTES: dict[str, tuple[Remote, ...]] = {
    "squad": _files("https://rajpurkar.github.io/SQuAD-explorer/dataset", "squad", {
        "train-v1.1.json": "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
        "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    }),
    "squad_v2": _files("https://rajpurkar.github.io/SQuAD-explorer/dataset", "squad_v2", {
        "dev-v2.0.json": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
    }),
    "trec": _files("https://cogcomp.seas.upenn.edu/Data/QA/QC", "trec", {
        "train_5500.label": "9e4c8bdcaffb96ed61041bd64b564183d52793a8e91d84fc3a8646885f466ec3",
        "TREC_10.label": "033f22c028c2bbba9ca682f68ffe204dc1aa6e1cf35dd6207f2d4ca67f0d0e8e",
    }),
    "nlu": _files(f"{_NLU}/AnnotatedData", "nlu", {"NLU-Data-Home-Domain-Annotated-All.csv": ""}),
    "hotpotqa": _files("http://curtis.ml.cmu.edu/datasets/hotpot", "hotpotqa", {
        "hotpot_train_v1.1.json":
            "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316",
        "hotpot_dev_distractor_v1.json":
            "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
    }),
    "perltqa": _files(f"{_PERLTQA}/Dataset/en", "perltqa", {
        "perltmem_en.json": "", "perltqa_en.json": "",
    }),
    "longmemeval": _hub("xiaowu0162/longmemeval-cleaned", "longmemeval", {
        "longmemeval_oracle.json":
            "821a2034d219ab45846873dd14c14f12cfe7776e73527a483f9dac095d38620c",
        "longmemeval_s_cleaned.json":
            "d6f21ea9d60a0d56f34a05b609c79c88a451d2ae03597821ea3d5a9678c3a442",
    }, "98d7416c24c778c2fee6e6f3006e7a073259d48f"),
    "banking77": _files(f"{_BANKING}/banking_data", "banking77", {
        "train.csv": "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
        "test.csv": "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
    }),
    "clinic150": _files(f"{_CLINC}/data", "clinc150", {
        "data_full.json": "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
    }),
    "booksum": _hub("ubaada/booksum-complete-cleaned", "booksum", {
        "chapters/train.jsonl": "", "chapters/val.jsonl": "", "chapters/test.jsonl": "",
    }),
    "infinitebench": _hub("xinrongzhang2022/InfiniteBench", "infinitebench", {
        "longbook_sum_eng.jsonl":
            "3928828a83a42d47d1e4f93bc28d8bdea7cd8282814505fa0dd6dfda72d4802a",
        "longbook_qa_eng.jsonl":
            "660892d133a7669198428ad0c92d6ce8404312af742b728391a1cdf9524fab93",
    }),
    "memalpha": _hub("YuWangX/Memalpha", "memalpha", {"train.parquet": "", "test.parquet": ""}),
    "memoryagentbench": _hub(
        "YuWangX/Memalpha-Memoryagentbench", "memoryagentbench", {"test.parquet": ""}
    ),
}  # fmt: skip


def fetch(
    remote: Remote,
    data_dir: str | Path,
    timeout: float = 60.0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Bring a file below `data_dir` and return its path; one that is there is only checked.

    progress: told the bytes that are there and those in all (None: not known), for a URL.

    A fetch that broke off goes on where it stopped (`.part`). The file takes its name when its hash
    is right.

    Raises:
        ValueError: a file or a fetch with another hash than the pinned one.
        ConnectionError: no network, or the server refuses; says what to fetch by hand and where to
            put it.
    """
    target = user_path(data_dir) / remote.path
    pins = _read_pins(target.parent)
    pin = pins.get(target.name, {})
    expected = remote.sha256 or pin.get("sha256", "")
    if target.exists():
        digest = _check(target, expected)
        known = remote.revision if remote.repository else remote.url
        _pin(target, digest, pins, pin.get("origin", known))
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    origin = pin.get("origin", remote.revision)
    try:
        if remote.repository:
            origin = _fetch_from_hub(remote, origin, part)
        else:
            origin = remote.url
            _append(remote.url, part, timeout, progress)
    except OSError as error:
        where = f"{HUB}/{remote.repository} {remote.url}" if remote.repository else remote.url
        raise ConnectionError(
            f"{where}: {error}. Without a network, fetch it on another machine and put it at"
            f" {target}; run again to go on where this stopped"
        ) from error
    try:
        digest = _check(part, expected)
    except ValueError:
        part.unlink()  # of no use, and in the way of the next try
        raise
    os.replace(part, target)
    _pin(target, digest, pins, origin)
    return target


def _fetch_from_hub(remote: Remote, commit: str, part: Path) -> str:
    """Fetch at the pinned commit, or at the newest one; returns the commit."""
    try:
        commit = commit or HfApi().dataset_info(remote.repository).sha
        file = hf_hub_download(
            remote.repository,
            remote.url,
            repo_type="dataset",
            revision=commit,
            local_dir=part.parent / ".hub",  # beside the target: the client goes on there
        )
    except Exception as error:  # those of the client's transport, which versions of it exchange
        raise OSError(f"{type(error).__name__}: {error}") from error
    os.replace(file, part)
    return commit


def _append(
    url: str, part: Path, timeout: float, progress: Callable[[int, int | None], None] | None
) -> None:
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
        length = response.headers.get("Content-Length")
        whole = None if length is None else int(length) + (done if resumed else 0)
        while block := response.read(BLOCK):
            file.write(block)
            if progress is not None:
                progress(file.tell(), whole)
        if whole is not None and file.tell() < whole:
            raise OSError(f"broke off after {file.tell():,} bytes")


def _check(path: Path, expected: str) -> str:
    """The SHA-256 of a file, which is the expected one where that is known."""
    actual = sha256(path)
    if expected and actual != expected:
        raise ValueError(
            f"{path}: SHA-256 {actual} where {expected} is expected; remove the file and fetch it"
            " again, or put the published one there"
        )
    return actual


def _read_pins(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / DOWNLOADS
    return json.loads(path.read_text()) if path.exists() else {}


def _pin(path: Path, digest: str, pins: dict[str, dict[str, str]], origin: str) -> None:
    pins[path.name] = {"origin": origin, "sha256": digest}
    write_text(path.parent / DOWNLOADS, json.dumps(pins, indent=1, sort_keys=True) + "\n")
