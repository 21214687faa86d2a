"""SQuAD, TREC and NLU: files in the publishers' formats become instances."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

import memalpha.data
from memalpha.data import labelled, nlu, squad, text, trec
from memalpha.data.instance import Question, statistics, validate
from memalpha.data.sizes import Sizes

SOURCES = ("squad", "trec_coarse", "trec_fine", "nlu")


LOADERS = {name: memalpha.data.SOURCES[name][0] for name in SOURCES}


def count_words(string):
    return len(string.split())


def load_source(
    name, folder, split, count, seed, chunks, chunk_tokens, questions, count_tokens, **options
):
    sizes = Sizes(count, chunks, chunk_tokens, questions, options)
    return memalpha.data.load_source(name, folder, split, sizes, seed, count_tokens)


# Files in the published formats


def squad_file(path, titles, paragraphs=4, sentences=3):
    """Articles whose every sentence names one code, and one question a sentence."""
    data = []
    for title in titles:
        article = {"title": title, "paragraphs": []}
        for p in range(paragraphs):
            facts = [
                f"In room {p}{s} of {title} lies key {title}x{p}x{s}." for s in range(sentences)
            ]
            context, qas = " ".join(facts), []
            for s in range(sentences):
                answer = f"key {title}x{p}x{s}"
                qas.append(
                    {
                        "answers": [{"answer_start": context.index(answer), "text": answer}],
                        "id": f"{title}-{p}-{s}",
                        "question": f" What lies in room {p}{s} of {title}?",
                    }
                )
            article["paragraphs"].append({"context": context, "qas": qas})
        data.append(article)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"data": data, "version": "1.1"}))
    return path


CLASSES = {"HUM": ("ind", "gr"), "LOC": ("city", "other"), "NUM": ("date", "other")}


def trec_lines(count, word):
    pairs = [(c, f) for c, fine in CLASSES.items() for f in fine]
    return [
        f"{c}:{f} What {word} number {i} , the {c} {f} ?" for i in range(count) for c, f in pairs
    ]


@pytest.fixture
def folder(tmp_path):
    squad_file(tmp_path / "squad" / "train-v1.1.json", [f"Town{i}" for i in range(40)])
    squad_file(tmp_path / "squad" / "dev-v1.1.json", [f"Dev{i}" for i in range(6)])
    (tmp_path / "trec").mkdir()
    lines = trec_lines(40, "was") + ["HUM:ind Who stands in both files ?"]
    lines[0] = "HUM:ind What was a caf\xe9 \xf0 ?"
    (tmp_path / "trec" / "train_5500.label").write_bytes("\n".join(lines).encode("latin-1"))
    lines = trec_lines(12, "is") + ["HUM:ind who stands in both files?"]
    (tmp_path / "trec" / "TREC_10.label").write_text("\n".join(lines) + "\n")
    (tmp_path / "nlu").mkdir()
    rows = ["answerid;scenario;intent;answer_annotation;answer_from_anno;answer_from_user"]
    for i in range(200):
        for scenario, intent in (("alarm", "set"), ("alarm", "query"), ("play", "music")):
            said = f'""{scenario}"" {intent}; please, number {i}'
            rows.append(f'{i};{scenario};{intent};"[x : {i}]";"{said}";"{said}"')
    (tmp_path / "nlu" / "fold.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def load(folder, name, split="train", **changes):
    sizes = dict(count=3, seed=0, chunks=3, chunk_tokens=60, questions=6)
    return load_source(name, folder, split, **{**sizes, **changes}, count_tokens=count_words)


# What all sources keep to


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("name", SOURCES)
def test_instances_have_the_sizes_asked_for(folder, name, split):
    instances = load(folder, name, split)
    figures = statistics(instances, count_words)
    assert list(figures) == [name]
    assert figures[name]["instances"] == 3
    assert figures[name]["chunks_per_instance"] == 3
    assert figures[name]["max_chunk_tokens"] <= 60
    assert figures[name]["tokens_per_chunk"] > 35
    assert figures[name]["questions_per_instance"] == 6
    assert len({instance.instance_id for instance in instances}) == 3
    for instance in instances:
        assert validate(instance) is instance
        days = [chunk.split("\n")[0] for chunk in instance.chunks]
        assert days == [
            f"[Dialogue between User and Assistant on 2024-01-0{day} 00:00]" for day in (1, 2, 3)
        ]
        assert all(c.split("\n")[1].startswith("<User>") for c in instance.chunks)
        assert all(c.split("\n")[-1].startswith("<Assistant>") for c in instance.chunks)
        assert all(re.fullmatch("[0-9a-f]{64}", h) for h in instance.metadata["files"].values())


@pytest.mark.parametrize("name", SOURCES)
def test_instances_depend_on_the_seed_and_not_on_the_order_in_the_file(folder, name):
    before = load(folder, name)
    assert load(folder, name) == before
    assert load(folder, name, count=1) == before[:1]
    assert not {i.chunks for i in load(folder, name, seed=1)} & {i.chunks for i in before}
    train = folder / "squad" / "train-v1.1.json"
    articles = json.loads(train.read_text())
    articles["data"].reverse()
    train.write_text(json.dumps(articles))
    path = folder / "trec" / "train_5500.label"
    path.write_bytes(b"\n".join(reversed(path.read_bytes().split(b"\n"))))
    path = folder / "nlu" / "fold.csv"
    header, *rows = path.read_text().strip().split("\n")
    path.write_text("\n".join([header, *reversed(rows)]))
    after = load(folder, name)
    assert [(i.chunks, i.questions) for i in after] == [(i.chunks, i.questions) for i in before]
    assert after[0].metadata["files"] != before[0].metadata["files"]


# SQuAD


def test_squad_asks_only_what_the_chunks_say(folder):
    for instance in load(folder, "squad", chunk_tokens=80, questions=100):
        read = "\n".join(instance.chunks)
        assert instance.metadata["unanswerable_share"] == 0
        assert len(instance.questions) == 3 * sum(map(len, instance.metadata["titles"]))
        for question in instance.questions:
            room, title = re.fullmatch(
                r"What lies in room (\d+) of (\w+)\?", question.question
            ).groups()
            assert question.answers == (f"key {title}x{room[0]}x{room[1]}",)
            assert f"In room {room} of {title} lies {question.answers[0]}." in read


def test_squad_cuts_a_long_paragraph_after_a_sentence_and_reports_the_lost_questions(folder):
    frame = count_words(text.dialogue_chunk(squad.LEAD_IN, squad.ACKNOWLEDGEMENT, 0, ""))
    instances = load(folder, "squad", chunk_tokens=frame + 17, questions=100)  # 2 of 3 sentences
    for instance in instances:
        assert instance.metadata["unanswerable_share"] == pytest.approx(1 / 3)
        assert len(instance.questions) == 2 * 3
        for chunk in instance.chunks:
            content = chunk.split("\n\n")[1].split("\n")[0]
            assert len(re.findall(r"lies key \w+\.", content)) == 2 and content.endswith(".")


def test_squad_questions_come_from_all_chunks_in_turn(folder):
    for instance in load(folder, "squad", questions=3, count=5):
        homes = [
            next(i for i, c in enumerate(instance.chunks) if question.answers[0] + "." in c)
            for question in instance.questions
        ]
        assert sorted(homes) == [0, 1, 2]


def test_squad_reads_every_paragraph_before_one_is_read_again(folder):
    paragraphs = [p for p in squad.load_folder(folder).paragraphs if p.split == "train"]
    times = Counter()
    for instance in load(folder, "squad", count=2 * len(paragraphs) // 3, questions=1):
        shown = [p.context for p in paragraphs if any(p.context in c for c in instance.chunks)]
        assert len(shown) == sum(map(len, instance.metadata["titles"]))
        times.update(shown)
        counts = [times[p.context] for p in paragraphs]
        assert max(counts) - min(counts) <= 1
    assert max(counts) == 2


def test_squad_splits_are_disjoint_by_article(folder):
    records = squad.load_folder(folder)
    owners = {split: set() for split in text.SPLITS}
    for paragraph in records.paragraphs:
        owners[paragraph.split].add(paragraph.title)
    assert sum(map(len, owners.values())) == 46
    assert owners["test"] == {f"Dev{i}" for i in range(6)}
    assert 0 < len(owners["validation"]) < len(owners["train"])
    fewer = squad_file(folder / "few.json", sorted(owners["validation"])[:1])
    assert {p.split for p in squad.load([fewer]).paragraphs} == {"validation"}


def test_squad_article_in_both_files_stays_in_test_alone(tmp_path):
    dev = squad_file(tmp_path / "dev.json", ["Dev0"])
    train = squad_file(tmp_path / "train.json", ["Dev0", "Town1"])
    train.write_text(train.read_text().replace('"id": "', '"id": "again-'))
    records = squad.load([train], [dev])
    titles = {(paragraph.title, paragraph.split) for paragraph in records.paragraphs}
    assert titles == {("Dev0", "test"), ("Town1", "train")}
    assert sum(len(paragraph.questions) for paragraph in records.paragraphs) == 2 * 4 * 3


def test_squad_keeps_all_right_answers_the_first_one_first(tmp_path):
    context = "The tower is red. It was built in 1900, they say."
    answers = [(34, "1900"), (31, "in 1900"), (34, "1900"), (0, "1900")]
    records = [{"answer_start": start, "text": answer} for start, answer in answers]
    qas = [
        {"id": "a", "question": "When?", "answers": records},
        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    path = tmp_path / "dev.json"
    article = {"title": "T", "paragraphs": [{"context": context, "qas": qas}]}
    path.write_text(json.dumps({"data": [article]}))
    records = squad.load([], [path])
    (instance,) = squad.build(records, "test", Sizes(1, 1, 40, 9), 0, count_words)
    assert instance.questions == (Question("When?", ("1900", "in 1900")),)
    assert instance.facts["unanswerable_share"] == 0.5
    assert instance.facts["question_ids"] == ["a"]


# TREC and NLU


@pytest.mark.parametrize("name", ["trec_coarse", "trec_fine", "nlu"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_are_right_balanced_and_asked_of_unseen_sentences(folder, name, split):
    tail = "\n\n" + labelled.TAIL
    for instance in load(folder, name, split, chunk_tokens=90, questions=12):
        names = instance.metadata["label_names"]
        assert list(names.values()) == sorted(names.values())
        assert list(names) == [str(i) for i in range(len(names))]
        shown = re.findall(r"Sentence: (.*)\nLabel: (\d+)", "\n".join(instance.chunks))
        asked = []
        for question in instance.questions:
            assert question.question.endswith(tail)
            sentence = question.question.removeprefix("Sentence: ").removesuffix(tail)
            asked.append((sentence, question.answers[0]))
        assert not {s for s, _ in shown} & {s for s, _ in asked}
        for sentence, number in shown + asked:
            if "caf\xe9" in sentence or "both files" in sentence:
                continue
            label = names[number]
            parts = label.split("_") if name == "nlu" else label.split(":")
            assert all(part in sentence for part in parts), (label, sentence)
        assert {n for _, n in asked} <= {n for _, n in shown}
        for pairs in (shown, asked):
            counts = Counter(n for _, n in pairs)
            assert len(counts) == len(names)
            assert max(counts.values()) - min(counts.values()) <= 2


def test_a_sentence_that_no_chunk_has_room_for_is_passed_over():
    """Else it takes the room of several that fit, and the chunks stay empty."""
    short = [labelled.Sentence(f"s{i}", f"word {i}", "ab"[i % 2], "train") for i in range(60)]
    long = [labelled.Sentence(f"l{i}", f"w{i} " * 60, "ab"[i % 2], "train") for i in range(60)]
    records = labelled.Labelled("trec_coarse", (*short, *long), ("a", "b"), {})
    instances = list(labelled.build(records, "train", Sizes(20, 2, 50, 4), 0, count_words))
    assert all(len(instance.chunks) == 2 for instance in instances)
    shown = {name for instance in instances for ids in instance.facts["chunk_ids"] for name in ids}
    assert shown <= {sentence.record_id for sentence in short}


def test_only_shown_classes_are_asked_when_not_all_fit(folder):
    for instance in load(folder, "trec_fine", count=5, chunks=1, chunk_tokens=50, questions=50):
        shown = set(re.findall(r"\nLabel: (\d+)", instance.chunks[0]))
        assert 0 < len(shown) < 6
        assert {question.answers[0] for question in instance.questions} == shown
        assert len(instance.questions) == 50


def test_examples_do_not_come_class_by_class_in_a_fixed_order(folder):
    orders = set()
    for instance in load(folder, "trec_coarse", count=4, chunk_tokens=90):
        labels = re.findall(r"\nLabel: (\d+)", "\n".join(instance.chunks))
        rounds = [tuple(labels[i : i + 3]) for i in range(0, len(labels) - 2, 3)]
        assert any(len(set(one)) < 3 for one in rounds)
        orders.add(tuple(labels))
    assert len(orders) == 4


@pytest.mark.parametrize("name", ["trec_coarse", "trec_fine", "nlu"])
def test_sentences_are_in_one_split(folder, name):
    records = LOADERS[name](folder)
    keys = [text.plain_key(sentence.text) for sentence in records.sentences]
    assert len(keys) == len(set(keys))
    assert {sentence.split for sentence in records.sentences} == set(text.SPLITS)


def test_trec_reads_latin_1_and_leaves_test_questions_out_of_training(folder):
    records = trec.load_folder(folder, labels="fine")
    by_text = {sentence.text: sentence for sentence in records.sentences}
    assert by_text["What was a caf\xe9 \xf0 ?"].record_id == "train_5500.label:1"
    assert by_text["who stands in both files?"].split == "test"
    assert "Who stands in both files ?" not in by_text
    assert records.label_names[:3] == ("HUM:gr", "HUM:ind", "LOC:city")
    assert trec.load_folder(folder, labels="coarse").label_names == ("HUM", "LOC", "NUM")


def test_a_sentence_with_two_classes_is_left_out(tmp_path):
    path = tmp_path / "train_5500.label"
    path.write_text("NUM:other How many ?\nNUM:count How  many?\nHUM:ind Who\x85 \x1c\u4e2d ?\n")
    fine = trec.load(path, labels="fine")
    assert [s.text for s in fine.sentences] == ["Who\x85 \x1c\u4e2d ?"]
    assert fine.left_out == {"sentences with two classes": 2}
    coarse = trec.load(path, labels="coarse")
    assert len(coarse.sentences) == 2
    assert coarse.left_out == {"sentences that stand twice": 1}


FULL_HEADER = (
    "userid;answerid;scenario;intent;status;answer_annotation;notes;suggested_entities;"
    "answer_normalised;answer;question"
)


def test_nlu_layouts(tmp_path):
    folder = tmp_path / "nlu"
    folder.mkdir()
    (folder / "c.csv").write_text(
        "answerid;scenario;intent;answer_annotation;answer_from_anno;answer_from_user\n"
        '1;alarm;set;"x";"wake me at five";"wake me at 5"\n'
        "1;iot;hue_lighton;x;lights; y\n"
    )
    records = nlu.load_folder(tmp_path)
    assert [(s.text, s.label) for s in records.sentences] == [
        ("wake me at five", "alarm_set"),
        ("lights", "iot_hue_lighton"),
    ]
    (folder / "b.csv").write_text('text,label,how\nwake me at 5,alarm_set,matched\n"a, b",x_y,z\n')
    records = nlu.load_folder(tmp_path)
    assert [(s.text, s.label) for s in records.sentences] == [
        ("wake me at 5", "alarm_set"),
        ("a, b", "x_y"),
    ]
    (folder / "a.csv").write_text(
        f"{FULL_HEADER}\r\n1;1;alarm;set;null;x;;;n;wake me at 5;q\r\n"
        "1;2;alarm;set;IRR_XL;x;;;n;nonsense;q\r\n1;3;alarm;set;;x;;;n;null;q\r\n"
    )
    records = nlu.load_folder(tmp_path)
    assert [(s.text, s.label) for s in records.sentences] == [("wake me at 5", "alarm_set")]
    assert list(records.files) == ["a.csv"]
    assert records.left_out == {"rows marked irrelevant, or empty": 2}
    assert memalpha.data.unread_files("nlu", tmp_path, records) == ["b.csv", "c.csv"]


# Bad input


def test_squad_ids_must_differ_also_between_files(tmp_path):
    one, two = (squad_file(tmp_path / name, ["Same"]) for name in ("one.json", "two.json"))
    with pytest.raises(ValueError, match=r"two\.json: .*'Same-0-0' stands already at .*one\.json"):
        squad.load([one, two])


@pytest.mark.parametrize("name", SOURCES)
def test_absent_empty_and_pointer_files(folder, tmp_path_factory, name):
    with pytest.raises(
        ValueError, match=f"{name.split('_')[0]}.*(no such file|no train|no .*csv).*put"
    ):
        load(tmp_path_factory.mktemp("empty"), name)
    for content, named in [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ]:
        for path in folder.glob("*/*"):
            path.write_bytes(content)
        with pytest.raises(ValueError, match=named):
            load(folder, name)


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(name="squat"), "unknown data source 'squat'; known: squad, trec_coarse"),
        (dict(split="dev"), "unknown split 'dev'; known: train, validation, test"),
        (dict(chunks=0), "chunks must be at least 1"),
        (dict(questions=0), "questions must be at least 1"),
        (dict(chunk_tokens=3), "fills 0 of 3 chunks of 3 tokens"),
        (dict(chunks=10**6), "of 1000000 chunks"),
    ],
)
def test_impossible_requests_say_why(folder, changes, named):
    with pytest.raises(ValueError, match=named):
        load(folder, **{"name": "squad", **changes})


def test_a_split_that_is_too_small_says_how_small(folder):
    with pytest.raises(
        ValueError, match=r"'test' split has 73 sentences in 3 classes, .* of 99 chunks"
    ):
        load(folder, "trec_coarse", "test", chunks=99)


# The real files, where they are

DATA_DIR = Path(
    os.environ.get("MEMALPHA_DATA_DIR", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.mark.skipif(
    not all((DATA_DIR / name).is_dir() for name in ("squad", "trec", "nlu")),
    reason=f"no published files in {DATA_DIR}; set MEMALPHA_DATA_DIR to the folder that holds them",
)
@pytest.mark.parametrize(
    "name, chunk_tokens", [("squad", 1100), ("trec_coarse", 400), ("nlu", 600)]
)
def test_published_files_give_instances_of_the_size_of_table_7(name, chunk_tokens):
    seen = {}
    for split in text.SPLITS:
        instances = load_source(name, DATA_DIR, split, 2, 0, 10, chunk_tokens, 100, count_words)
        figures = statistics(instances, count_words)[name]
        print(name, split, figures)
        assert figures["chunks_per_instance"] == 10
        assert figures["questions_per_instance"] == 100
        assert 0.85 * chunk_tokens < figures["tokens_per_chunk"] <= figures["max_chunk_tokens"]
        assert figures["max_chunk_tokens"] <= chunk_tokens
        seen[split] = {i for instance in instances for i in instance.metadata["question_ids"]}
    assert not seen["train"] & seen["test"] and not seen["validation"] & seen["test"]
