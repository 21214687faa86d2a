"""The folder of a run: whose it is, and what a kill leaves of its files."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import config_dict
from tensorboardX.proto.event_pb2 import Event

from configs import tiny
from experiments.lib.workdir import (
    ADDED,
    MetricsLog,
    WorkdirError,
    claim_workdir,
    read_metrics,
    write_json,
)


def config(**rl):
    fields = dict(seed=0, data=dict(sources=("a", "b")), rl=dict(steps=3, rate=1e-4))
    made = config_dict.create(**fields)
    made.rl.update(rl)
    return made


def test_a_new_folder_gets_its_config_and_the_same_config_opens_it_again(tmp_path):
    folder = claim_workdir(str(tmp_path / "new" / "run"), config())
    assert folder.is_absolute() and folder.is_dir()
    written = json.loads((folder / "config.json").read_text())
    assert written["rl"] == {"rate": 1e-4, "steps": 3}
    assert written["data"]["sources"] == ["a", "b"]
    assert [path.name for path in folder.iterdir()] == [
        "config.json"
    ]  # nothing written aside stays
    assert claim_workdir(str(folder), config()) == folder


def test_another_config_is_refused_and_the_fields_are_named(tmp_path):
    claim_workdir(str(tmp_path), config())
    (tmp_path / "tokenizer").mkdir()
    other = config(steps=7, extra=True)
    other.data.sources = ("a",)
    with pytest.raises(WorkdirError) as caught:
        claim_workdir(str(tmp_path), other)
    text = str(caught.value)
    assert str(tmp_path) in text
    assert "rl.steps: was 3, is 7" in text
    assert "rl.extra: was '(absent)', is True" in text
    assert "data.sources: was ['a', 'b'], is ['a']" in text
    assert "rate" not in text and "seed" not in text  # only what differs
    assert json.loads((tmp_path / "config.json").read_text())["rl"]["steps"] == 3


def test_a_run_that_failed_before_it_began_does_not_claim_its_workdir(tmp_path):
    claim_workdir(str(tmp_path), config())
    claim_workdir(str(tmp_path), config(steps=7))
    assert json.loads((tmp_path / "config.json").read_text())["rl"]["steps"] == 7


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_workdir_that_is_a_file(tmp_path, inside):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(WorkdirError, match="is not a folder"):
        claim_workdir(str(path / inside), config())
    assert path.read_text() == "mine"


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"b": 1, "a": [0.1]})
    assert json.loads(path.read_text()) == {"a": [0.1], "b": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [0.1], "b": 1}


def test_metrics_come_back_as_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    assert read_metrics(log.path) == []
    log.write(0, {"loss": 0.1, "acc": 1e-9})
    log.write(1, {"loss": float("nan")})
    first, second = read_metrics(log.path)
    assert first == {"step": 0, "acc": 1e-9, "loss": 0.1}
    assert second["step"] == 1 and second["loss"] != second["loss"]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_reopening_drops_the_steps_that_will_be_run_again(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for step in range(5):
        log.write(step, {"loss": step / 3})
    again = MetricsLog(log.path, 3)
    assert [line["step"] for line in read_metrics(log.path)] == [0, 1, 2]
    again.write(3, {"loss": 9.0})
    assert [line["loss"] for line in read_metrics(log.path)] == [0.0, 1 / 3, 2 / 3, 9.0]
    MetricsLog(log.path, 0)
    assert read_metrics(log.path) == []


@pytest.mark.parametrize("cut", ['{"step": 2, "lo', '{"step": 2, "loss": 0.', '{"step"', "{"])
def test_a_last_line_cut_off_by_a_kill_is_dropped_for_good(tmp_path, cut):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for step in range(2):
        log.write(step, {"loss": 0.5})
    with log.path.open("a") as file:
        file.write(cut)
    assert [line["step"] for line in read_metrics(log.path)] == [0, 1]
    MetricsLog(log.path, 2).write(2, {"loss": 0.25})
    assert [line["step"] for line in read_metrics(log.path)] == [0, 1, 2]
    assert len(log.path.read_text().splitlines()) == 3


def read_events(folder):
    """(step, {name: value}) of every event, from the record format: length, check, data, check."""
    (path,) = folder.iterdir()
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + size])
        found.append((event.step, {v.tag: v.simple_value for v in event.summary.value}))
        at += size + 16
    assert found[0] == (0, {})  # the version of the file
    return found[1:]


def test_events_say_what_the_metrics_say_also_after_a_resume(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, events=True)
    for step in range(4):
        log.write(step, {"loss": step / 4, "r1": 0.5})
    folder = tmp_path / "tensorboard" / "metrics"
    assert read_events(folder) == [(n, {"loss": n / 4, "r1": 0.5}) for n in range(4)]  # no close
    again = MetricsLog(log.path, 2, events=True)
    again.write(2, {"loss": 9.0})
    kept = [(n, {"loss": n / 4, "r1": 0.5}) for n in range(2)]
    assert read_events(folder) == [*kept, (2, {"loss": 9.0})]


def test_events_can_be_asked_for_later(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl", 0).write(0, {"loss": 0.5})
    assert not (tmp_path / "tensorboard").exists()
    MetricsLog(tmp_path / "metrics.jsonl", 1, events=True)
    assert read_events(tmp_path / "tensorboard" / "metrics") == [(0, {"loss": 0.5})]


def test_events_need_neither_tensorflow_nor_torch():
    code = (
        "import sys, experiments.lib.tensorboard; print({'tensorflow', 'torch'} & {*sys.modules})"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_no_file_is_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_run_from_before_a_field_goes_on_under_the_value_it_had_without_it(tmp_path):
    now = tiny.get_config()
    old = json.loads(now.to_json())
    for name in ADDED:
        group, field = name.split(".")
        del old[group][field]
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "tokenizer").mkdir()
    other = tiny.get_config("warm_start.warmup_steps=3")
    with pytest.raises(WorkdirError, match=r"config:\n  warm_start.warmup_steps: .* is 3\nChoose"):
        claim_workdir(str(tmp_path), other)
    assert claim_workdir(str(tmp_path), now) == tmp_path
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(now.to_json())
