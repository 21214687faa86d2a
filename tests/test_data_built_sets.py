"""Built folders: whole or not at all, the same bytes; checks of answers and leakage; the subset."""

import json
import shutil
from dataclasses import replace

import pytest

from memalpha.data import SOURCES, build, built_sets, checks, stratified
from memalpha.data.instance import BUILDER, Instance, Question
from memalpha.data.keywords import lm_keywords
from memalpha.data.sizes import FULL_TRAINING, PUBLISHED, Sizes, default_sizes


def count_words(string):
    return len(string.split())


def instance(number=0, source="squad", chunks=("Lund is\nold.", "Oslo is big."), **metadata):
    questions = (Question("Which is old?", ("lund IS old", "x")), Question("Big?", ("Bergen",)))
    metadata = {"files": {"a.json": "0" * 64}, "question_ids": ["a", "b"]} | metadata
    return Instance(source, f"{source}-{number}", chunks, questions, metadata)


def test_what_is_written_is_what_is_read(tmp_path):
    made = [instance(i, chunks=(f"caf\xe9 \ud800 {i}\u2028.",)) for i in range(5)]
    manifest = built_sets.write(tmp_path / "a", made, {"source": "squad"}, count_words)
    built = built_sets.Built(tmp_path / "a")
    built.check()
    stamped = [replace(i, metadata=i.metadata | {"builder": BUILDER}) for i in made]
    assert list(built) == stamped and len(built) == 5 and built[-1] == stamped[4]
    assert built.manifest == json.loads(json.dumps(manifest))
    assert manifest["files"] == {"a.json": "0" * 64} and manifest["builder"] == BUILDER
    with pytest.raises(IndexError, match="instance 5 of 5"):
        built[5]


def test_the_date_of_a_question_is_written_where_there_is_one(tmp_path):
    dated = replace(instance(0), questions=(Question("When?", ("a",), "2023/05/20 (Sat) 02:21"),))
    built_sets.write(tmp_path / "a", [dated, instance(1)], {}, count_words)
    built = built_sets.Built(tmp_path / "a")
    assert built[0].questions == dated.questions
    assert [q.asked_at for q in built[1].questions] == ["", ""]
    one, two = built.rows.read_text().splitlines()
    assert '"asked_at": "2023/05/20 (Sat) 02:21"' in one and "asked_at" not in two


def test_source_files_stand_once_in_the_manifest_and_not_in_every_row(tmp_path):
    many = {f"fold{i}.csv": f"{i:064}" for i in range(640)}
    few = {"a.json": "0" * 64}
    instances = [instance(i, files=many if i % 2 else few) for i in range(6)]
    instances.append(Instance("squad", "bare", ("x",), (Question("?", ("x",)),)))
    manifest = built_sets.write(tmp_path / "a", instances, {}, count_words)
    built = built_sets.Built(tmp_path / "a")
    assert [i.metadata.get("files") for i in built] == [few, many] * 3 + [None]
    assert manifest["file_sets"] == [few, many] and manifest["files"] == few | many
    assert built.rows.stat().st_size < 5_000


