"""Paths that a person gives: in a command, a config or a call."""

import os
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """The path with `~` expanded, which a shell does not do in `--workdir=~/run`.

    Raises ValueError for `~name` where there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"path {str(path)!r}: {error}") from None


def cache_folder() -> Path:
    """Where files are kept that can be made again: `$XDG_CACHE_HOME/memalpha`, else
    `~/.cache/memalpha`."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "memalpha"
