"""The package as a wheel, installed in an empty folder: it needs nothing else of the clone."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUPTOOLS = 77  # as [build-system] of pyproject.toml asks
# Imports every module and runs the commands' --help, as `python -m` does; one process for all.
VISIT = """
import contextlib, importlib, io, json, pkgutil, runpy, sys
import memalpha
names = [m.name for m in pkgutil.walk_packages(memalpha.__path__, "memalpha.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
helps = {}
for name in ("memalpha.agent", "memalpha.data"):
    sys.argv, said = [name, "--help"], io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, end.code
    helps[name] = said.getvalue()
from memalpha.lm.roles import render_verdict
from memalpha.data.synthetic import generate
from memalpha.prompts import load_template
from memalpha.scoring import Claim
generate("chats", "test", 0)  # reads lists that are files of the package
from memalpha.adapters import SHIPPED
from memalpha.policy import read_spec
assert all(read_spec(name).lora.rank for name in SHIPPED)
render_verdict(Claim("longmemeval", "a question", "a reply", ("an answer",)))
foreign = sorted({"experiments", "configs"} & {*sys.modules})
print(json.dumps([memalpha.__file__, names, helps, load_template("full").name, foreign]))
"""


def run(*command, **variables):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables,
        cwd=variables.get("PYTHONPATH"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the installed wheel and nothing else."""
    try:
        number = version("setuptools")
    except PackageNotFoundError:
        number = "0"
    if int(number.partition(".")[0]) < SETUPTOOLS or find_spec("pip") is None:
        pytest.skip(f"a wheel is built with pip and setuptools>={SETUPTOOLS}; here: {number}")
    base = tmp_path_factory.mktemp("wheel")
    source, target = base / "source", base / "installed"
    source.mkdir()  # a copy, since a build leaves folders behind
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "memalpha", source / "memalpha", ignore=ignored)
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check", "-q")
    run("-m", "pip", "wheel", source, *offline, "--no-build-isolation", "-w", base)
    (wheel,) = base.glob("*.whl")
    run("-m", "pip", "install", wheel, *offline, "--no-compile", "--target", target)
    return target


def files(root, pattern):
    return {str(path.relative_to(root)) for path in root.glob(pattern)}


def test_an_installed_wheel_works_outside_of_the_clone(installed):
    for pattern in ("memalpha/**/*.py", "memalpha/templates/**/*.t*"):
        assert files(installed, pattern) == files(ROOT, pattern) != set()
    assert not (installed / "experiments").exists() and not (installed / "tests").exists()
    where, names, helps, template, foreign = json.loads(
        run("-c", VISIT, PYTHONPATH=str(installed)).splitlines()[-1]
    )
    assert Path(where) == installed / "memalpha" / "__init__.py"
    modules = files(ROOT / "memalpha", "**/[!_]*.py")
    assert len(names) > len(modules) > 50
    assert "--help" in helps["memalpha.agent"] and "--help" in helps["memalpha.data"]
    assert template == "full" and foreign == []


def test_a_wheel_without_its_templates_says_what_and_where(tmp_path, monkeypatch):
    from memalpha.lm import roles
    from memalpha.prompts import load_template

    monkeypatch.setattr("memalpha.prompts.BUILT_IN", tmp_path)
    monkeypatch.setattr(roles, "BUILT_IN", tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}/full is missing: .*install it again"):
        load_template("full")
    with pytest.raises(ValueError, match=f"{tmp_path}/verdict/answer.txt is missing"):
        roles._text.__wrapped__("answer")
