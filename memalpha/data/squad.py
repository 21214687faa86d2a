"""SQuAD v1.1 (and the answerable part of v2.0) as instances: paragraphs to read, then questions."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path

from memalpha.data import text
from memalpha.data.instance import Draft, Question
from memalpha.data.sizes import Sizes
from memalpha.paths import user_path

SOURCE = "squad"
LEAD_IN = "Please remember these passages:"
ACKNOWLEDGEMENT = "I will remember them."
PHRASES = text.dialogue_phrases(LEAD_IN, ACKNOWLEDGEMENT)  # of the chunks
VALIDATION_SHARE = 0.1  # of the articles of the training files, by the hash of the title


@dataclass(frozen=True)
class Answered:
    """A question of a paragraph; answers are (character offset in the paragraph, text)."""

    record_id: str
    question: str
    answers: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, all its questions, and the split that owns its article."""

    title: str
    context: str
    questions: tuple[Answered, ...]
    split: str = ""


@dataclass(frozen=True)
class Articles:
    """What `load` returns: all paragraphs, the SHA-256 of each file by its name, and the number of
    paragraphs and questions that are never used, by reason."""

    paragraphs: tuple[Paragraph, ...]
    files: dict[str, str]
    left_out: dict[str, int] = field(default_factory=dict)


def load(
    train: Sequence[str | Path], test: Sequence[str | Path] = (), version: str = ""
) -> Articles:
    """Read SQuAD files: articles of `train` become training or validation, those of `test` test.

    An article whose title is in both stays in the test split alone. The split of an article hangs
    on its title only: not on a seed, nor on the other articles. `version`: how the version that a
    file states has to begin. Errors: ValueError naming file, record and field.
    """
    files: dict[str, str] = {}
    places: dict[str, str] = {}  # of every question id
    merged: dict[tuple[str, str], Paragraph] = {}  # a context may stand twice in an article
    test_titles: set[str] = set()
    left_out: Counter[str] = Counter()
    for path, published_test in [(p, True) for p in test] + [(p, False) for p in train]:
        data, files[Path(path).name] = text.read_json(path)
        stated = data.get("version") if isinstance(data, dict) else None
        if not str(stated).startswith(version):
            raise ValueError(f"{path}: SQuAD {version} is wanted; this file says {stated!r}")
        for paragraph in _read_paragraphs(data, str(path), places):
            if published_test:
                test_titles.add(paragraph.title)
                split = "test"
            elif paragraph.title in test_titles:
                left_out["paragraphs of a training article that is in the test too"] += 1
                continue
            else:
                held_out = text.share("squad article", paragraph.title) < VALIDATION_SHARE
                split = "validation" if held_out else "train"
            left_out["questions without an answer"] += sum(
                not question.answers for question in paragraph.questions
            )
            key = (paragraph.title, paragraph.context)
            earlier = merged[key].questions if key in merged else ()
            merged[key] = replace(paragraph, split=split, questions=earlier + paragraph.questions)
    return Articles(tuple(merged.values()), files, dict(+left_out))


def load_folder(data_dir: str | Path) -> Articles:
    """Read squad/train*.json and squad/dev*.json below `data_dir`."""
    folder = user_path(data_dir) / SOURCE
    train, test = sorted(folder.glob("train*.json")), sorted(folder.glob("dev*.json"))
    if not train and not test:
        raise ValueError(
            f"{folder}: no train*.json or dev*.json; put the published train-v1.1.json and "
            "dev-v1.1.json of SQuAD there"
        )
    return load(train, test)


def _read_paragraphs(data: object, path: str, places: dict[str, str]) -> Iterator[Paragraph]:
    for number, article in enumerate(text.require(data, "data", list, path)):
        where = f"{path}: data[{number}]"
        title = text.require(article, "title", str, where)
        for index, paragraph in enumerate(text.require(article, "paragraphs", list, where)):
            place = f"{where}.paragraphs[{index}]"
            context = text.require(paragraph, "context", str, place)
            questions = []
            for order, record in enumerate(text.require(paragraph, "qas", list, place)):
                question = _read_question(record, f"{place}.qas[{order}]")
                text.claim(places, question.record_id, f"{place}.qas[{order}]")
                questions.append(question)
            yield Paragraph(title, context, tuple(questions))


