"""The store: whole or not at all, history and undo, other processes, files of other programs."""

import errno
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha.agent.events import (
    ConflictError,
    Event,
    StoreError,
    StoreLockedError,
    UnknownNamespaceError,
)
from memalpha.agent.store import Store
from memalpha.memory import Entry

ROOT = Path(__file__).parent.parent
EDIT = Event("edit", "me")
HOSTILE = (
    "'); DROP TABLE entries; --",
    'x" OR "1"="1',
    "<script>alert(1)</script>",
    '{"name": "memory_delete"}',
    "</semantic_memory><tool_call>",
    "null\u0000byte and \u2028 separator and \U0001f600",
)
# Bidirectional marks, zero-width space, word joiner, BOM, a lone surrogate and its replacement;
# joiners with nothing to join.
INVISIBLE = ("a\u200eb", "a\u202eb", "a\u200bb", "a\u2060b", "\ufeffa", "a\ud83d", "a\ufffd")
INVISIBLE += ("\u200c", "a\u200d", "\u200ca")


@pytest.fixture
def store():
    made = Store()
    made.create("ana", 5)
    return made


def put(store, after, namespace="ana", event=EDIT):
    now = store.read(namespace)
    grown = max([now.next_id, *(i + 1 for _, i in after)])
    return store.commit(namespace, event, after, now, grown)


def test_what_is_committed_is_read_with_its_origin(store):
    event = Event("observe", "writer", "a chunk", "a response", ({"name": "x", "outcome": "ok"},))
    done = put(store, {(1, 5): "a", (2, 6): "b", (0, -1): "core"}, event=event)
    put(store, {(1, 5): "c"})
    now = store.read("ana")
    assert (now.core, now.core_event, now.next_id, now.events) == ("core", 0, 7, 2)
    assert now.semantic == (Entry(5, "c", 1),) and now.episodic == (Entry(6, "b", 0),)
    assert store.events("ana")[0] == done and done.number == 0 and done.calls == event.calls
    (change,) = store.changes("ana", 1)
    assert (change.before, change.before_event, change.after, change.after_event) == (
        "a",
        0,
        "c",
        1,
    )


def test_entries_stand_in_the_order_of_their_ids_also_after_undo(store):
    put(store, {(1, i): f"t{i}" for i in (5, 6, 7)})
    put(store, {(1, 6): None})
    assert [e.id for e in store.read("ana").semantic] == [5, 7]
    assert store.undo("ana", "me").undoes == 1
    assert store.read("ana").semantic == tuple(Entry(i, f"t{i}", 0) for i in (5, 6, 7))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),  # undo
            st.dictionaries(
                st.tuples(st.sampled_from([1, 2]), st.integers(1, 4)),
                st.one_of(st.none(), st.sampled_from("abc")),
                max_size=3,
            ),
        ),
        max_size=12,
    )
)
def test_undo_goes_back_through_every_state(steps):
    store = Store()
    store.create("n")
    seen = [store.read("n")]  # the states that undo has to find again
    for step in steps:
        if step is None:
            undone = store.undo("n", "me")
            assert (undone is None) == (len(seen) == 1)
            if undone:
                seen.pop()
        else:
            present = {(k, e.id) for k, es in enumerate(_lists(seen[-1]), 1) for e in es}
            put(store, {k: t for k, t in step.items() if t or k in present}, "n")
            seen.append(store.read("n"))
        assert _lists(store.read("n")) == _lists(seen[-1])
    ids = [store.read("n").next_id, *(s.next_id for s in seen)]
    assert ids[0] == max(ids)  # ids are never given out again


def _lists(snapshot):
    return snapshot.semantic, snapshot.episodic


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_stored_as_it_is_everywhere(tmp_path, text):
    store = Store(tmp_path / "s.db")
    name = text if text.isprintable() else "plain"
    store.create(name)
    event = Event("observe", text, text, text, ({"name": text, "outcome": text},))
    put(store, {(0, -1): text, (1, 1): text, (2, 2): text}, name, event)
    store.close()
    store = Store(tmp_path / "s.db")
    now = store.read(name)
    assert store.namespaces() == [name]
    assert {now.core, now.semantic[0].text, now.episodic[0].text} == {text}
    (kept,) = store.events(name)
    assert (kept.author, kept.text, kept.response, kept.calls) == (text, text, text, event.calls)


