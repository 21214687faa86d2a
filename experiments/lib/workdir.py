"""The folder of a run: config.json, metrics.jsonl, summary.json and the pictures."""

import json
import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.lib.readers import comparable
from experiments.lib.tensorboard import EventLog
from memalpha.data.files import write_text
from memalpha.paths import user_path


class WorkdirError(ValueError):
    """A workdir that does not belong to this config, or that cannot be used."""


def claim_workdir(workdir: str, config: ConfigDict) -> Path:
    """Creates the folder and writes config.json. A run that is already there must have the same
    config, except for the fields in `readers.OPERATION`.

    With several processes only the first one does this.

    Raises:
        WorkdirError: the folder has a run with another config (says which fields differ), or the
            path is not a folder.
    """
    folder = user_path(workdir).absolute()
    if jax.process_index():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise WorkdirError(f"--workdir={workdir} is not a folder: {error}") from error
    now = json.loads(config.to_json())
    path = folder / "config.json"
    begun = any((folder / name).exists() for name in ("tokenizer", "checkpoints"))
    if path.exists() and begun:  # a run that failed earlier has nothing to keep
        try:
            before = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise WorkdirError(f"{path} is no JSON ({error}): choose another workdir") from None
        differ = [
            (name, old, new)
            for name, old, new in sorted(differences(comparable(before), comparable(now)))
            if (old, new) != (ABSENT, ADDED.get(name, ABSENT))
        ]
        if differ:
            lines = "\n".join(f"  {name}: was {old!r}, is {new!r}" for name, old, new in differ)
            raise WorkdirError(
                f"--workdir={workdir} belongs to a run of another config:\n{lines}\n"
                "Choose another workdir, or the config of that run."
            )
    write_json(path, now)
    return folder


def own_folder(folder: Path) -> Path:
    """Where this process writes its own files: the first one in the folder of the run, others in
    its subfolders process_1 and so on. Checkpoints and tokenizer are shared."""
    own = folder / f"process_{jax.process_index()}" if jax.process_index() else folder
    own.mkdir(parents=True, exist_ok=True)
    return own


ABSENT = "(absent)"
# Fields of newer versions, with the values under which a run goes on as it began without them.
ADDED = {
    "data.empty_share": 0.25,
    "data.lengths": [],
    "data.session_questions": 0,
    "judge.one_line": False,
    "lora.path": "",
    "reader.one_line": False,
    "reward.chunk_weight": 0.0,
    "reward.evidence_share": 0.0,
    "reward.likelihood": 0.0,
    "reward.silence": False,
    "reward.transition_weight": 0.0,
    "rl.curriculum": False,
    "rl.draft_tokens": 0,
    "rl.lengths": [],
    "rl.overlap": False,
    "rl.rerolls": 0,
    "warm_start.first_weight": 1.0,
    "warm_start.teacher": "poor",
    "warm_start.warmup_steps": 20,
}


def differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) of every value that differs between two JSON objects."""
    if isinstance(before, dict) and isinstance(now, dict):
        differing = []
        for key in before.keys() | now.keys():
            inner = f"{name}.{key}" if name else key
            differing += differences(before.get(key, ABSENT), now.get(key, ABSENT), inner)
        return differing
    return [] if before == now else [(name, before, now)]


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def log_start(folder: Path, command: Sequence[str]) -> None:
    """Adds a line to starts.jsonl: time, command, devices and versions of this process."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    line = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }
    with (folder / "starts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


class MetricsLog:
    """A file of one JSON object per step. Steps from `step` on are dropped on opening: they are
    newer than the checkpoint and will be run again. `events`: write TensorBoard events too."""

    def __init__(self, path: Path, step: int, events: bool = False):
        self.path = path
        earlier = [line for line in read_metrics(path) if line["step"] < step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in earlier))
        self.events = EventLog(path, earlier) if events else None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        line = {"step": step} | {k: metrics[k] for k in sorted(metrics)}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.events:
            self.events.write(step, metrics)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a truncated last line of a killed process is ignored."""
    if not path.exists():
        return []
    lines = []
    for text in filter(None, path.read_text().split("\n")):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
