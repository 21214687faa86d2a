"""Compiled programs on disk: found by the next process, and never a reason to fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from memalpha import compilation_cache
from memalpha.compilation_cache import LAST_USE, PROGRAM, keep_compiled

ROOT = Path(__file__).parent.parent
# What a process compiled, what it loaded, and the bits of a result.
COUNT = """
import collections, json, jax, jax.numpy as jnp
from memalpha.compilation_cache import keep_compiled
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event.split("/")[-1]]))
keep_compiled()
value = jax.jit(lambda x: jnp.tanh(x @ x.T).sum())(jnp.arange(35.0).reshape(5, 7) / 35)
print(json.dumps([seen["cache_misses"], seen["cache_hits"], float(value).hex()]))
"""


@pytest.fixture
def no_cache_folder():
    """JAX as it is where nobody has set a folder; what was set before comes back."""
    names = ("dir", "max_size")
    names = [f"jax_compilation_cache_{name}" for name in names]
    names.append("jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def count(caches, cwd):
    """([compiled, loaded, result], warnings) of a new process."""
    variables = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    variables |= {"XDG_CACHE_HOME": str(caches), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COUNT]
    done = subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


def test_the_second_process_compiles_nothing_and_a_damaged_entry_is_compiled_again(tmp_path):
    folder = tmp_path / "memalpha" / "jax"
    (compiled, loaded, result), _ = count(tmp_path, tmp_path)
    assert compiled > 1 and loaded == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert count(tmp_path, elsewhere)[0] == [0, compiled, result]

    program, other = sorted(folder.glob(f"*{PROGRAM}"))[:2]
    whole = program.read_bytes()
    program.write_bytes(whole[:50])
    again, warnings = count(tmp_path, tmp_path)
    assert again == [1, compiled - 1, result]
    assert warnings.count("Error reading persistent compilation cache entry") == 1
    # As a process that is killed in writing leaves it: without the time of its last use.
    (folder / program.name.replace(PROGRAM, LAST_USE)).unlink()
    again, warnings = count(tmp_path, tmp_path)
    assert again == [1, compiled - 1, result] and "Error" not in warnings
    assert program.stat().st_size > 50 and count(tmp_path, tmp_path)[0] == [0, compiled, result]


@pytest.mark.parametrize("obstacle", ["memalpha", "memalpha/jax", "memalpha/jax/.lockfile/in"])
def test_a_folder_that_cannot_be_used_is_one_warning(
    tmp_path, monkeypatch, no_cache_folder, obstacle
):
    path = tmp_path / obstacle
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file where a folder or a lock should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    warnings = []
    warn = lambda text, *parts: warnings.append(text % parts)
    monkeypatch.setattr(compilation_cache.logging, "warning", warn)
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
    (warning,) = warnings
    assert "compiled programs are not kept" in warning and str(tmp_path) in warning


def test_a_folder_that_is_set_stays_as_it_is(tmp_path, monkeypatch, no_cache_folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    (tmp_path / f"x{PROGRAM}").write_text("without a time")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert jax.config.jax_compilation_cache_max_size == -1
    assert [path.name for path in tmp_path.iterdir()] == [f"x{PROGRAM}"]


def test_the_folder_is_bounded_and_the_last_used_stay(tmp_path, monkeypatch, no_cache_folder):
    folder = tmp_path / "memalpha" / "jax"
    folder.mkdir(parents=True)
    for name, used in (("new", 300), ("old", 2), ("middle", 256)):
        (folder / f"{name}{PROGRAM}").write_text(name)
        (folder / f"{name}{LAST_USE}").write_bytes(used.to_bytes(8, "little"))
    (folder / f"alone{LAST_USE}").write_bytes(bytes(8))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation_cache, "MAX_ENTRIES", 2)
    keep_compiled()
    kept = {path.name for path in folder.glob("*-*")}
    assert kept == {f"{name}{end}" for name in ("new", "middle") for end in (PROGRAM, LAST_USE)}
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_compilation_cache_max_size == compilation_cache.MAX_BYTES