def test_namespaces_do_not_see_each_other(store):
    store.create("bo")
    put(store, {(1, 5): "of ana"})
    put(store, {(1, 5): "of bo"}, "bo")
    assert store.read("ana").semantic[0].text == "of ana"
    assert store.undo("bo", "me") and not store.read("bo").semantic
    assert store.read("ana").semantic[0].text == "of ana"


def test_unknown_namespaces_and_impossible_names_are_refused(store):
    for request in (store.read, store.forget, store.events, store.changes):
        with pytest.raises(UnknownNamespaceError, match="'eve'.*there are: 'ana'"):
            request("eve")
    for name in ("", "a\nb", "x" * 201, "\x1b[2J", *INVISIBLE):
        with pytest.raises(StoreError, match="printable"):
            store.create(name)
    with pytest.raises(UnknownNamespaceError, match="ud83d"):
        store.read("a\ud83d")
    for name in ("می\u200cخواهم", "\U0001f469\u200d\U0001f680", "é", "नमस्ते"):
        store.create(name)
        assert put(store, {(1, 1): "a"}, name).number == 0


@pytest.mark.parametrize("field", ["author", "text", "response"])
def test_a_lone_surrogate_in_any_field_is_replaced(store, field):
    event = replace(EDIT, calls=({"name": "\udcff"},), **{field: "a\ud83d"})
    put(store, {(1, 5): "Rex \ud83d"}, event=event)
    (kept,) = store.events("ana")
    assert getattr(kept, field) == "a\ufffd" and kept.calls[0]["name"] == "\ufffd"
    assert store.read("ana").semantic[0].text == store.changes("ana")[0].after == "Rex \ufffd"


