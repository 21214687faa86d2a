"""Sources in their publishers' formats, on small files: what becomes of them, what is refused."""

import json
import re
from dataclasses import replace

import pytest

import memalpha.data
from memalpha.data import (
    SOURCES,
    banking77,
    booksum,
    checks,
    clinc150,
    hotpotqa,
    longmemeval,
    perltqa,
    pubmed_rct,
)
from memalpha.data.notes import add_notes
from memalpha.data.sizes import Sizes


def count_words(string):
    return len(string.split())


def load_source(
    name, folder, split, count, seed, chunks, chunk_tokens, questions, count_tokens, **options
):
    sizes = Sizes(count, chunks, chunk_tokens, questions, options)
    return memalpha.data.load_source(name, folder, split, sizes, seed, count_tokens)


def dump(path, data):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in data))
    else:
        path.write_text(json.dumps(data, ensure_ascii=False))
    return path


def hotpot_item(number, kind="official"):
    """Supporting: Person n and City n. The answer is in the second alone."""
    titles = [f"Person {number}", f"City {number}", f"River {number}", "Everywhere"]
    bodies = [
        [f"Person {number} was born.", f" The place was City {number}."],
        [f"City {number} is old.", f" Its colour is shade{number}."],
        [f"River {number} is long.", " It flows."],
        ["This paragraph stands in every question."],
    ]
    item = {
        "question": f"Which colour has the birthplace of Person {number}?",
        "answer": f"shade{number}",
        "type": "bridge",
        "level": "easy",
    }
    facts = [(titles[0], 1), (titles[1], 1)]
    if kind == "official":
        return item | {
            "_id": f"id{number}",
            "supporting_facts": [list(fact) for fact in facts],
            "context": [list(pair) for pair in zip(titles, bodies, strict=True)],
        }
    return item | {
        "supporting_facts": {"title": [f[0] for f in facts], "sent_id": [f[1] for f in facts]},
        "context": {"title": titles, "sentences": bodies},
    }


def hotpot_folder(tmp_path):
    dump(tmp_path / "hotpotqa" / "hotpot_train.json", [hotpot_item(i) for i in range(60)])
    dev = [hotpot_item(i, "hub") for i in range(59, 80)]  # 59 is in both
    dump(tmp_path / "hotpotqa" / "dev_hub.json", dev)
    return tmp_path


SIZES = dict(count=2, seed=0, chunks=4, chunk_tokens=120, questions=8, count_tokens=count_words)


def test_hotpot_supporting_paragraphs_stand_in_different_chunks(tmp_path):
    hotpot_folder(tmp_path)
    for split in ("train", "test"):
        for instance in load_source("hotpotqa", tmp_path, split=split, **SIZES):
            assert len(instance.chunks) == 4 and len(instance.questions) == 8
            assert max(map(count_words, instance.chunks)) <= 120
            for question in instance.questions:
                number = re.search(r"Person (\d+)", question.question)[1]
                assert question.answers == (f"shade{number}",)
                places = [
                    [i for i, c in enumerate(instance.chunks) if sentence in c]
                    for sentence in (f"City {number}.\n", f"Its colour is shade{number}.")
                ]
                assert [len(p) for p in places] == [1, 1] and places[0] != places[1]
            assert "\n".join(instance.chunks).count("stands in every question") == 1
            assert add_notes(instance).metadata["notes"]


def test_hotpot_asks_every_question_before_one_is_asked_again(tmp_path):
    hotpot_folder(tmp_path)
    made = load_source(
        "hotpotqa", tmp_path, split="test", **SIZES | {"count": 9, "questions": 2, "chunks": 2}
    )
    asked = [q.question for instance in made for q in instance.questions]
    assert len(asked) == 18 and len(set(asked)) == 18  # of 21


def test_hotpot_layouts_agree_and_a_test_question_is_not_trained_on(tmp_path):
    records = hotpotqa.load_folder(hotpot_folder(tmp_path))
    assert len(records.items) == 80
    by_question = {item.question: item for item in records.items}
    shared = by_question[hotpot_item(59)["question"]]
    assert shared.split == "test" and shared.record_id == "dev_hub.json:0"
    official = hotpotqa.load([tmp_path / "hotpotqa" / "hotpot_train.json"]).items
    twin = next(item for item in official if item.question == shared.question)
    assert (twin.paragraphs, twin.supporting) == (shared.paragraphs, shared.supporting)
    assert {item.split for item in official} == {"train", "validation"}


@pytest.mark.parametrize(
    "change, named",
    [
        ({"_id": "id1"}, r"record 2: id 'id1' stands already at .*record 1"),
        ({"answer": None}, r"record 2: field 'answer' must be str"),
        ({"context": []}, r"record 2: field 'context' must be"),
        ({"context": [["A", "b"]]}, r"record 2: context: the sentences of 'A' must be a list"),
        (
            {"supporting_facts": [["Nowhere", 0]]},
            r"record 2: supporting titles \['Nowhere'\] are not in",
        ),
        ({"question": " "}, r"record 2: field 'question' is empty"),
    ],
)
def test_hotpot_that_is_refused(tmp_path, change, named):
    items = [hotpot_item(0), hotpot_item(1), hotpot_item(2) | change]
    dump(tmp_path / "hotpotqa" / "train.json", items)
    with pytest.raises(ValueError, match=rf"train\.json: {named}"):
        hotpotqa.load_folder(tmp_path)


def test_hotpot_says_how_much_the_questions_fill(tmp_path):
    with pytest.raises(ValueError, match="'test' split .* has 21 questions, of which .* 99 chunks"):
        load_source("hotpotqa", hotpot_folder(tmp_path), split="test", **SIZES | {"chunks": 99})


