"""HotpotQA as instances: the paragraphs of some questions, the two that answer one kept apart."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from memalpha.data import files, text
from memalpha.data.instance import Draft, Question
from memalpha.data.sizes import Sizes
from memalpha.data.squad import ACKNOWLEDGEMENT, LEAD_IN
from memalpha.paths import user_path

SOURCE = "hotpotqa"
VALIDATION_SHARE = 0.1  # of the training questions, by the hash of the question
MAX_ITEMS = 40_000  # of a file, those of the lowest hashes: the paper's instances use 33,000


@dataclass(frozen=True)
class Item:
    """A question, its answer, its paragraphs (title, text), and the titles that answer it."""

    record_id: str
    question: str
    answer: str
    paragraphs: tuple[tuple[str, str], ...]
    supporting: tuple[str, ...]
    split: str

    def support(self) -> list[tuple[str, str]]:
        return [p for p in self.paragraphs if p[0] in self.supporting]


@dataclass(frozen=True)
class Items:
    """What `load` returns: all questions, the SHA-256 of each file by its name, and the number of
    questions left out, by reason."""

    items: tuple[Item, ...]
    files: dict[str, str]
    left_out: dict[str, int] = field(default_factory=dict)


def load(train: Sequence[str | Path], test: Sequence[str | Path] = ()) -> Items:
    """Read files of the official or the hub layout: JSON arrays, or JSON lines.

    Questions of `test` are the test split; those of `train` with the same words are left out. Of a
    larger file the MAX_ITEMS of the lowest hashes are kept. Errors: ValueError naming file, record
    and field, also for an id that stands twice.
    """
    digests: dict[str, str] = {}
    unique: dict[str, Item] = {}  # by the words of the question
    left_out: Counter[str] = Counter()
    for path, published in [(p, "test") for p in test] + [(p, "") for p in train]:
        digests[Path(path).name] = files.digest(path)
        items, total = text.lowest(
            _read(user_path(path), published),
            MAX_ITEMS,
            lambda item: text.rank("hotpot", item.question),
        )
        for item in items:
            if unique.setdefault(text.plain_key(item.question), item) is not item:
                left_out["questions that stand twice, or in the test too"] += 1
        left_out[f"questions past {MAX_ITEMS:,} of a file"] += total - len(items)
    return Items(tuple(unique.values()), digests, dict(+left_out))


def load_folder(data_dir: str | Path) -> Items:
    """Read hotpotqa/*train*.json[l] and hotpotqa/*dev*.json[l] below `data_dir`.

    A file named otherwise (hotpot_hub_layout.json) is read as a dev file.
    """
    folder = user_path(data_dir) / SOURCE
    advice = "put hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json there"
    paths = files.find(folder, ["*.json", "*.jsonl"], advice)
    train = [path for path in paths if "train" in path.name]
    return load(train, [path for path in paths if "train" not in path.name])


def _read(path: Path, published: str) -> Iterator[Item]:
    seen: dict[str, str] = {}
    read = files.jsonl_records if path.suffix == ".jsonl" else files.json_records
    for number, (where, record) in enumerate(read(path)):
        question = text.require(record, "question", str, where).strip()
        named = record.get("_id", record.get("id"))
        if named is not None and not isinstance(named, str):
            raise ValueError(f"{where}: the id must be a string, not {named!r}")
        if named:
            text.claim(seen, named, where)
        paragraphs = _pairs(record, "context", ("title", "sentences"), where)
        texts = tuple((title, "".join(map(str, parts)).strip()) for title, parts in paragraphs)
        facts = _pairs(record, "supporting_facts", ("title", "sent_id"), where)
        supporting = tuple(dict.fromkeys(title for title, _ in facts))
        missing = set(supporting) - {title for title, _ in texts}
        if missing or not supporting:
            raise ValueError(f"{where}: supporting titles {sorted(missing)} are not in the context")
        held_out = text.share("hotpot question", text.plain_key(question)) < VALIDATION_SHARE
        yield Item(
            f"{path.name}:{named or number}",
            question,
            text.require(record, "answer", str, where).strip(),
            tuple((title, body) for title, body in texts if body),
            supporting,
            published or ("validation" if held_out else "train"),
        )


def _pairs(record: dict, field: str, names: tuple[str, str], where: str) -> list[tuple[str, Any]]:
    """[(title, sentences or sentence number)] of the official (pairs) or the hub layout (lists)."""
    value = text.require(record, field, list | dict, where)
    if isinstance(value, dict):
        columns = [text.require(value, name, list, f"{where}: {field}") for name in names]
        if len(columns[0]) != len(columns[1]):
            raise ValueError(f"{where}: {field}: {names[0]} and {names[1]} differ in length")
        value = list(zip(*columns, strict=True))
    if not value:
        raise ValueError(f"{where}: field {field!r} must be a list or an object, and not empty")
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"{where}: {field}: {str(pair)[:60]!r} is not [title, {names[1]}]")
        if field == "context" and not isinstance(pair[1], list):
            raise ValueError(f"{where}: {field}: the sentences of {pair[0]!r} must be a list")
    return [(title.strip(), second) for title, second in value]


def build(
    records: Items, split: str, sizes: Sizes, seed: int, count_tokens: Callable[[str], int]
) -> Iterator[Draft]:
    """Yield `sizes.count` instances of `split`: about `sizes.questions` questions each.

    No question is drawn twice before all others were. All supporting paragraphs of the questions
    asked are there, the two of one question in different chunks; other paragraphs of theirs fill
    the room that is left. A question whose paragraphs find no room is not asked. Errors: ValueError
    if the split is too small.
    """
    advice = "training and validation come from *train*.json, test from *dev*.json"
    pool = text.select_split(records.items, split, SOURCE, "question", records.files, advice)
    frame = partial(text.dialogue_chunk, LEAD_IN, ACKNOWLEDGEMENT)
    room = sizes.chunk_tokens - count_tokens(frame(0, ""))
    unread: list[Item] = []
    for index in range(sizes.count):
        order = text.go_on(unread, pool, lambda item: item.record_id, "draw", seed, index)
        bins = Bins(sizes.chunks, room, count_tokens, (seed, index))
        asked, drawn = _fill(bins, order, sizes.questions)
        unread = text.left(order, unread, drawn)
        if not asked or not all(bins.contents):
            raise ValueError(
                f"hotpotqa: the {split!r} split of {sorted(records.files)} has {len(pool)}"
                f" questions, of which {len(asked)} fill {sum(map(bool, bins.contents))} of"
                f" {sizes.chunks} chunks of {sizes.chunk_tokens} tokens; ask for fewer chunks or"
                " other sizes"
            )
        asked = text.shuffled(asked, lambda item: item.record_id, "ask", seed, index)
        facts = {
            "question_ids": [item.record_id for item in asked],
            "supporting": [list(item.supporting) for item in asked],
        }
        chunks = tuple(frame(i, content) for i, content in enumerate(bins.texts()))
        yield Draft(chunks, tuple(Question(i.question, (i.answer,)) for i in asked), facts)


def _fill(bins: "Bins", order: Sequence[Item], questions: int) -> tuple[list[Item], int]:
    """Put the paragraphs of at most so many questions into the chunks: (the questions, the number
    of items of `order` that were looked at for them)."""
    asked, drawn = [], 0
    for number, item in enumerate(order, start=1):
        if len(asked) == questions:
            break
        if bins.put_apart([_render(p) for p in item.support()]):
            asked.append(item)
            drawn = number
    for item in asked:
        for paragraph in item.paragraphs:
            bins.put(_render(paragraph))
    return asked, drawn


def _render(paragraph: tuple[str, str]) -> str:
    return f"{paragraph[0]}\n{paragraph[1]}"


class Bins:
    """Chunks that are filled side by side; `contents[i]` are the texts of chunk i."""

    def __init__(
        self, chunks: int, room: int, count_tokens: Callable[[str], int], seeds: tuple[int, int]
    ):
        self.contents: list[list[str]] = [[] for _ in range(chunks)]
        self.room, self.seeds = room, seeds
        self.count = lambda item: count_tokens(text.SEPARATOR + item)
        self.left = [room] * chunks
        self.home: dict[str, int] = {}

    def put(self, item: str, avoid: Sequence[int] = ()) -> bool:
        """Put a text into a chunk with room, drawn by its hash; True if it is in one."""
        if item in self.home:
            return self.home[item] not in avoid
        size = self.count(item)
        bins = [i for i, left in enumerate(self.left) if size <= left and i not in avoid]
        if not bins:
            return False
        place = min(bins, key=lambda i: text.rank("bin", *self.seeds, i, item))
        self.contents[place].append(item)
        self.left[place] -= size
        self.home[item] = place
        return True

    def put_apart(self, items: Sequence[str]) -> bool:
        """Put all texts, each into a chunk of its own, or none of them."""
        fresh = []
        for item in items:
            if item not in self.home:
                fresh.append(item)
            others = [self.home[other] for other in items if other != item and other in self.home]
            if not self.put(item, avoid=others):
                for done in fresh:
                    self._take_out(done)
                return False
        return True

    def _take_out(self, item: str) -> None:
        if item in self.home:
            place = self.home.pop(item)
            self.contents[place].remove(item)
            self.left[place] += self.count(item)

    def texts(self) -> Iterator[str]:
        """The contents of all chunks, each in an order drawn by hash."""
        for items in self.contents:
            yield text.SEPARATOR.join(text.shuffled(items, str, "order", *self.seeds))