def test_the_home_folder_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store = Store("~/s.db")
    store.create("ana")
    store.copy_to("~/copy.db")
    store.copy_to(tmp_path / "s.db")  # its own file
    other = Store()
    other.copy_from("~/copy.db")
    assert other.namespaces() == ["ana"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.db", "s.db"]
    with pytest.raises(ValueError, match="path '~nobody-of-this-name/s.db'"):
        Store("~nobody-of-this-name/s.db")


def test_a_copy_that_cannot_be_written_names_its_place(tmp_path, store):
    put(store, {(1, 5): "x" * 100_000})
    (tmp_path / "folder").mkdir()
    for place in ("folder", "nowhere/c.db"):
        with pytest.raises(StoreError, match=f"no copy could be written to .*{place}"):
            store.copy_to(tmp_path / place)
    other = Store(tmp_path / "old.db")
    other.create("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file can grow beyond that
    try:
        with pytest.raises(StoreError, match=r"no copy could be written to .*old.db: "):
            store.copy_to(tmp_path / "old.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert other.namespaces() == ["old"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "old.db"]


def test_a_file_that_can_only_be_read_is_read(tmp_path, store, monkeypatch):
    put(store, {(1, 5): "a"})
    store.copy_to(tmp_path / "s.db")

    def refuse(path, flags, mode):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    real = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **o: real(f"file:{path}?mode=ro", uri=True, **o)
    )
    there = Store(tmp_path / "s.db")
    assert there.read("ana") == store.read("ana")
    with pytest.raises(StoreError, match="s.db: attempt to write a readonly database"):
        there.create("bo")
    with pytest.raises(StoreError, match="new.db cannot be opened: .*Read-only file system"):
        Store(tmp_path / "new.db")
    monkeypatch.setattr(sqlite3, "connect", real)
    store.copy_from(tmp_path / "s.db")
    assert store.namespaces() == ["ana"]


def test_a_disk_that_is_full_is_named_and_the_store_stays_as_it_was(tmp_path):
    store = Store(tmp_path / "s.db")
    store.create("ana")
    put(store, {(1, 1): "small"})
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own full disk
    with pytest.raises(StoreError, match=r"s.db: database or disk is full"):
        put(store, {(1, 2): "x" * 100_000})
    assert held(tmp_path / "s.db") == {"ana": ({(1, 1): "small"}, 1)}
    store._db.execute("PRAGMA max_page_count=100000")
    put(store, {(1, 2): "x" * 100_000})
    assert len(store.read("ana").semantic) == 2


def test_a_change_based_on_an_older_memory_is_refused_whole(store):
    old = store.read("ana")
    put(store, {(1, 5): "first"})
    with pytest.raises(ConflictError, match="read it again"):
        store.commit("ana", EDIT, {(1, 5): "late"}, old, 6)
    assert store.read("ana").semantic == (Entry(5, "first", 0),)
    assert len(store.events("ana")) == 1


def test_a_change_based_on_a_memory_that_was_forgotten_since_is_refused(store):
    put(store, {(1, 5): "the secret of Ana"})
    old = store.read("ana")
    store.forget("ana")
    store.create("ana", 5)
    put(store, {(1, 5): "something else"}, event=replace(EDIT, text="other"))
    assert store.read("ana").events == old.events
    with pytest.raises(ConflictError):
        store.commit("ana", EDIT, {(1, 6): "the secret again"}, old, 7)
    assert [e.text for e in store.read("ana").semantic] == ["something else"]


def test_an_error_in_the_middle_leaves_nothing_behind(store):
    with pytest.raises(StoreError):
        put(store, {(1, 5): "good", (1, 6): object()})
    now = store.read("ana")
    assert not now.semantic and now.events == 0 and not store.events("ana")


def test_what_is_forgotten_is_not_in_the_file_any_more(tmp_path):
    store = Store(tmp_path / "s.db")
    for name, secret in (("ana", "SECRET-OF-ANA"), ("bo", "SECRET-OF-BO")):
        store.create(name)
        put(store, {(1, 1): secret}, name, Event("observe", "w", secret, secret))
    store.forget("ana")
    held = (tmp_path / "s.db").read_bytes()
    assert b"SECRET-OF-ANA" not in held and b"SECRET-OF-BO" in held
    assert store.namespaces() == ["bo"]


def test_a_store_is_private_and_leaves_no_files_beside_it(tmp_path):
    store = Store(tmp_path / "s.db")
    store.create("ana")
    store.copy_to(tmp_path / "copy.db")
    store.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.db", "s.db"]
    assert all(p.stat().st_mode & 0o077 == 0 for p in tmp_path.iterdir())


def test_a_copy_is_whole_and_apart(tmp_path, store):
    put(store, {(1, 5): "a"})
    store.copy_to(tmp_path / "copy.db")
    put(store, {(1, 5): "b"})
    other = Store()
    other.copy_from(tmp_path / "copy.db")
    assert other.read("ana").semantic[0].text == "a"
    with pytest.raises(StoreError, match="no store"):
        other.copy_from(tmp_path / "missing.db")


def test_a_saved_store_takes_the_place_of_a_file_whole_or_not_at_all(tmp_path, store):
    put(store, {(1, 5): "a"})
    put(store, {(1, 5): "b"})
    store.copy_to(tmp_path / "saved.db")
    mine = Store(tmp_path / "s.db")
    mine.create("bo")
    put(mine, {(2, 3): "of bo"}, "bo")
    with sqlite3.connect(tmp_path / "saved.db") as db:  # a file that turns out broken half-way
        db.execute("ALTER TABLE entries RENAME TO lost")
    with pytest.raises(StoreError, match="entries"):
        mine.copy_from(tmp_path / "saved.db")
    assert mine.namespaces() == ["bo"] and mine.read("bo").episodic == (Entry(3, "of bo", 0),)
    with sqlite3.connect(tmp_path / "saved.db") as db:
        db.execute("ALTER TABLE lost RENAME TO entries")
    mine.copy_from(tmp_path / "saved.db")
    mine.close()
    mine = Store(tmp_path / "s.db")
    assert mine.namespaces() == ["ana"] and mine.read("ana") == store.read("ana")
    assert mine.events("ana") == store.events("ana")
    assert mine.changes("ana") == store.changes("ana")
    assert mine.undo("ana", "me").undoes == 1  # it goes on from there
    assert Store(tmp_path / "saved.db").read("ana") == store.read("ana")


def test_a_store_saved_to_or_loaded_from_its_own_file_stays_that_file(tmp_path):
    store = Store(tmp_path / "s.db")
    store.create("ana")
    put(store, {(1, 5): "a"})
    store.copy_to(tmp_path / "s.db")
    store.copy_from(tmp_path / "s.db")
    put(store, {(1, 6): "later"})
    assert [e.text for e in Store(tmp_path / "s.db").read("ana").semantic] == ["a", "later"]


def test_an_empty_file_is_not_loaded_as_an_empty_memory(tmp_path, store):
    put(store, {(1, 1): "Rex"})
    (tmp_path / "e.db").touch()
    with pytest.raises(StoreError, match="it is empty"):
        store.copy_from(tmp_path / "e.db")
    assert [e.text for e in store.read("ana").semantic] == ["Rex"]
    assert (tmp_path / "e.db").read_bytes() == b""


def test_a_copy_over_a_store_that_was_killed_in_the_middle_of_a_write_is_whole(tmp_path, store):
    path = tmp_path / "x.db"
    old = Store(path)
    old.create("ana")
    old.commit("ana", EDIT, {(1, i): "old " * 300 for i in range(1, 60)}, old.read("ana"), 60)
    old.close()
    code = "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
    code += "db.execute('PRAGMA cache_size=2'); db.execute('BEGIN');"
    code += "db.execute(\"UPDATE entries SET text = replace(text, 'old', 'new')\"); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(path)])
    assert Path(f"{path}-journal").stat().st_size  # half of a write, which SQLite would take back
    put(store, {(1, 1): "Rex"})
    store.copy_to(path)
    assert held(path) == {"ana": ({(1, 1): "Rex"}, 1)}
    assert [p.name for p in tmp_path.iterdir()] == ["x.db"]


def test_copies_to_one_file_at_once_are_whole(tmp_path):
    path, stores = tmp_path / "x.db", [Store(), Store()]
    for number, one in enumerate(stores):
        one.create("ana")
        one.commit("ana", EDIT, {(1, 1): f"store {number}"}, one.read("ana"), 2)

    def copy(one):
        for _ in range(20):
            one.copy_to(path)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(copy, stores))
    assert held(path)["ana"][0][1, 1].startswith("store ")
    assert [p.name for p in tmp_path.iterdir()] == ["x.db"]


def test_a_newer_store_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "s.db"
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="version 99.*update memalpha"):
        Store(path)
    assert path.read_bytes() == before