def test_rows_of_older_builds_that_name_their_files_are_read(tmp_path):
    built_sets.write(tmp_path / "a", [instance()], {}, count_words)
    rows, manifest = (tmp_path / "a" / name for name in ("instances.jsonl", "manifest.json"))
    row = rows.read_text().replace('"files": 0', '"files": {"old.json": "1"}')
    rows.write_text(row)
    old = json.loads(manifest.read_text()) | {"offsets": [0, len(row.encode())]}
    del old["file_sets"]
    manifest.write_text(json.dumps(old))
    assert built_sets.Built(tmp_path / "a")[0].metadata["files"] == {"old.json": "1"}


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    built_sets.write("~/squad/train", [instance()], {"source": "squad", "split": "train"}, len)
    assert len(built_sets.Built("~/squad/train")) == 1
    assert built_sets.find_split("~", "train") == {"squad": tmp_path / "home" / "squad" / "train"}
    stratified.write("~", "~/subset", 0, count_words, {"squad": 1})
    assert len(built_sets.open_source("~/subset", "stratified", "train")) == 1
    (tmp_path / "home" / "trec").mkdir()
    for name in ("train_5500.label", "TREC_10.label"):
        (tmp_path / "home" / "trec" / name).write_text("HUM:ind Who ?\n")
    assert SOURCES["trec_fine"][0]("~").sentences
    lm_keywords(["Ann."], lambda prompts: ["Ann"], "~/k")
    assert (tmp_path / "home" / "k").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_statistics_count_what_is_answerable(tmp_path):
    made = [instance(0), instance(1, chunks=("Bergen.",))]
    statistics = built_sets.write(tmp_path / "a", made, {}, count_words)["statistics"]
    assert statistics == {
        "instances": 2,
        "chunks_per_instance": 1.5,
        "tokens_per_chunk": pytest.approx(7 / 3),
        "max_chunk_tokens": 3,
        "questions_per_instance": 2,
        "checked_questions": 4,
        "answerable_share": 0.5,
    }


