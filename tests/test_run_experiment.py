"""The real command: its messages, one small run from end to end, and a run that keeps being killed.

Kills come from inside the process, at an exact file operation, so that every run of the test hits
the moments that matter.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_workdir import read_events

ROOT = Path(__file__).parent.parent
TINY = (
    "warm_start.steps=4,warm_start.copy_steps=1,warm_start.quote_steps=1,warm_start.copy_rows=4,"
    "warm_start.rows=4,warm_start.micro_batch=0,"
    "rl.steps=4,rl.instances=1,rl.rollouts=2,rl.micro_batch=2,"
    "rl.entropy_coef=0.1,"  # an untrained policy earns no reward: something has to move it
    "model.hidden_size=32,model.num_layers=1,model.num_heads=2,model.num_kv_heads=1,"
    "model.head_dim=8,model.mlp_size=32,tokenizer.vocab_size=600,"
    "prompt.tokens=320,prompt.response_tokens=32,checkpoint_every=2,"
    "eval.every=2,eval.instances=1,eval.test_instances=1"
)
SOURCES = "('synthetic_facts','synthetic_updates')"
# Runs the command under an audit hook that kills it before the n-th event of a kind on a path.
KILLER = """
import os, runpy, signal, sys
wanted, ending, number = sys.argv[1:4]
seen = 0
def hook(event, arguments):
    global seen
    if event == wanted and str(arguments[0]).endswith(ending) and arguments[1] != "r":
        seen += 1
        if seen == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.argv = sys.argv[4:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def environment(home=None):
    """As the tests run; with the tunable set, the command does not start itself again. `home`:
    another home folder, where compiled programs go too, as they do for a user."""
    variables = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "COLUMNS": "200"}
    if home:
        for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
            variables.pop(name, None)
        # Matplotlib would list the fonts of the machine again.
        variables |= {"HOME": str(home), "MPLCONFIGDIR": matplotlib.get_cachedir()}
    return variables


def arguments(name="run"):
    """Of a run in this folder of the home folder."""
    config = f"--config={ROOT / 'configs' / 'tiny.py'}:{TINY}"
    sources = f"--config.data.sources={SOURCES}"
    return ["run_experiment.py", config, sources, f"--workdir=~/{name}", "--tensorboard"]


def run(*command, home=None):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of an uninterrupted run, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    result = run(*arguments("whole"), home=home)
    assert result.returncode == 0, result.stderr[-3000:]
    return home / "whole", result.stdout


def fails(*command):
    result = run("run_experiment.py", *command)
    assert result.returncode != 0
    return result.stdout + result.stderr


def test_help_names_the_flags():
    text = run("run_experiment.py", "--help").stdout
    assert "--config" in text and "--workdir" in text
    assert "python run_experiment.py --config=configs/tiny.py --workdir=runs/tiny" in text
    assert "--[no]tensorboard" in text


def test_help_lists_every_config_with_what_it_is():
    text = run("run_experiment.py", "--help").stdout
    configs = [p.name for p in ROOT.glob("configs/*.py") if "def get_config" in p.read_text()]
    listed = re.findall(r"^ +configs/(\w+\.py)\n +(\S.{20,}\.)$", text, re.MULTILINE)
    assert [name for name, _ in listed] == sorted(configs) and "tiny.py" in configs