# PubMed RCT


def pubmed_text(ids, parts=pubmed_rct.LABELS):
    blocks = [
        f"###{i}\n" + "".join(f"{p}\t{p.lower()} of abstract {i} , number {i}.5 .\n" for p in parts)
        for i in ids
    ]
    return "\n".join(blocks) + "\n"


def test_pubmed_layouts_and_labels(tmp_path):
    folder = tmp_path / "pubmed_rct"
    folder.mkdir()
    (folder / "train.txt").write_text(pubmed_text(range(40)))
    rows = [
        {"abstract_id": "900", "labels": i, "text": f"hub {name}", "sentence_id": i, "uid": i}
        for i, name in enumerate(pubmed_rct.LABELS)
    ]
    dump(folder / "test.jsonl", rows)
    records = pubmed_rct.load_folder(tmp_path)
    assert records.label_names == pubmed_rct.LABELS
    assert {s.text: s.label for s in records.sentences if s.split == "test"} == {
        f"hub {name}": name for name in pubmed_rct.LABELS
    }
    owners = {}
    for sentence in records.sentences:
        if sentence.split != "test":
            owners.setdefault(sentence.text.split()[3], set()).add(sentence.split)
    assert set(map(len, owners.values())) == {1}  # an abstract is in one split
    sizes = SIZES | {"chunk_tokens": 60}
    (instance, _) = load_source("pubmed_rct", tmp_path, split="train", **sizes)
    shown = re.findall(r"Sample: (\w+) of .*\nLabels: (\d)", "\n".join(instance.chunks))
    assert {word: int(number) for word, number in shown} == {
        name.lower(): i for i, name in enumerate(pubmed_rct.LABELS)
    }
    first = instance.questions[0]
    word = re.fullmatch(
        rf"Sentence: (\w+) of .* \.\n\n{re.escape(pubmed_rct.TAIL)}",
        first.question,
    )[1]
    assert first.answers == (str(pubmed_rct.LABELS.index(word.upper())),)
    assert " Label: " in add_notes(instance).metadata["notes"][0][0]["content"]


