"""The Markdown of the project: links that lead somewhere, code that runs."""

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from configs import tiny
from memalpha import scoring
from memalpha.data import SOURCES
from memalpha.data.sizes import Sizes
from memalpha.memory import Outcome

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def texts():
    """name -> Markdown, of every file that is kept, and of every notebook."""
    kept = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    names = kept.stdout.split() or [str(p.relative_to(ROOT)) for p in ROOT.glob("**/*.md")]
    found = {n: (ROOT / n).read_text("utf-8") for n in names if n.endswith(".md")}
    for path in (ROOT / "colab").glob("*.ipynb"):
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
        found[str(path.relative_to(ROOT))] = "\n\n".join(cells)
    return found


def anchors(markdown):
    """The anchors of the headings, as GitHub makes them."""
    made = {}
    for heading in _HEADING.findall(_FENCE.sub("", markdown)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        made[slug] = made.get(slug, -1) + 1
    return {f"{slug}-{n}" if n else slug for slug, last in made.items() for n in range(last + 1)}


def broken(name, markdown):
    """The links of one text that lead nowhere."""
    found = []
    for target in _LINK.findall(_CODE.sub("", _FENCE.sub("", markdown))):
        if re.match(r"[a-z]+:", target):
            continue  # nothing is fetched in tests
        file, _, anchor = unquote(target).partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        if not path.exists():
            found.append(target)
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text("utf-8")):
            found.append(target)
    return found


@pytest.mark.parametrize("name", sorted(texts()))
def test_links_lead_to_files_and_headings(name):
    assert broken(name, texts()[name]) == []


def test_broken_links_are_found():
    text = "[a](docs/none.md) [b](docs/data.md#no-such-part) [c](docs/data.md#where-the-files-go)"
    text += " [d](#nowhere) [e](https://example.org/x) ```[f](x)```\n# Some `Part`: it's *one*\n"
    assert broken("README.md", text) == ["docs/none.md", "docs/data.md#no-such-part", "#nowhere"]
    assert anchors("# A\n## Some `Part`: it's one\n# A\n") == {"a", "some-part-its-one", "a-1"}


def test_the_readme_leads_to_every_page_and_notebook():
    links = set(_LINK.findall((ROOT / "README.md").read_text("utf-8")))
    pages = {f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")}
    assert pages | {f"colab/{p.name}" for p in (ROOT / "colab").glob("*.ipynb")} <= links


def test_the_code_of_extending_runs_and_each_part_is_short(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("memalpha.data.SOURCES", SOURCES)
    for table in (SOURCES, scoring.METRICS):
        monkeypatch.setitem(table, "diary", None)  # taken out again afterwards
    names = {}
    for part in page.split("\n## ")[1:]:
        blocks = re.findall(r"^```python\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
        assert all(len(block.splitlines()) < 60 for block in blocks), part[:20]
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/extending.md", "exec"), names)

    first = names["diary"][0]
    assert len(first.chunks) == len(first.questions) == 3 and "2024-05-" in first.chunks[0]
    with pytest.raises(ValueError, match="longer than 5 tokens"):
        names["load_source"]("diary", "data", "train", Sizes(1, 3, 5, 10), 0, len)
    with pytest.raises(ValueError, match="nowhere/diary holds no"):
        names["load_source"]("diary", "nowhere", "train", Sizes(1, 3, 100, 10), 0, len)

    steps = names["moved"].steps
    assert [s.outcomes for s in steps] == [[Outcome.OK], [Outcome.DUPLICATE], [Outcome.DUPLICATE]]
    assert (
        names["moved"].view.episodic[0].text == "2024/05/06: I moved. With Ida, Zoë."
        and steps[0].r4 == 1
    )
    (refused,) = names["parse"](names["call"].replace("2024/05/06", " "), "qwen3")
    assert refused.error == "give date and what, both as text"

    view = names["card_episode"].view
    assert view.semantic and not view.core and not view.episodic
    assert names["card_episode"].r1 == 1 and names["cards_env"].prompt.recent == 4
    assert [e.r1 for e in names["forgetful"]] == pytest.approx([1 / 3, 1 / 3])

    batch, advantages = names["batch"], names["advantages"]
    assert batch.rows.rewards["r5"].shape == advantages.shape == (8,)
    limit = names["limit"]
    used = batch.tokens.completion_mask.sum(1)
    assert batch.rows.rewards["r5"] == pytest.approx(1 - used / limit)
    assert names["metrics"]["grad_norm"] >= 0 and int(names["state"].step) == 1


def test_every_field_of_a_config_is_told_of():
    page = (ROOT / "docs" / "configs.md").read_text("utf-8")
    told = set(re.findall(r"[a-z_0-9]+", " ".join(_CODE.findall(page))))
    fields = [name.split(".")[-1] for name in flatten(tiny.get_config().to_dict())]
    assert len(fields) > 60 and [name for name in fields if name not in told] == []


def flatten(config):
    for name, value in config.items():
        yield from flatten(value) if isinstance(value, dict) else [name]