@pytest.mark.parametrize(
    "command, message",
    [
        (["--config=configs/tiny.py:rl.setps=3"], "steps"),
        (["--config=configs/tiny.py", "--config.rl.setps=3"], "steps"),
        (["--config=configs/tiny.py:smoek"], "unknown config argument 'smoek': give smoke, flat"),
        (["--config=configs/tiny.py:rl.steps=many"], "rl.steps='many': not a value of its type"),
        (["--config=configs/tinny.py"], "configs/tinny.py"),
        (["--config=configs/tiny.py", "surplus"], "unknown argument 'surplus'"),
        ([], "--config"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, command, message):
    text = fails(*command, f"--workdir={tmp_path / 'run'}")
    assert message in text
    assert not (tmp_path / "run" / "config.json").exists()  # the folder is still free for a run


def test_a_workdir_of_another_config_is_refused(finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    text = fails("--config=configs/tiny.py", f"--workdir={workdir}")
    assert "belongs to a run of another config" in text and "rl.steps: was 4" in text
    assert "Traceback" not in text
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_end_to_end(finished):
    workdir, printed = finished
    files = {"config.json", "policy.json", "tokenizer", "checkpoints"}
    assert files <= {path.name for path in workdir.iterdir()}
    assert not list(ROOT.glob("~*"))  # --workdir=~/whole is in the home folder
    assert not list(workdir.rglob("jit_*")) and compiled(workdir.parent)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["seed"] == 0 and 0 < summary["host_share"] < 1
    report = (workdir / "report.html").read_text()
    assert "Finished: 4 of 4 steps" in report and "after RL" in report and "<svg" in report
    assert "run_experiment.py" in report and jax.__version__ in report
    timeline = (workdir / "timeline.html").read_text()
    assert "before training" in timeline and "synthetic_updates" in timeline
    results = summary["results"]
    assert set(results) == {
        *("perfect writer", "after RL", "after RL, greedy"),
        *("untrained (warm start)", "untrained (warm start), greedy"),
        *("store everything", "RAG-Top2", "no memory"),
    }
    assert set(results["after RL"]) == {"synthetic_facts", "synthetic_updates", "mean"}
    assert results["perfect writer"]["mean"]["r1"] > results["no memory"]["mean"]["r1"] == 0
    for name in results:
        assert f"│ {name} " in printed
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    memory = (workdir / "memory.txt").read_text()
    assert "before training" in memory and "after training" in memory
    assert memory.startswith("Of 2 test instances") and "Of 2 test instances" in printed
    assert "tokens/s" in printed and "r3: 1 - tokens of the memory" in printed
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert {"r1", "r2", "r3", "r4", "loss", "grad_norm", "entropy", "calls"} <= set(lines[0])
    assert ["validation_r1" in line for line in lines] == [False, True, False, True]
    assert all(line["grad_norm"] > 0 for line in lines)
    events = read_events(workdir / "tensorboard" / "metrics")
    assert [step for step, _ in events] == [0, 1, 2, 3]
    for (_, shown), line in zip(events, lines, strict=True):
        assert shown == pytest.approx({k: v for k, v in line.items() if k != "step"}, nan_ok=True)
    assert len(read_events(workdir / "tensorboard" / "warm_start")) == 4
    assert lines[0]["logp_gap_max"] < 1e-4  # sampler and learner are the same model


def compiled(home):
    """The programs that runs with this home folder have compiled."""
    return {path.name for path in (home / ".cache" / "memalpha" / "jax").glob("jit_*-cache")}


def final_state(workdir, stage):
    with ocp.CheckpointManager(workdir / "checkpoints" / stage) as manager:
        assert manager.latest_step() == 4
        return manager.restore(4, args=ocp.args.StandardRestore())


def test_a_run_that_keeps_being_killed_ends_as_if_it_had_not(finished):
    whole, _ = finished
    workdir, programs = whole.with_name("run"), compiled(whole.parent)
    command = arguments()
    for event, ending, number in (
        ("os.rename", "warm_start/2.orbax-checkpoint-tmp", 1),  # whole, but not yet in its place
        ("open", "warm_start.jsonl", 3),  # a checkpoint, and nothing after it
        ("os.mkdir", "rl/2.orbax-checkpoint-tmp/default.orbax-checkpoint-tmp", 1),  # half a one
        ("open", "metrics.jsonl", 4),  # the log is ahead of the checkpoint
    ):
        result = run("-c", KILLER, event, ending, str(number), *command, home=whole.parent)
        assert result.returncode == -signal.SIGKILL, result.stderr[-3000:]
        assert not (workdir / "summary.json").exists()
    result = run(*command, home=whole.parent)
    assert result.returncode == 0, result.stderr[-3000:]

    assert compiled(whole.parent) == programs  # in another workdir, and nothing is compiled again
    for name in ("warm_start.jsonl", "metrics.jsonl", "memory.txt"):
        assert (workdir / name).read_text() == (whole / name).read_text(), name
    for name in ("warm_start", "metrics"):  # no step twice
        left, right = (read_events(w / "tensorboard" / name) for w in (whole, workdir))
        assert repr(left) == repr(right) and len(left) == 4, name
    before, after = (json.loads((w / "summary.json").read_text()) for w in (whole, workdir))
    assert before["results"] == after["results"]
    for stage in ("warm_start", "rl"):
        left, right = final_state(whole, stage), final_state(workdir, stage)
        assert jax.tree.structure(left) == jax.tree.structure(right)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
