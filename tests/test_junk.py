"""Small talk: lines that training never saw, and the share at which a writer stores anything."""

import json
import sys

import pytest
from absl import flags

from experiments import junk
from memalpha.data.chats.words import read_toml
from memalpha.data.text import plain_key
from memalpha.policy import Policy
from memalpha.rollout import scripted_writer
from memalpha.tools import DELETE, INSERT, UPDATE, Call, format_response


def test_the_lines_are_many_different_and_not_in_the_training_data():
    lines = junk.read_lines()
    keys = {plain_key(line) for line in lines}
    assert len(lines) == len(keys) == 200
    talk = read_toml("talk.toml")
    said = [
        s for name in ("small_talk", "reactions", "replies", "leads", "tails") for s in talk[name]
    ]
    assert not keys & {plain_key(text) for text in (*said, *talk["answers"])}


def writer_of(env, respond):
    def text(turn):
        return format_response(respond(turn), env.prompt.dialect)

    return scripted_writer(env, text)


def test_the_share_of_lines_at_which_something_is_stored(micro):
    """Of 11 lines one is stored, one is put into the core, one deletes, and one call fails."""
    lines = [f"line {n}" for n in range(11)]
    seen = {}

    def respond(turn):
        seen[turn.text] = turn.view
        memory, number = {"memory_type": "semantic"}, turn.text.removeprefix("line ")
        return {
            "1": [Call(INSERT, memory | {"content": "a line"}), Call(INSERT, memory)],
            "4": [Call(UPDATE, {"memory_type": "core", "new_content": "lines"})],
            "7": [Call(DELETE, {"memory_type": "core"})],
            "9": [Call(UPDATE, memory | {"new_content": "x", "memory_id": "0"})],
        }.get(number, [])

    made = junk.measure_junk(micro.env, writer_of(micro.env, respond), lines, rows=1)
    assert [j.line for j in made] == lines == list(seen)
    assert [j.stored for j in made if j.stored] == [["a line"], ["lines"]]
    assert junk.summary(made) == {"lines": 11, "stored": 2 / 11, "called": 4 / 11}
    assert all(v.core or v.semantic or v.episodic for v in seen.values())  # none began empty
    silent = junk.measure_junk(micro.env, writer_of(micro.env, lambda turn: []), lines, rows=2)
    assert junk.summary(silent) == {"lines": 11, "stored": 0.0, "called": 0.0}


def test_lines_in_the_form_of_the_agent(micro):
    (stream,) = junk.streams(["brb"], as_dialogue=True)
    assert stream.chunks[-1] == (
        "[Dialogue between User and Assistant on 2025-04-12 18:30]\n<User> brb\n<Assistant> Noted."
    )
    assert len(stream.chunks) == len(stream.metadata["notes"]) == junk.BEFORE + 1
    assert all(stream.metadata["notes"][:-1]) and not stream.metadata["notes"][-1]


def test_the_command_writes_what_was_stored(micro, tmp_path, monkeypatch):
    def parrot(turn):
        return [Call(INSERT, {"memory_type": "semantic", "content": turn.text})]

    monkeypatch.setattr(Policy, "writer", lambda self, **_: writer_of(micro.env, parrot))
    policy = Policy("a writer", micro.model, {}, micro.env)
    monkeypatch.setattr(junk, "load_policy", lambda *_: policy)
    (tmp_path / "lines.txt").write_text("brb\n\nlol\n")
    names = {"checkpoint": "x", "stage": None, "step": None, "dialogue": False, "rows": 2}
    names |= {"lines": str(tmp_path / "lines.txt"), "temperature": 0.0, "out": str(tmp_path / "o")}
    monkeypatch.setattr(flags, "FLAGS", type("Args", (), names))
    junk.main([sys.argv[0]])
    out = json.loads((tmp_path / "o").read_text())
    assert (out["writer"], out["lines"], out["stored"]) == ("a writer", 2, 1.0)
    assert [row["stored"] for row in out["of"]] == [["brb"], ["lol"]]


def test_a_file_without_lines_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="empty.txt holds no lines"):
        junk.read_lines(tmp_path / "empty.txt")
