"""Progress: plain lines where nobody watches, a bar on a terminal, and warnings said once."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.lib.progress import CUT, LINES, WORRIES, duration, progress, worries
from experiments.lib.step_log import describe_step

ROOT = Path(__file__).parent.parent
WORK = """
from experiments.lib.progress import progress
with progress("train", 3) as report:
    for step in range(3):
        report.warn(step, "look here", *["and [here]"] * (step == 1))
        report(step + 1, "r1 0.50")
"""


def test_a_step_in_one_line_by_hand():
    metrics = {"r1": 0.5, "r2": 0.25, "r3": -0.5, "r4": 1.0, "tokens": 1391.0}
    line = "r1 0.50  r2 0.25  r3 -0.50  r4 1.00  348 tokens/s"
    assert describe_step(metrics, 4.0) == line


@pytest.mark.parametrize("name", WORRIES)
def test_what_is_not_well_is_named(name):
    metrics = dict.fromkeys(WORRIES, 0.0) | {"unfinished": 0.5}
    assert worries(metrics) == worries({}) == []
    assert worries(metrics | {name: 1.0}) == [WORRIES[name]]
    assert worries(metrics | {"unfinished": 0.6}) == [CUT]


def test_without_a_terminal_a_few_plain_lines(capsys):
    with progress("train", 1000, start=400) as report:
        for step in range(400, 1000):
            report(step + 1, "r1 0.50")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= LINES and lines[0].startswith("train 450/1000  r1 0.50  ")
    assert lines[-1] == "train 1000/1000  r1 0.50  0 s left"


def test_durations_are_told_in_the_unit_that_fits():
    told = [duration(seconds) for seconds in (0, 119, 120, 7199, 7200, 360_000)]
    assert told == ["0 s", "119 s", "2 min", "120 min", "2.0 h", "100.0 h"]


def run(stdout):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    return subprocess.Popen([sys.executable, "-c", WORK], stdout=stdout, env=environment)


def test_a_file_gets_no_control_characters_and_each_warning_once(tmp_path):
    path = tmp_path / "log"
    with path.open("w") as file:
        assert run(file).wait() == 0
    text = path.read_text()
    assert "\x1b" not in text and "\r" not in text
    assert [line for line in text.splitlines() if line.startswith("warning")] == [
        "warning: train, step 0: look here",
        "warning: train, step 1: and [here]",
    ]


def test_a_terminal_gets_a_bar_with_the_time_left():
    ours, theirs = pty.openpty()
    process, seen = run(theirs), b""
    os.close(theirs)
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # closed at the other end
            break
        if not part:
            break
        seen += part
    os.close(ours)
    text = seen.decode()
    assert process.wait() == 0
    assert "3/3" in text and "r1 0.50" in text and "━" in text and "0:00:00" in text
    assert text.count("look here") == 1 and "\x1b" in text and "s left" not in text