@pytest.mark.parametrize(
    "name, content, named",
    [
        ("train.txt", "###1\nRESULT\tx .\n", r"line 2: the label 'RESULT' is none of BACKGROUND"),
        ("train.txt", "###1\nRESULTS x .\n", r"line 2: 'RESULTS x \.' is not LABEL<tab>sentence"),
        ("train.txt", "RESULTS\tx .\n", "line 1: a sentence without the ###ID line"),
        ("train.txt", "\n\n", "no sentences"),
        (
            "train.txt",
            "###1\nRESULTS\tx\n\n###2\nRESULTS\ty\n\n###1\nRESULTS\tz\n",
            "abstract 1 stands already further up",
        ),
        (
            "test.jsonl",
            '{"abstract_id": "1", "labels": 5, "text": "x"}\n',
            "line 1: field 'labels' is 5; 0 to 4 exist",
        ),
        ("test.jsonl", '{"abstract_id": "1", "text": "x"}\n', "line 1: field 'labels' is missing"),
    ],
)
def test_pubmed_that_is_refused(tmp_path, name, content, named):
    (tmp_path / "pubmed_rct").mkdir()
    (tmp_path / "pubmed_rct" / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.*{named}"):
        pubmed_rct.load_folder(tmp_path)


# Banking77 and CLINC150


def banking_file(path, classes, rows, word):
    path.parent.mkdir(exist_ok=True)
    lines = ["text,category"]
    lines += [f'"{word} {i}\nabout {c}, please",{c}' for i in range(rows) for c in classes]
    path.write_text("\n".join(lines) + "\n")


def test_banking_shows_training_rows_and_asks_test_rows(tmp_path):
    classes = [f"topic_{i}" for i in range(77)]
    banking_file(tmp_path / "banking77" / "train.csv", classes, 4, "trained")
    banking_file(tmp_path / "banking77" / "test.csv", classes, 2, "tested")
    sizes = SIZES | {"chunk_tokens": 400, "questions": 30}
    (instance, _) = load_source("banking77", tmp_path, split="test", show="train", **sizes)
    shown = re.findall(
        r"Sentence: (\w+) \d about (\w+), please\nLabel: (\d+)", "".join(instance.chunks)
    )
    assert {word for word, _, _ in shown} == {"trained"}
    names = instance.metadata["label_names"]
    assert all(names[number] == topic for _, topic, number in shown)
    assert len(instance.questions) == 30
    for question in instance.questions:
        topic = re.match(r"Sentence: tested \d about (\w+), please\n", question.question)[1]
        assert names[question.answers[0]] == topic
    (alone, _) = load_source(
        "banking77", tmp_path, split="test", **sizes | {"chunks": 1, "chunk_tokens": 200}
    )
    assert "trained" not in alone.chunks[0]


def test_a_78th_class_is_refused(tmp_path):
    banking_file(tmp_path / "banking77" / "train.csv", [f"c{i}" for i in range(78)], 1, "x")
    with pytest.raises(ValueError, match=r"train.csv:78: label 'c77' is none of the 77"):
        banking77.load_folder(tmp_path)


def test_clinc_parts_are_the_splits_and_oos_is_not_used(tmp_path):
    data = {
        part: [[f"{part} sentence {i} of {c}", c] for i in range(5) for c in ("a", "b", "c")]
        for part in ("train", "val", "test")
    }
    # A test sentence that reads like a training sentence, and a validation sentence that does.
    data["test"].append(["Train sentence 0 of a!", "a"])
    data["val"].append(["train  sentence 0 of a", "a"])
    data["train"] += [["Train sentence 1 of b.", "b"], ["test sentence 4 of c", "a"]]
    data["oos_test"] = [["nothing known", "oos"]]
    path = dump(tmp_path / "clinc150" / "data_full.json", data)
    records = clinc150.load_folder(tmp_path)
    assert records.label_names == ("a", "b", "c")
    owners = {s.text: s.split for s in records.sentences}
    assert owners["train sentence 0 of a"] == "train" and "Train sentence 0 of a!" not in owners
    assert {owners[t] for t in owners if t.startswith("val")} == {"validation"}
    assert sum(split == "test" for split in owners.values()) == 14
    assert records.left_out == {
        "sentences out of scope": 1,
        "sentences that stand twice": 1,
        "validation sentences that stand in train too": 1,
        "test sentences that stand in train too": 1,
        "sentences with two classes": 2,
    }
    left = sum(map(len, data.values())) - len(records.sentences)
    assert left == sum(records.left_out.values())
    for pair, named in [
        (["x"], r"val\[16\]: must be \[text, intent\]"),
        (["x", 3], r"val\[16\]: text and intent must be strings"),
    ]:
        dump(path, data | {"val": [*data["val"], pair]})
        with pytest.raises(ValueError, match=rf"data_full.json: {named}"):
            clinc150.load_folder(tmp_path)
    dump(path, {"train": [], "test": []})
    with pytest.raises(ValueError, match="field 'val' is missing"):
        clinc150.load_folder(tmp_path)


def test_clinc_files_of_two_classes_are_not_taken_for_the_150(tmp_path):
    pairs = [["turn it off", "in"], ["who are you", "oos"]]
    data = {part: pairs for part in ("train", "val", "test")}
    folder = tmp_path / "clinc150"
    dump(folder / "binary_undersample.json", data)
    with pytest.raises(
        ValueError, match=r"clinc150: no data_\*\.json; put the published data_full"
    ):
        clinc150.load_folder(tmp_path)
    dump(folder / "data_full.json", data)
    with pytest.raises(ValueError, match="data_full.json: its classes are in and oos, not the 150"):
        clinc150.load_folder(tmp_path)
    dump(folder / "data_full.json", data | {"train": [["play jazz", "play_music"]]})
    records = clinc150.load_folder(tmp_path)
    assert memalpha.data.unread_files("clinic150", tmp_path, records) == ["binary_undersample.json"]
    dump(folder / "data_small.json", data)
    with pytest.raises(ValueError, match="data_full.json, data_small.json; keep one"):
        clinc150.load_folder(tmp_path)


def test_what_a_loader_leaves_out_is_counted_by_reason(tmp_path):
    rows = [("Where is it", "a"), ("where IS it?", "a"), ("Where is it!", "a"), ("two", "b")]
    test = [("where is it", "a"), ("two", "c"), ("new", "d")]
    (tmp_path / "banking77").mkdir()
    for name, part in (("train", rows), ("test", test)):
        lines = "".join(f"{sentence},{label}\n" for sentence, label in part)
        (tmp_path / "banking77" / f"{name}.csv").write_text("text,category\n" + lines)
    records = banking77.load_folder(tmp_path)
    assert {s.text: s.split for s in records.sentences} == {"where is it": "test", "new": "test"}
    assert records.left_out == {
        "train sentences that stand in test too": 3,
        "sentences with two classes": 2,
    }
    items = [hotpot_item(i) for i in (0, 1, 1)]
    items[2]["_id"] = "another"
    dump(tmp_path / "hotpotqa" / "train.json", items)
    twice = {"questions that stand twice, or in the test too": 1}
    assert hotpotqa.load_folder(tmp_path).left_out == twice
    chapters = [chapter(0), chapter(0), chapter(1, summaries=())]
    dump(tmp_path / "booksum" / "train.jsonl", chapters)
    losses = {"chapters that stand twice": 1, "chapters without a summary": 1}
    assert booksum.load_folder(tmp_path).left_out == losses
    perltqa_folder(tmp_path)
    path = tmp_path / "perltqa" / "perltqa_en.json"
    dump(path, json.loads(path.read_text())[1:] + [{"Nobody": {}}])
    assert perltqa.load_folder(tmp_path).left_out == {
        "characters without questions or events": 1,
        "characters with questions but no memories": 1,
    }
    (tmp_path / "pubmed_rct").mkdir()
    (tmp_path / "pubmed_rct" / "train.txt").write_text(pubmed_text([1, 2]))
    (tmp_path / "pubmed_rct" / "test.txt").write_text(pubmed_text([2]))
    twins = {"abstracts that stand in another split too": 1}
    assert pubmed_rct.load_folder(tmp_path).left_out == twins


def test_of_a_large_file_the_lowest_hashes_are_taken_and_the_rest_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(hotpotqa, "MAX_ITEMS", 7)
    monkeypatch.setattr(pubmed_rct, "MAX_ABSTRACTS", 3)
    hotpot_folder(tmp_path)
    (tmp_path / "pubmed_rct").mkdir()
    (tmp_path / "pubmed_rct" / "train.txt").write_text(pubmed_text(range(8)))
    assert hotpotqa.load_folder(tmp_path).left_out["questions past 7 of a file"] == 53 + 14
    assert pubmed_rct.load_folder(tmp_path).left_out == {"abstracts past 3 of a file": 5}


# LongMemEval


def memory_item(number, answer="answer", filler=2):
    session = [
        {
            "role": "user",
            "content": f"I keep fact {number}: it is value{number}.",
            "has_answer": True,
        },
        {"role": "assistant", "content": "Noted. " + "More words. " * 5},
    ]
    other = [
        {"role": "user", "content": "Some other talk. " * 6},
        {"role": "assistant", "content": "Indeed. " * 6},
    ]
    dates = [f"2023/05/{20 + number % 8} (Sat) 02:21"]
    dates += [f"2023/06/{1 + i:02} (Sun) 03:00" for i in range(filler)]
    return {
        "question_id": f"q{number}",
        "question_type": "single-session-user",
        "question": f"What is fact {number}?",
        "question_date": "2023/07/01 (Sat) 10:00",
        "answer": number if answer == "number" else f"value{number}",
        "answer_session_ids": [f"answer_{number}_1"],
        "haystack_session_ids": [f"answer_{number}_1", *(f"other{i}" for i in range(filler))],
        "haystack_dates": dates,
        "haystack_sessions": [session, *([other] * filler)],
    }


@pytest.mark.parametrize(
    "source, name",
    [("lme_train", "longmemeval_oracle.json"), ("longmemeval_s", "longmemeval_s.json")],
)
def test_longmemeval_holds_the_sessions_needed_by_date(tmp_path, source, name):
    items = [memory_item(i, "number" if i % 2 else "text") for i in range(40)]
    dump(tmp_path / "longmemeval" / name, items)
    records = longmemeval.load_folder(tmp_path, source)
    owned = {split: sum(i.split == split for i in records.items) for split in ("train", "test")}
    assert sum(owned.values()) == 40 and owned["test"] > owned["train"] > 5
    sizes = SIZES | {"questions": 3, "chunks": 5, "chunk_tokens": 60}
    seen = []
    for instance in load_source(source, tmp_path, split="test", **sizes):
        read = "\n".join(instance.chunks)
        dates = re.findall(r"\[Dialogue at timestamp (.*)\]", read)
        assert dates == sorted(dates)
        assert max(map(count_words, instance.chunks)) <= 60
        for question, record_id in zip(
            instance.questions, instance.metadata["question_ids"], strict=True
        ):
            number = record_id[1:]
            assert f"I keep fact {number}: it is value{number}." in read
            assert question.question == f"What is fact {number}?"
            assert question.asked_at == "2023/07/01 (Sat) 10:00"
            assert question.answers == (number if int(number) % 2 else f"value{number}",)
        assert all(not c.rpartition("\n")[2].startswith("<User>") for c in instance.chunks)
        assert read.count("Some other talk") == 12  # two sessions, each once
        seen += instance.metadata["question_ids"]
    assert len(seen) == len(set(seen)) == 6


def test_longmemeval_fills_up_to_the_chunks_asked_for(tmp_path):
    dump(
        tmp_path / "longmemeval" / "longmemeval_s.json",
        [memory_item(i, filler=9) for i in range(20)],
    )
    few, many = (
        load_source(
            "longmemeval_s",
            tmp_path,
            split="test",
            **SIZES | {"count": 1, "questions": 1, "chunks": n},
        )[0]
        for n in (1, 30)
    )
    assert len(few.metadata["session_ids"]) < len(many.metadata["session_ids"]) == 10
    assert len(few.chunks) <= 2 < len(many.chunks)


def test_longmemeval_questions_of_one_evidence_are_in_one_split(tmp_path):
    items = []
    for i in range(30):
        one, two = memory_item(i), memory_item(i)
        two |= {"question_id": f"q{i}_abs", "answer_session_ids": [f"answer_{i}_2"]}
        items += [one, two]
    dump(tmp_path / "longmemeval" / "longmemeval_oracle.json", items)
    splits = {i.record_id: i.split for i in longmemeval.load_folder(tmp_path).items}
    assert all(splits[f"q{i}"] == splits[f"q{i}_abs"] for i in range(30))
    assert set(splits.values()) == {"train", "test"}


@pytest.mark.parametrize(
    "form, other",
    [
        ("answer_{:08x}", None),  # one session for one question: the rest is its name
        ("answer_ultrachat_{}", None),
        ("answer_sharegpt_q{}_0", "answer_sharegpt_q{}_13"),
        ("answer_{:08x}_1", "answer_{:08x}_12"),
        ("answer_gpt4_{:08x}_2", "answer_gpt4_{:08x}_abs_1"),
    ],
)
def test_longmemeval_splits_every_form_of_id(tmp_path, form, other):
    items = []
    for i in range(40):
        for n, ids in enumerate(filter(None, (form, other))):
            item = memory_item(i) | {"question_id": f"{n}-{i}"}
            name = ids.format(280352900 + 7 * i)
            item["answer_session_ids"] = item["haystack_session_ids"][:1] = [name]
            items.append(item)
    dump(tmp_path / "longmemeval" / "longmemeval_oracle.json", items)
    splits = {i.record_id: i.split for i in longmemeval.load_folder(tmp_path).items}
    first = [splits[f"0-{i}"] for i in range(40)]
    assert 14 <= first.count("test") <= 34  # 24 are expected
    assert other is None or [splits[f"1-{i}"] for i in range(40)] == first


def test_longmemeval_shows_a_session_under_every_date_that_a_question_gives_it(tmp_path):
    one, two = memory_item(1), memory_item(1)
    two |= {"question_id": "q2", "question": "And when?", "question_date": "2023/02/02 (Thu) 01:00"}
    two["haystack_dates"] = ["2023/01/09 (Mon) 11:11", *two["haystack_dates"][1:]]
    # A third question has the same session as a filler, with a third date.
    three = memory_item(3)
    three["haystack_session_ids"][1] = "answer_1_1"
    dump(tmp_path / "longmemeval" / "longmemeval_s.json", [one, two, three])
    records = longmemeval.load_folder(tmp_path, "longmemeval_s")
    items = tuple(replace(item, split="test") for item in records.items)
    records = replace(records, items=items)
    sizes = Sizes(1, 9, 200, 9)
    (draft,) = longmemeval.build(records, "test", sizes, 0, count_words)
    read = "\n".join(draft.chunks)
    assert read.count("I keep fact 1:") == 2
    assert "[Dialogue at timestamp 2023/01/09 (Mon) 11:11]\n<User>I keep fact 1:" in read
    assert "[Dialogue at timestamp 2023/05/21 (Sat) 02:21]\n<User>I keep fact 1:" in read
    assert {q.question: q.asked_at for q in draft.questions}[
        "And when?"
    ] == "2023/02/02 (Thu) 01:00"


def test_longmemeval_fills_up_to_the_tokens_asked_for(tmp_path):
    item = memory_item(1, filler=40)
    dump(tmp_path / "longmemeval" / "longmemeval_s.json", [item])
    records = longmemeval.load_folder(tmp_path, "longmemeval_s")
    split = records.items[0].split
    sizes = Sizes(1, 50, 60, 9, {"target_tokens": 600})
    (instance,) = memalpha.data.make_instances(
        "longmemeval_s", records, split, sizes, 0, count_words
    )
    assert 540 < sum(map(count_words, instance.chunks)) < 800  # and the date lines


@pytest.mark.parametrize(
    "change, named",
    [
        ({"question_id": "q0"}, r"record 1: question_id 'q0' stands already at .*record 0"),
        ({"haystack_dates": []}, "record 1: haystack_session_ids, .* must be as long"),
        ({"answer": None}, "record 1: field 'answer' must be a text or a number"),
        ({"haystack_sessions": [[{"role": "system", "content": "x"}]] * 3}, "role is 'system'"),
        ({"haystack_sessions": [[{"role": "user"}]] * 3}, r"haystack_sessions\[0\]: .*'content'"),
    ],
)
def test_longmemeval_that_is_refused(tmp_path, change, named):
    items = [memory_item(0), memory_item(1) | change]
    dump(tmp_path / "longmemeval" / "longmemeval_oracle.json", items)
    with pytest.raises(ValueError, match=rf"oracle\.json: .*{named}"):
        longmemeval.load_folder(tmp_path)


@pytest.mark.parametrize("field", ["answer", "question", "question_date", "haystack_sessions"])
def test_a_field_that_is_missing_is_said_to_be_missing(tmp_path, field):
    item = {name: value for name, value in memory_item(0).items() if name != field}
    dump(tmp_path / "longmemeval" / "longmemeval_oracle.json", [item])
    with pytest.raises(ValueError, match=f"record 0: field '{field}' is missing .found"):
        longmemeval.load_folder(tmp_path)


def test_a_missing_field_of_the_other_sources_is_said_to_be_missing(tmp_path):
    for field in ("context", "supporting_facts", "answer"):
        item = {name: value for name, value in hotpot_item(0).items() if name != field}
        dump(tmp_path / "hotpotqa" / "train.json", [item])
        with pytest.raises(ValueError, match=f"record 0: field '{field}' is missing"):
            hotpotqa.load_folder(tmp_path)
    for field in ("bid", "chapter_id", "text", "summary"):
        row = {name: value for name, value in chapter(0).items() if name != field}
        dump(tmp_path / "booksum" / "train.jsonl", [row])
        with pytest.raises(ValueError, match=f"line 1: field '{field}' is missing"):
            booksum.load_folder(tmp_path)
    dump(
        tmp_path / "infinitebench" / "longbook_qa_eng.jsonl",
        [{"id": 0, "context": "x", "answer": ["y"]}],
    )
    with pytest.raises(ValueError, match="line 1: field 'input' is missing"):
        SOURCES["infbench_qa"][0](tmp_path)
    dump(
        tmp_path / "longmemeval" / "longmemeval_oracle.json",
        [memory_item(0) | {"haystack_sessions": [[{"role": "user"}]] * 3}],
    )
    with pytest.raises(ValueError, match=r"haystack_sessions\[0\]: field 'content' is missing"):
        longmemeval.load_folder(tmp_path)


# PerLTQA, in the documented format: no real file was at hand


def perltqa_folder(tmp_path, names=("Ann", "Ben", "Cy", "Dee", "Eve", "Fay", "Gus", "Hal", "Ida")):
    memories, questions = [], []
    for name in names:
        events = {
            f"{i}_1_{i}": {
                "content": f"{name} went to Town{i}. It rained all day.",
                "summary": f"{name} saw Town{i}.",
                "Creation Time": f"2020-0{9 - i}-01",
                "Theme": "travel",
            }
            for i in range(1, 4)
        }
        talk = [f"{name}: I liked Town1.", "AI Assistant: Why: the rain?"]
        dialogues = {"1_1_1_#0": {"contents": {"2021-01-01 10:00": [talk]}}}  # nested once more
        memories.append(
            {
                "profile": {"Protagonist": name},
                "profile_description": "-",
                "social_relationship": {},
                "events": events,
                "dialogues": dialogues,
            }
        )
        asked = {"Question": "Where did it rain?", "Answer": "In Town1 and Town2."}
        anchored = asked | {"Memory Anchors": [{"Town1": [3, 8]}, {"Town2": [13, 18]}]}
        questions.append(
            {
                name: {
                    "profile": [{"Question": "Age?", "Answer": "9"}],
                    "social_relationship": [asked | {"Question": "Who?", "Answer": "Otto"}],
                    "events": [{"1_1_1": [anchored], "2_1_2": [asked]}],
                    "dialogues": {"1_1_1_#0": [asked | {"Memory Anchors": ["the rain", "rain"]}]},
                }
            }
        )
    dump(tmp_path / "perltqa" / "perltmem_en.json", memories)
    dump(tmp_path / "perltqa" / "perltqa_en.json", questions)
    return tmp_path


def test_perltqa_is_one_chunk_an_event_by_date(tmp_path):
    perltqa_folder(tmp_path)
    sizes = SIZES | {"chunk_tokens": 60, "questions": 100, "count": 7}
    instances = load_source("perltqa", tmp_path, split="train", **sizes)
    assert len({i.metadata["character"] for i in instances}) == 7
    for instance in instances:
        name = instance.metadata["character"]
        assert instance.metadata["chunk_ids"] == ["3_1_3", "2_1_2", "1_1_1"]
        assert instance.chunks[2] == (
            f"An event about the user {name}, on 2020-08-01\n"
            f"Summary: {name} saw Town1.\nContent: {name} went to Town1. It rained all day.\n"
            f"[Dialogue at timestamp 2021-01-01 10:00]\n<{name}>I liked Town1.\n"
            "<Assistant>Why: the rain?"
        )
        asked = dict(
            zip(
                instance.metadata["question_ids"],
                (q.answers for q in instance.questions),
                strict=True,
            )
        )
        assert asked == {
            "social_relationship::0": ("Otto",),
            "events:1_1_1:0": ("Town1;Town2",),
            "events:2_1_2:1": ("In Town1 and Town2.",),
            "dialogues:1_1_1_#0:0": ("the rain;rain",),
        }
        assert sum(v is False for v in checks.answerable(instance)) == 2
        kept = checks.drop_unanswerable(instance)
        assert sorted(kept.metadata["question_ids"]) == ["dialogues:1_1_1_#0:0", "events:1_1_1:0"]
        assert kept.metadata["dropped_questions"] == 2 and len(kept.questions) == 2


def test_perltqa_second_edition_is_an_object_by_name_with_dates_in_words(tmp_path):
    perltqa_folder(tmp_path)
    folder = tmp_path / "perltqa"
    memories = json.loads((folder / "perltmem_en.json").read_text())
    for record in memories:
        dates = ("during an election", "May 12, 2022", "October 2021")
        for event, date in zip(record["events"].values(), dates, strict=True):
            event["Creation Time"] = date
    asked = json.loads((folder / "perltqa_en.json").read_text())
    asked[0]["Ann"]["dialogues"] = [
        {"1_1_1_#0": [{"Question": "Whose?", "Answer": "-", "Memory Anchors": [{"Al&#39;s": [1]}]}]}
    ]
    dump(folder / "perltmem_en_v2.json", {m["profile"]["Protagonist"]: m for m in memories})
    dump(folder / "perltqa_en_v2.json", asked)
    with pytest.raises(ValueError, match="perltmem_en.json, perltmem_en_v2.json; keep one edition"):
        perltqa.load_folder(tmp_path)
    (folder / "perltmem_en.json").unlink()
    (folder / "perltqa_en.json").unlink()
    ann = perltqa.load_folder(tmp_path).characters[0]
    assert ann.name == "Ann"
    assert [e.event_id for e in ann.events] == ["3_1_3", "2_1_2", "1_1_1"]
    assert ("dialogues:1_1_1_#0:0", "Whose?", "Al's") in ann.questions


@pytest.mark.parametrize(
    "date, expected",
    [
        ("2022-05-12", (2022, 5, 12)),
        ("2022/5", (2022, 5, 0)),
        ("May 12, 2022", (2022, 5, 12)),
        ("12th of December 2022", (2022, 12, 12)),
        ("March 05, 2021", (2021, 3, 5)),
        ("October 2021", (2021, 10, 0)),
        ("2012", (2012, 0, 0)),
        ("during an election", (9999, 0, 0)),
    ],
)
def test_perltqa_dates(date, expected):
    assert perltqa.when(date) == expected


def test_perltqa_long_events_go_on_and_long_lives_are_left_out(tmp_path):
    perltqa_folder(tmp_path)
    records = perltqa.load_folder(tmp_path)
    made = list(
        memalpha.data.make_instances(
            "perltqa", records, "train", Sizes(9, 20, 16, 9), 0, count_words
        )
    )
    assert all(
        count_words(c) <= 16 and c.startswith("An event about") for i in made for c in i.chunks
    )
    assert all(len(i.chunks) > 3 for i in made)
    assert not list(perltqa.build(records, "train", Sizes(9, 3, 16, 9), 0, count_words))


@pytest.mark.parametrize(
    "file, edit, named",
    [
        (
            "perltmem_en.json",
            lambda d: d[1]["profile"].pop("Protagonist"),
            "record 1: profile: .*Prot",
        ),
        (
            "perltmem_en.json",
            lambda d: d.append(d[0]),
            "record 9: the character 'Ann' stands twice",
        ),
        (
            "perltmem_en.json",
            lambda d: d[0]["events"]["1_1_1"].pop("summary"),
            r"record 0: events\['1_1_1'\]: field 'summary' is missing",
        ),
        (
            "perltmem_en.json",
            lambda d: d[0]["dialogues"]["1_1_1_#0"]["contents"].update(x=[3]),
            "record 0: 1_1_1_#0: contents.'x'.: 3 is no text",
        ),
        (
            "perltqa_en.json",
            lambda d: d.append(d[0]),
            "record 9: the questions of 'Ann' stand twice",
        ),
        (
            "perltqa_en.json",
            lambda d: d[0]["Ann"]["social_relationship"][0].pop("Answer"),
            r"record 0: Ann: social_relationship\[0\]: field 'Answer' is missing",
        ),
        (
            "perltqa_en.json",
            lambda d: d[0]["Ann"].update(events=3),
            "record 0: Ann: events must be a list or an object",
        ),
        (
            "perltqa_en.json",
            lambda d: d[0]["Ann"].update(events=[{"1_1_1": 3}]),
            r"record 0: Ann: events\[0\]: must be an object, not int",
        ),
    ],
)
def test_perltqa_that_is_refused(tmp_path, file, edit, named):
    perltqa_folder(tmp_path)
    path = tmp_path / "perltqa" / file
    data = json.loads(path.read_text())
    edit(data)
    dump(path, data)
    with pytest.raises(ValueError, match=rf"{file}: {named}"):
        perltqa.load_folder(tmp_path)


# Books, in the documented format: no book was at hand


def chapter(number, sentences=40, summaries=("Then Ann met Otto in Lund. Ann wept.",)):
    content = "\n\n".join(
        f"Chapter {number}, sentence {i} of a long story. It goes on." for i in range(sentences)
    )
    return {
        "bid": 1,
        "book_title": "A book",
        "chapter_id": f"ch{number}",
        "text": content,
        "summary": [{"source": "s", "text": s, "analysis": None} for s in summaries],
        "is_aggregate": False,
    }


def test_booksum_reads_whole_chapters_and_asks_for_keywords(tmp_path):
    folder = tmp_path / "booksum"
    chapters = [chapter(0), chapter(1, summaries=()), chapter(2, 200), chapter(3, 3)]
    dump(folder / "train.jsonl", chapters)
    dump(folder / "val.jsonl", [chapter(9)])
    sizes = SIZES | {"count": 1, "chunks": 9, "chunk_tokens": 100}
    (instance,) = load_source("booksum", tmp_path, split="train", **sizes)
    assert instance.metadata["question_ids"] == ["1:ch0"]  # the others: no summary, long, short
    assert instance.metadata["keywords"] == "offline"
    assert instance.questions[0].answers == ("Ann", "Otto", "Lund")
    for day, chunk in enumerate(instance.chunks, start=1):
        assert chunk.startswith(
            f"Event happened on 2024-01-0{day} The user is reading a book\n<User>Chapter 0, "
        )
        assert chunk.endswith(f"\n<System>{booksum.REPLY}")
        assert count_words(chunk) <= 100
    read = " ".join(
        " ".join(c.split("<User>")[1].split("\n<System>")[0].split()) for c in instance.chunks
    )
    assert read == " ".join(chapters[0]["text"].split())
    given = load_source(
        "booksum", tmp_path, split="validation", keywords=lambda s: [["one", "two"]], **sizes
    )
    assert given[0].questions[0].answers == ("one", "two")
    dump(folder / "train.jsonl", [chapters[0], chapters[0], chapters[0] | {"is_aggregate": True}])
    ids = [book.record_id for book in booksum.load_folder(tmp_path).books]
    assert ids == ["1:ch0", "1:ch0:aggregate", "1:ch9"]
    dump(folder / "train.jsonl", chapters)
    with pytest.raises(ValueError, match="gives 1 instances of these sizes, not 2"):
        load_source("booksum", tmp_path, split="train", **sizes | {"count": 2})


@pytest.mark.parametrize(
    "change, named",
    [
        ({"text": ""}, "line 2: field 'text' is empty"),
        ({"summary": None}, "line 2: field 'summary' must be list"),
        ({"summary": ["x"]}, r"line 2: summary\[0\]: must be an object"),
        ({"chapter_id": "ch0"}, "line 2: 1:ch0 stands already .*line 1, with another text"),
        ({"bid": None}, "line 2: field 'bid' must be a text or a number, not NoneType"),
    ],
)
def test_booksum_that_is_refused(tmp_path, change, named):
    dump(tmp_path / "booksum" / "train.jsonl", [chapter(0), chapter(1) | change])
    with pytest.raises(ValueError, match=rf"train\.jsonl: {named}"):
        booksum.load_folder(tmp_path)


def test_infinitebench_books(tmp_path):
    text = chapter(0)["text"]
    folder = tmp_path / "infinitebench"
    rows = [
        {"id": i, "context": text, "input": f"Who is {i}?", "answer": [f"A{i}", "B"], "options": []}
        for i in range(3)
    ]
    dump(folder / "longbook_qa_eng.jsonl", rows)
    sums = [
        {"id": 0, "context": text, "input": "", "answer": ["Then Ann met Otto."], "options": []}
    ]
    dump(folder / "longbook_sum_eng.jsonl", sums)
    sizes = SIZES | {"count": 1, "chunks": 9, "chunk_tokens": 100, "questions": 2}
    (asked,) = load_source("infbench_qa", tmp_path, split="test", **sizes)
    assert len(asked.questions) == 2
    for question in asked.questions:
        assert question.answers == (f"A{question.question[7]}", "B")
    (summary,) = load_source("infbench_sum", tmp_path, split="test", **sizes)
    assert summary.chunks == asked.chunks
    assert summary.questions[0].answers == ("Ann", "Otto")
    dump(folder / "longbook_qa_eng.jsonl", [rows[0], rows[0]])
    with pytest.raises(ValueError, match="line 2: id 'longbook_qa_eng.jsonl:0' stands already"):
        load_source("infbench_qa", tmp_path, split="test", **sizes)
    dump(folder / "longbook_qa_eng.jsonl", [rows[0] | {"answer": []}])
    with pytest.raises(ValueError, match="line 1: field 'answer' must be texts"):
        load_source("infbench_qa", tmp_path, split="test", **sizes)
    dump(folder / "longbook_qa_eng.jsonl", [rows[0] | {"id": None}])
    with pytest.raises(ValueError, match="line 1: field 'id' must be int | str"):
        load_source("infbench_qa", tmp_path, split="test", **sizes)


# RULER-style padding


def squad_folder(tmp_path):
    def article(title, paragraphs):
        shown = []
        for p in range(paragraphs):
            context = f"The key of {title} {p} is secret{title}{p}. " + "Words and more words. " * 5
            answer = f"secret{title}{p}"
            qas = [
                {
                    "id": answer,
                    "question": f"What is the key of {title} {p}?",
                    "answers": [{"answer_start": context.index(answer), "text": answer}],
                }
            ]
            shown.append({"context": context, "qas": qas})
        return {"title": title, "paragraphs": shown}

    dump(tmp_path / "squad_v2" / "dev.json", {"version": "v2.0", "data": [article("D", 60)]})
    return tmp_path


@pytest.mark.parametrize("target", [400, 1000, 1700])
def test_ruler_pads_to_the_length_asked_for(tmp_path, target):
    squad_folder(tmp_path)
    sizes = SIZES | {"chunk_tokens": 90, "questions": 5}
    for instance in load_source("ruler_qa1", tmp_path, split="test", target_tokens=target, **sizes):
        total = sum(map(count_words, instance.chunks))
        assert 0.85 * target <= total <= target
        assert max(map(count_words, instance.chunks)) <= 90
        read = "\n".join(instance.chunks)
        numbers = list(map(int, re.findall(r"Document (\d+):", read)))
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(instance.questions) == 5
        for question in instance.questions:
            assert read.count(question.answers[0] + ".") == 1
        places = [read.index(q.answers[0]) / len(read) for q in instance.questions]
        assert max(places) > 0.3 and min(places) < 0.7  # not all in front, not all at the end


def test_ruler_repeats_only_when_told(tmp_path):
    squad_folder(tmp_path)
    sizes = SIZES | {"chunk_tokens": 90, "questions": 5, "count": 1}
    with pytest.raises(ValueError, match="do not reach 5,000 tokens; add files"):
        load_source("ruler_qa1", tmp_path, split="test", target_tokens=5000, **sizes)
    (instance,) = load_source(
        "ruler_qa1", tmp_path, split="test", target_tokens=5000, repeat=True, **sizes
    )
    assert sum(map(count_words, instance.chunks)) > 4250
    read = "\n".join(instance.chunks)
    assert all(read.count(q.answers[0] + ".") == 1 for q in instance.questions)
    with pytest.raises(ValueError, match="have .* tokens; the target is 50; ask fewer questions"):
        load_source("ruler_qa1", tmp_path, split="test", target_tokens=50, **sizes)


def test_ruler_of_two_documents_a_question(tmp_path):
    hotpot_folder(tmp_path)
    sizes = SIZES | {"count": 1, "questions": 4}
    (instance,) = load_source("ruler_qa2", tmp_path, split="test", target_tokens=500, **sizes)
    read = "\n".join(instance.chunks)
    for question in instance.questions:
        number = re.search(r"Person (\d+)", question.question)[1]
        assert "Document" in read and f"City {number} is old. Its colour is shade{number}." in read
        assert f"The place was City {number}." in read
    assert not re.search(r"Person ([0-9]|[1-4][0-9]) was born", read)  # of training alone
    (longer,) = load_source("ruler_qa2", tmp_path, split="test", target_tokens=1500, **sizes)
    read = "\n".join(longer.chunks)
    assert all(f"Person {number} was born" in read for number in range(59, 80))
    assert re.search(r"Person ([0-9]|[1-4][0-9]) was born", read)  # where the split has no more


def test_ruler_reads_squad_v2_and_leaves_out_what_has_no_answer(tmp_path):
    squad_folder(tmp_path)
    path = tmp_path / "squad_v2" / "dev.json"
    data = json.loads(path.read_text())
    paragraph = data["data"][0]["paragraphs"][0]
    impossible = {"id": "no", "question": "What is the lock?", "answers": [], "is_impossible": True}
    impossible["plausible_answers"] = [{"answer_start": 4, "text": "key"}]
    paragraph["qas"].append(impossible)
    dump(path, data)
    records = SOURCES["ruler_qa1"][0](tmp_path)
    assert len(records.cases["test"]) == len(records.documents["test"]) == 60
    assert records.left_out == {"questions without an answer": 1}
    assert not records.cases["train"] and not records.cases["validation"]
    dump(path, data | {"version": "1.1"})
    with pytest.raises(ValueError, match=r"dev\.json: SQuAD v2 is wanted; this file says '1\.1'"):
        SOURCES["ruler_qa1"][0](tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"squad_v2: no dev\*\.json; put dev-v2\.0\.json"):
        SOURCES["ruler_qa1"][0](tmp_path)


# All of them


def test_every_source_says_where_its_files_go(tmp_path):
    for name, (load, _) in SOURCES.items():
        with pytest.raises(ValueError, match="put ") as error:
            load(tmp_path)
        assert str(tmp_path) in str(error.value), name


@pytest.mark.parametrize(
    "source",
    ["hotpotqa", "pubmed_rct", "banking77", "clinic150", "lme_train", "perltqa", "booksum"],
)
def test_a_pointer_is_no_data(tmp_path, source):
    hotpot_folder(tmp_path)
    perltqa_folder(tmp_path)
    dump(tmp_path / "booksum" / "train.jsonl", [chapter(0)])
    dump(tmp_path / "longmemeval" / "longmemeval_oracle.json", [memory_item(0)])
    banking_file(tmp_path / "banking77" / "train.csv", ["a"], 2, "x")
    dump(tmp_path / "clinc150" / "data_full.json", {"train": [], "val": [], "test": []})
    (tmp_path / "pubmed_rct").mkdir()
    (tmp_path / "pubmed_rct" / "train.txt").write_text(pubmed_text([1]))
    for path in tmp_path.glob("*/*"):
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        SOURCES[source][0](tmp_path)
