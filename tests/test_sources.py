"""Instances of built folders, for evaluation and for training."""

import pytest

from configs import tiny
from experiments.lib.instances import build_instances, training_batches
from experiments.lib.sources import describe_source, known_sources, load_sources
from experiments.lib.systems import applies
from memalpha.data import built_sets
from memalpha.data.instance import Instance, Question
from memalpha.data.text import dialogue_chunk

COUNT = lambda text: len(text.split())


def instance(source, name, chunks=2, questions=3, plain=False):
    asked = tuple(Question(f"q{n}", ("gold",)) for n in range(questions))
    texts = [f"Plain text {n}." for n in range(chunks)]
    framed = [dialogue_chunk("Read:", "Done.", n, f"A fact {n}. One more.") for n in range(chunks)]
    return Instance(source, name, tuple(texts if plain else framed), asked)


@pytest.fixture
def built(tmp_path):
    for source, split, count, plain in (
        ("squad", "train", 4, False),
        ("squad", "test", 3, False),
        ("perltqa", "test", 1, True),
    ):
        some = [instance(source, f"{source}-{n}", plain=plain) for n in range(count)]
        description = {"source": source, "split": split, "tokens": "words"}
        built_sets.write(tmp_path / source / split, some, description, COUNT)
    return tmp_path


def config_of(folder, more=""):
    return tiny.get_config(f"data.built={folder},data.max_questions=2{more}")


def test_sets_are_found_by_split_and_source(built):
    assert built_sets.list_sets(built) == {
        "train": {"squad": built / "squad" / "train"},
        "test": {"squad": built / "squad" / "test", "perltqa": built / "perltqa" / "test"},
    }
    assert built_sets.list_sets(built / "squad" / "test") == {
        "test": {"squad": built / "squad" / "test"}
    }
    assert len(built_sets.open_source(built, "squad", "test")) == 3
    with pytest.raises(ValueError, match="no built set of split 'validation'; it has"):
        built_sets.find_split(built, "validation")
    with pytest.raises(ValueError, match="no source 'nlu' of split 'test'; it has perltqa, squad"):
        built_sets.open_source(built, "nlu", "test")
    with pytest.raises(ValueError, match="no built set in it"):
        built_sets.list_sets(built / "squad")


def test_a_config_reads_them_as_they_are(built):
    config = config_of(built)
    made = build_instances(config, "squad", "test", 2)
    assert [i.instance_id for i in made] == ["squad-0", "squad-1"]
    assert [len(i.questions) for i in made] == [2, 2]
    assert [n["content"] for n in made[0].metadata["notes"][0]] == ["A fact 0.", "One more."]
    assert len(build_instances(config, "squad", "test", 99)) == 3
    assert [i.instance_id for i in build_instances(config, "squad", "test", 9, first=2)] == [
        "squad-2"
    ]
    (plain,) = build_instances(config, "perltqa", "test", 1)
    assert "notes" not in plain.metadata  # of another form: read, but not written of by script
    assert len(build_instances(config, "synthetic_facts", "test", 2)) == 2


def test_training_on_them(built):
    config = config_of(built, ",data.instances=4")
    config.data.sources = ("squad", "synthetic_facts")
    pick = training_batches(config)
    names = [i.instance_id for step in range(4) for i in pick(step, 2) if i.source == "squad"]
    assert sorted(names) == [f"squad-{n}" for n in range(4)]  # an epoch
    config.data.chunks = 1
    with pytest.raises(ValueError, match="squad: .* of at most 1 chunks .* longest of 2"):
        training_batches(config)


def test_what_the_command_knows(built):
    config = config_of(built)
    known = known_sources(config, "test")
    assert known[-2:] == ["perltqa", "squad"] and "synthetic_story" in known
    with pytest.raises(ValueError, match="unknown source 'hotpotqa'; known: .*perltqa, squad$"):
        load_sources(config, ["hotpotqa"], "test", 1)
    about = describe_source(config, "squad", "test", 0)
    config.data.empty_share = 0.5
    assert describe_source(config, "synthetic_chats", "test", 0)["empty_share"] == 0.5
    manifest = built_sets.Built(built / "squad" / "test").manifest
    assert about == {"built": manifest["sha256"], "max_questions": 2}
    synthetic = describe_source(config, "synthetic_facts", "test", 7)
    assert synthetic["chunks"] == 7 and synthetic["seed"] == 0
    assert applies("perfect", "synthetic_facts") and not applies("perfect", "squad")