def _read_question(record: object, where: str) -> Answered:
    record_id = text.require(record, "id", str, where)
    question = text.require(record, "question", str, where).strip()
    answers = text.require(record, "answers", list, where)
    if not answers and not record.get("is_impossible", False):
        raise ValueError(f"{where}: field 'answers' is empty")
    spans = []
    for number, answer in enumerate(answers):
        place = f"{where}.answers[{number}]"
        start = text.require(answer, "answer_start", int, place)
        spans.append((start, text.require(answer, "text", str, place)))
    return Answered(record_id, question, tuple(spans))


def build(
    records: Articles, split: str, sizes: Sizes, seed: int, count_tokens: Callable[[str], int]
) -> Iterator[Draft]:
    """Yield `sizes.count` instances of `split`: paragraphs of its articles in a random order.

    No paragraph is read twice, in an instance or in two, before all others were read.
    Paragraphs stand whole in the chunks; one that is longer than a chunk is cut after its last
    sentence that fits. Only questions whose answer is inside the text that is left are asked, at
    most `sizes.questions` of them, taken from the chunks in turn. A paragraph of
    which nothing can be asked is left out. metadata["unanswerable_share"] is the share of the
    questions of the read paragraphs whose answer was cut off (or that have none).
    """
    advice = "training and validation articles come from train*.json, test articles from dev*.json"
    paragraphs = text.select_split(
        records.paragraphs, split, SOURCE, "article", records.files, advice
    )
    frame = partial(text.dialogue_chunk, LEAD_IN, ACKNOWLEDGEMENT)

    @cache
    def keep(paragraph: Paragraph) -> str:
        """The part of a paragraph to read; "" if nothing could be asked about it."""
        beginning = text.leading_sentences(
            paragraph.context, lambda part: count_tokens(frame(0, part)) <= sizes.chunk_tokens
        )
        return beginning if any(_inside(q, beginning) for q in paragraph.questions) else ""

    unread: list[Paragraph] = []
    for index in range(sizes.count):
        order = text.go_on(unread, paragraphs, _paragraph_key, "read", seed, index)
        packed = text.pack(map(keep, order), frame, sizes.chunks, sizes.chunk_tokens, count_tokens)
        if len(packed) < sizes.chunks:
            raise ValueError(
                f"squad: the {split!r} split of {sorted(records.files)} fills {len(packed)} of "
                f"{sizes.chunks} chunks of {sizes.chunk_tokens} tokens (of which"
                f" {count_tokens(frame(0, ''))} are the text around the content); ask for fewer"
                " chunks or other sizes"
            )
        read = [[order[item] for item in items] for _, items in packed]
        unread = text.left(order, unread, packed[-1][1][-1] + 1)
        asked, unanswerable = _choose_questions(read, keep, sizes.questions, (seed, index))
        facts = {
            "titles": [[p.title for p in chunk] for chunk in read],
            "question_ids": [question.record_id for question in asked],
            "unanswerable_share": unanswerable,
        }
        questions = tuple(Question(q.question, tuple(a for _, a in q.answers)) for q in asked)
        yield Draft(tuple(chunk for chunk, _ in packed), questions, facts)


def _paragraph_key(paragraph: Paragraph) -> str:
    return f"{paragraph.title}\n{paragraph.context}"


def _question_key(question: Answered) -> str:
    return question.record_id


def _inside(question: Answered, beginning: str) -> tuple[tuple[int, str], ...]:
    """The answers that stand in the beginning beginning of the paragraph, each text once."""
    starts = {
        answer: start
        for start, answer in question.answers
        if start >= 0 and beginning.startswith(answer, start)
    }
    return tuple((start, answer) for answer, start in starts.items())


def _choose_questions(
    chunks: Sequence[Sequence[Paragraph]],
    keep: Callable[[Paragraph], str],
    limit: int,
    seeds: tuple[int, int],
) -> tuple[list[Answered], float]:
    """At most `limit` questions, from every chunk in turn, and the share that has no answer."""
    queues, seen, total, answerable = [], set(), 0, 0
    for chunk in chunks:
        pool = []
        for paragraph in chunk:
            total += len(paragraph.questions)
            for question in paragraph.questions:
                answers = _inside(question, keep(paragraph))
                answerable += bool(answers)
                # Asked of two paragraphs, the same words would have two different answers.
                if answers and question.question not in seen:
                    seen.add(question.question)
                    pool.append(replace(question, answers=answers))
        queues.append(text.shuffled(pool, _question_key, "turn", *seeds))
    chosen = islice(text.in_turn(queues), limit)
    return text.shuffled(chosen, _question_key, "ask", *seeds), 1 - answerable / total