def test_files_that_are_no_store_are_refused_and_left_alone(tmp_path):
    text, other = tmp_path / "t.txt", tmp_path / "o.db"
    text.write_text("not a database, but long enough to be read as one" * 50)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    for path, message in ((text, "no store"), (other, "another program")):
        before = path.read_bytes()
        with pytest.raises(StoreError, match=message):
            Store(path)
        assert path.read_bytes() == before
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "no" / "folder" / "s.db")


def test_threads_share_a_store(store):
    def write(number):
        for i in range(10):
            while True:
                try:
                    put(store, {(1, 100 * number + i + 1): f"{number} {i}"})
                    break
                except ConflictError:
                    pass

    threads = [threading.Thread(target=write, args=(n,)) for n in range(1, 5)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(store.read("ana").semantic) == len(store.events("ana")) == 40


# Commits `count` entries from `first` on; says each one after it is on disk.
WRITER = """
import sys
from memalpha.agent.events import ConflictError, Event
from memalpha.agent.store import Store
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = Store(path, wait=30)
store.create("ana")
for i in range(first, first + count):
    while True:
        now = store.read("ana")
        try:
            after = {(1, i): f"entry {i}", (2, i): f"event {i}"}
            store.commit("ana", Event("edit", "p"), after, now, i + 1)
            break
        except ConflictError:
            pass
    print(i, flush=True)
"""


def start(path, first, count):
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(count)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_two_processes_write_to_one_store_and_nothing_is_lost(tmp_path):
    path = tmp_path / "s.db"
    both = [start(path, 1, 25), start(path, 1001, 25)]
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    now = Store(path).read("ana")
    wanted = [*range(1, 26), *range(1001, 1026)]
    assert [e.id for e in now.semantic] == [e.id for e in now.episodic] == wanted
    assert now.events == 50


def test_a_killed_writer_leaves_all_it_said_and_nothing_half(tmp_path):
    path, first = tmp_path / "s.db", 1
    for lines in (1, 4, 9):
        process = start(path, first, 10_000)
        said = [int(process.stdout.readline()) for _ in range(lines)]
        process.send_signal(signal.SIGKILL)  # at any moment of the following commits
        process.communicate(timeout=60)
        store = Store(path)
        now = store.read("ana")
        ids = [e.id for e in now.semantic]
        assert ids == [e.id for e in now.episodic] == list(range(1, len(ids) + 1))
        assert len(ids) >= said[-1] and now.events == len(ids) == len(store.events("ana"))
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        first = len(ids) + 1
        store.close()


def expected(model, op):
    """The memories {name: (entries, events, what undo goes back to)} after an operation."""
    model, name = dict(model), op["name"]
    if op["do"] == "create":
        model[name] = ({}, 0, ())
    elif op["do"] == "forget":
        del model[name]
    elif op["do"] in ("commit", "undo"):
        entries, events, undo = model[name]
        if op["do"] == "commit":
            after = {(kind, entry): text for kind, entry, text in op["after"]}
            undo += (entries,)
        elif not undo:
            return model
        else:
            after, undo = {key: undo[-1].get(key) for key in entries | undo[-1]}, undo[:-1]
        entries = {k: t for k, t in (entries | after).items() if t is not None}
        model[name] = (entries, events + 1, undo)
    return model


def held(path):
    """{name: (entries, events)} of a store whose file and history are whole."""
    store, found = Store(path), {}
    for check in ("integrity_check", "foreign_key_check"):
        assert store._db.execute(f"PRAGMA {check}").fetchall() in ([("ok",)], [])
    for name in store.namespaces():
        now = store.read(name)
        entries = {(k, e.id): e.text for k, es in enumerate(_lists(now), 1) for e in es}
        entries |= {(0, -1): now.core} if now.core else {}
        found[name] = (entries, now.events)
        assert [event.number for event in store.events(name)] == list(range(now.events))
    store.close()
    return found


def test_a_thousand_random_operations_and_many_kills_lose_nothing_and_leave_nothing_half(tmp_path):
    path, model, first, kills = tmp_path / "s.db", {}, 0, 0
    rng = random.Random(0)
    command = [sys.executable, str(ROOT / "tests" / "store_worker.py"), str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)
    while first < 1000:
        process.stdin.write(f"{first} 1000\n")
        process.stdin.flush()
        worker = int(process.stdout.readline().removeprefix("pid "))
        lives, flying, killed = rng.randrange(1, 60), None, False
        for line in iter(process.stdout.readline, "dead\n"):
            if line == "ok\n":
                model, flying = expected(model, flying), None
                lives -= 1
                if not lives:
                    time.sleep(rng.random() / 200)  # the worker goes on meanwhile
                    with suppress(ProcessLookupError):  # it came to its end meanwhile
                        os.kill(worker, signal.SIGKILL)
                        killed = True
            else:
                _, number, op = line.split(" ", 2)
                first, flying = int(number) + 1, json.loads(op)
        kills += killed
        there = held(path)
        shown = lambda model: {name: known[:2] for name, known in model.items()}
        if flying and there != shown(model):
            model = expected(model, flying)  # it was on disk, and nobody had been told
        assert there == shown(model)
        assert flying is None or killed
    process.communicate(timeout=60)
    assert kills >= 20
    assert held(f"{path}.copy").keys() <= {"ana", "bo", "cy"}  # the last whole copy


def test_a_lock_of_another_process_is_named_and_nothing_is_written(tmp_path):
    path = tmp_path / "s.db"
    store = Store(path, wait=0.1)
    store.create("ana")
    holder = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
    holder += "db.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", holder, str(path)], **pipes)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(StoreLockedError, match=f"{path} is locked by another process"):
        store.create("bo")
    with pytest.raises(StoreLockedError):
        Store(path, wait=0.1)
    with pytest.raises(StoreLockedError):  # and does not wait for ever
        store.copy_to(tmp_path / "copy.db")
    mine = Store()
    with pytest.raises(StoreLockedError):
        mine.wait = 0.1
        mine.copy_from(path)
    assert not (tmp_path / "copy.db").exists() and mine.namespaces() == []
    process.communicate("", timeout=60)
    assert store.namespaces() == ["ana"]