def test_building_twice_gives_the_same_bytes(tmp_path):
    for name in "ab":
        built_sets.write(tmp_path / name, [instance(i) for i in range(3)], {"x": 1}, count_words)
    for file in ("instances.jsonl", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_build_that_stops_leaves_nothing_that_looks_finished(tmp_path):
    def broken():
        yield instance(0)
        raise KeyboardInterrupt

    folder = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        built_sets.write(folder, broken(), {}, count_words)
    assert not list(tmp_path.iterdir())
    half = tmp_path / "a.unfinished"  # as a process that is killed leaves it
    half.mkdir()
    (half / "instances.jsonl").write_text("{}\n")
    for path in (folder, half):
        with pytest.raises(ValueError, match="not a finished build"):
            built_sets.Built(path)
    built_sets.write(folder, [instance(0)], {}, count_words)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(KeyboardInterrupt):  # a good build survives a bad one over it
        built_sets.write(folder, broken(), {}, count_words, overwrite=True)
    assert len(built_sets.Built(folder)) == 1


def test_what_a_killed_build_leaves_is_not_found(tmp_path):
    """Killed after the manifest was written, or while an old folder was being replaced."""
    made = tmp_path / "squad" / "train"
    built_sets.write(made, [instance(0)], {"source": "squad", "split": "train"}, len)
    for suffix in (".unfinished", ".old"):
        shutil.copytree(made, made.with_name(made.name + suffix))
    assert built_sets.find_split(tmp_path, "train") == {"squad": made}
    shutil.rmtree(made)
    with pytest.raises(ValueError, match="no built set"):
        built_sets.list_sets(tmp_path)


def test_a_folder_is_replaced_only_when_told(tmp_path):
    built_sets.write(tmp_path / "a", [instance(0)], {}, count_words)
    with pytest.raises(ValueError, match="is there already"):
        built_sets.write(tmp_path / "a", [instance(1)], {}, count_words)
    built_sets.write(tmp_path / "a", [instance(1), instance(2)], {}, count_words, overwrite=True)
    assert [i.instance_id for i in built_sets.Built(tmp_path / "a")] == ["squad-1", "squad-2"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "made, named",
    [([], "nothing to write"), ([instance(0), instance(0)], "instance_id 'squad-0' stands twice")],
)
def test_what_is_not_written(tmp_path, made, named):
    with pytest.raises(ValueError, match=named):
        built_sets.write(tmp_path / "a", made, {}, count_words)
    assert not (tmp_path / "a").exists()


def test_a_changed_build_is_found_out(tmp_path):
    folder = tmp_path / "a"
    built_sets.write(folder, [instance(0), instance(1)], {}, count_words)
    rows = folder / "instances.jsonl"
    good = rows.read_bytes()
    rows.write_bytes(good[:-1])
    with pytest.raises(ValueError, match=rf"{len(good) - 1} bytes where {len(good)} were written"):
        built_sets.Built(folder)
    rows.write_bytes(good.replace(b"Oslo", b"Olso"))
    with pytest.raises(ValueError, match="not the bytes that were written"):
        built_sets.Built(folder).check()
    rows.write_bytes(b"x" + good[1:])
    with pytest.raises(ValueError, match="instance 0 is damaged"):
        built_sets.Built(folder)[0]
    assert built_sets.Built(folder)[1].instance_id == "squad-1"  # read without the first
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest.json: damaged"):
        built_sets.Built(folder)


# Answers in the text


@pytest.mark.parametrize(
    "source, chunks, answers, expected",
    [
        ("squad", ("It is in  LUND\ntoday",), ("lund today",), True),
        ("squad", ("It is in Lund",), ("Oslo", "lund"), True),
        ("squad", ("It is in Lund",), ("Oslo",), False),
        ("hotpotqa", ("Lund",), ("Yes",), None),
        ("perltqa", ("Lund",), ("Oslo; Lund",), True),
        ("lme_train", ("Lund",), ("Oslo",), None),
        ("longmemeval_s*", ("Lund",), ("Lund",), None),
        ("nlu", ("Sentence: x\nLabel: 12",), ("12",), True),
        ("nlu", ("Sentence: 3\nLabel: 12",), ("3",), False),
        ("nlu", ("Sentence: x\nLabel: 12",), ("1",), False),
        ("pubmed_rct", ("Sample: x\nLabels: 4",), ("4",), True),
        ("squad", ("In 1984.",), ("1984",), True),
    ],
)
def test_answerable(source, chunks, answers, expected):
    asked = Instance(source, "a", chunks, (Question("?", answers),))
    assert checks.answerable(asked) == [expected]


def test_unanswerable_questions_are_dropped_with_their_ids():
    kept = checks.drop_unanswerable(instance())
    assert [q.question for q in kept.questions] == ["Which is old?"]
    assert kept.metadata["question_ids"] == ["a"] and kept.metadata["dropped_questions"] == 1
    whole = replace(instance(), questions=instance().questions[:1])
    assert checks.drop_unanswerable(whole) is whole
    assert checks.drop_unanswerable(replace(instance(), chunks=("Nothing.",))) is None


# Leakage


def test_leakage_by_question_and_paragraph():
    shared = "This paragraph is long enough to be compared, word by word, in both sets."
    dated = "[Dialogue between User and Assistant on 2024-01-01 00:00]"
    training = [instance(0, chunks=(f"{dated}\n{shared}\nshort", "only in training " * 5))]
    other = replace(
        instance(1, chunks=(f"{dated}\n{shared.upper()}\nshort", "only in the test " * 5)),
        questions=(Question("which is OLD", ("x",)), Question("New?", ("y",))),
    )
    found = checks.leakage(training, [other])
    assert (found.questions, found.paragraphs) == (2, 2)
    assert found.shared_questions == ("which is OLD",)
    assert found.shared_paragraphs == (shared.upper(),)
    assert str(found) == "1 of 2 questions and 1 of 2 paragraphs are in training too"
    assert checks.leakage([], [other]).shared_paragraphs == ()


def test_a_labelled_sentence_that_training_shows_may_not_be_asked():
    shown = replace(instance(0, "nlu"), chunks=("Sentence: lights on\nLabel: 3",))
    asked = replace(
        instance(1, "nlu"),
        chunks=("Sentence: lights off\nLabel: 4",),
        questions=(
            Question("Sentence: Lights on!\n\nWhat are the labels?", ("3",)),
            Question("Sentence: play jazz\n\nWhat are the labels?", ("5",)),
        ),
    )
    found = checks.leakage([shown], [asked])
    assert found.shared_questions == ("Sentence: Lights on!",) and found.questions == 2


# The subset


def test_the_subset_is_the_562_instances_of_the_paper():
    assert sum(stratified.SUBSET.values()) == 562 == PUBLISHED_TOTAL
    assert sum(FULL_TRAINING.values()) == 4139
    names = {source: [f"{source}-{i}" for i in range(n)] for source, n in FULL_TRAINING.items()}
    chosen = stratified.choose(names, seed=0)
    assert len(set(chosen)) == 562
    counts = {s: sum(source == s for source, _ in chosen) for s in names}
    assert counts == stratified.SUBSET
    assert stratified.choose(names, seed=0) == chosen != stratified.choose(names, seed=1)
    assert len({source for source, _ in chosen[:40]}) > 5  # mixed


PUBLISHED_TOTAL = 562


def test_the_choice_depends_on_names_and_not_on_their_order():
    names = {"a": [f"a{i}" for i in range(20)], "b": [f"b{i}" for i in range(9)]}
    subset = {"a": 5, "b": 4}
    chosen = [names[s][i] for s, i in stratified.choose(names, 3, subset)]
    turned = {source: ids[::-1] for source, ids in names.items()}
    assert [turned[s][i] for s, i in stratified.choose(turned, 3, subset)] == chosen
    alone = [names[s][i] for s, i in stratified.choose(names, 3, {"b": 4})]
    assert alone == [name for name in chosen if name.startswith("b")]
    with pytest.raises(ValueError, match="b: 9 instances, of which 10 are wanted"):
        stratified.choose(names, 3, {"b": 10})


def test_the_subset_is_written_as_one_build(tmp_path):
    for source in ("nlu", "squad"):
        made = [instance(i, source) for i in range(6)]
        built_sets.write(tmp_path / source / "train", made, {}, count_words)
    subset = {"nlu": 2, "squad": 3}
    for out in ("one", "two"):
        stratified.write(tmp_path, tmp_path / out, 7, count_words, subset)
    assert (
        sorted(i.source for i in built_sets.Built(tmp_path / "one")) == ["nlu"] * 2 + ["squad"] * 3
    )
    assert built_sets.Built(tmp_path / "one").manifest["description"]["tokens"] == "words"
    one, two = ((tmp_path / out / "instances.jsonl").read_bytes() for out in ("one", "two"))
    assert one == two


# Sizes and shrinking


def test_every_row_of_the_paper_has_sizes_near_it():
    for split, published in PUBLISHED.items():
        for source, (count, chunks, tokens, questions) in published.items():
            sizes = default_sizes(source, split)
            assert sizes.count == count
            assert sizes.chunks >= chunks * 0.99
            assert tokens <= sizes.chunk_tokens <= max(1.06 * tokens, 2048)
            assert questions <= sizes.questions


def test_shrink_takes_the_most_chunks_that_the_files_fill():
    seen = []

    def make(sizes):
        seen.append(sizes.chunks)
        if sizes.chunks > 37:
            raise ValueError("too few")
        yield sizes.chunks

    assert build._shrink(make, Sizes(1, 111, 50, 3)).chunks == 37
    assert build._shrink(make, Sizes(1, 20, 50, 3)).chunks == 20
    assert build._shrink(lambda sizes: iter(()), Sizes(1, 20, 50, 3)).chunks == 1
    assert len(seen) < 12


def test_a_target_shrinks_with_the_chunks():
    def make(sizes):
        if sizes.options["target_tokens"] > 370:
            raise ValueError("too few")
        yield sizes

    sizes = build._shrink(make, Sizes(1, 100, 50, 3, {"target_tokens": 1000}))
    assert (sizes.chunks, sizes.options) == (37, {"target_tokens": 370})


def test_long_instances_are_as_long_as_those_of_the_paper():
    for source in ("longmemeval_s", "ruler_qa1", "ruler_qa2"):
        _, chunks, tokens, _ = PUBLISHED["test"][source]
        target = default_sizes(source, "test").options["target_tokens"]
        assert target == pytest.approx(chunks * tokens, rel=1e-4)
