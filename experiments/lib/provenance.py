"""What a result came from: hashes of the prompts, and versions."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.lib.readers import settings_of
from memalpha import scoring
from memalpha.data.instance import BUILDER
from memalpha.prompts import BUILT_IN, PromptSpec, Template, load_template

PACKAGES = ("memalpha", "jax", "flax", "numpy", "transformers")


def versions() -> dict[str, str]:
    """Name -> version of Python, of the builder of the data, and of the packages installed."""
    known = {"python": platform.python_version(), "data": BUILDER}
    for name in PACKAGES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:  # a clone that is not installed
            known[name] = "(a clone)"
    return known


def prompt_hashes(prompt: PromptSpec, config: Mapping[str, Any]) -> dict[str, str]:
    """Whose prompts -> hash of their texts: of the writer, the baselines and the instructions of
    the sources; of reader and judge where these are language models."""
    sources = {source: scoring.instruction(source) for source in scoring.METRICS}
    hashes = {
        "writer": _template_hash(prompt.template),
        "baselines": _folder_hash(BUILT_IN / "baselines"),
        "instructions": _hash(sources),
    }
    reader, judge = (settings_of(config, role) for role in ("reader", "judge"))
    if reader["engine"] != "offline":
        hashes["reader"] = _template_hash(load_template(reader["template"]))
    if judge["engine"] != "offline":
        hashes["judge"] = _folder_hash(BUILT_IN / "verdict")
    return hashes


def _template_hash(template: Template) -> str:
    texts = asdict(template)
    del texts["name"]  # the same texts in another folder
    return _hash(texts)


def _folder_hash(folder: Path) -> str:
    paths = [path for path in sorted(folder.iterdir()) if path.suffix in (".txt", ".toml")]
    return _hash({path.name: path.read_text("utf-8") for path in paths})


def _hash(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:12]
