"""`~` in paths that a person gives: expanded once, and everywhere."""

from pathlib import Path

import pytest

from configs import tiny
from experiments.lib.results import Results
from experiments.lib.workdir import claim_workdir
from memalpha.data import built_sets, squad
from memalpha.data.__main__ import main
from memalpha.data.instance import Instance, Question
from memalpha.lm.cache import DiskCache
from memalpha.paths import user_path
from memalpha.prompts import BUILT_IN, load_template

ONE = Instance("squad", "one", ("Rex is a dog.",), (Question("What is Rex?", ("a dog",)),))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder, while the working directory is another one, which has to stay empty."""
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(work)
    yield tmp_path / "home"
    assert list(work.iterdir()) == []


def test_only_a_leading_tilde_stands_for_a_home_folder(home):
    assert user_path("~/a") == home / "a" and user_path("~") == home
    for path in ("a", "a/~/b", "/a", ":memory:", "a~"):
        assert user_path(path) == Path(path)
    with pytest.raises(ValueError, match="path '~no-such-user/a'"):
        user_path("~no-such-user/a")


def test_data_is_written_and_read_in_the_home_folder(home, capsys):
    built_sets.write(
        "~/built/squad/test", [ONE], {"source": "squad", "split": "test", "tokens": "letters"}, len
    )
    assert (home / "built" / "squad" / "test").is_dir()
    (read,) = built_sets.Built("~/built/squad/test")
    assert read.chunks == ONE.chunks and read.questions == ONE.questions
    assert main(["inspect", "~/built/squad/test"]) == 0
    with pytest.raises(ValueError, match=f"{home}/raw/squad"):
        squad.load_folder("~/raw")
    with pytest.raises(SystemExit):
        main(["inspect", "~no-such-user/built"])
    assert "'~no-such-user/built'" in capsys.readouterr().err


def test_workdirs_and_results_are_there_too(home):
    config = tiny.get_config()
    assert claim_workdir("~/run", config) == home / "run"
    with Results("~/out", {"about": 1}) as results:
        assert results.folder == home / "out"


def test_caches_and_templates_are_there_too(home):
    DiskCache("~/deep/cache").put("key", 1)
    assert DiskCache(home / "deep" / "cache").get("key") == 1
    (home / "mine").symlink_to(BUILT_IN / "compact")
    assert load_template("~/mine").system == load_template("compact").system
