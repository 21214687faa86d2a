"""The report of a run: made from whatever a workdir holds, and readable anywhere."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from experiments import report
from experiments.lib.charts import Chart, chart_svg, run_charts
from experiments.lib.workdir import log_start
from experiments.report import write_report

HOSTILE = "<script>document.title='owned'</script>&\"'"


def rows(r1, **more):
    return {"synthetic_facts": {"r1": r1}, "mean": {"r1": r1, "memory_tokens": 12.6} | more}


def fill(folder, steps=30, results=True, title="a title"):
    """A workdir as a run leaves it, or, without results, as it looks on the way."""
    config = {"title": title, "seed": 3, "rl": {"steps": 30}, "data": {"dir": HOSTILE}}
    (folder / "config.json").write_text(json.dumps(config))
    line = dict.fromkeys(("r1", "r2", "r3", "r4", "entropy", "calls", "groups", "unfinished"), 0.5)
    line |= {"zero_variance": 0.0, "logp_gap_mean": 1e-6, "nonfinite": 0.0, "failed": 0.0}
    lines = [{"step": n} | line for n in range(steps)]
    if lines:
        lines[0] |= {"validation_r1": 0.1, "validation_r1_synthetic_facts": 0.25}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "timing.jsonl").write_text(json.dumps({"step": 0, "step_seconds": 2.0}) + "\n")
    log_start(folder, ["run_experiment.py", f"--workdir={HOSTILE}"])
    if results:
        found = {
            "no memory": rows(0.0),
            "after RL": rows(0.625, r2=0.5, exact=0.75),
            HOSTILE: rows(0.125),
        }
        summary = {"results": found, "parameters": 1234567, "seconds": 61.25, "host_share": 0.25}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "memory.txt").write_text(f"memory of {HOSTILE}")
        (folder / "timeline.html").write_text("")
    return folder


class Cells(HTMLParser):
    """The rows of the tables, and every tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("td", "th"):
            self.rows[-1][-1] += data


def test_the_results_are_a_table_with_the_best_first(tmp_path):
    text = write_report(fill(tmp_path)).read_text()
    found = Cells(text).rows
    heads = ["system", "r1", "facts", "r2", "r3", "r4", "exact", "memory tokens"]
    heads.append("reader tokens")
    assert found == [
        heads,
        ["after RL", "0.625", "0.625", "0.500", "", "", "0.750", "13", ""],
        [HOSTILE, "0.125", "0.125", "", "", "", "", "13", ""],
        ["no memory", "0.000", "0.000", "", "", "", "", "13", ""],
    ]
    assert "r2: share of the calls that were executed" in text
    assert "Finished: 30 of 30 steps" in text and "1,234,567" in text and "Look at" not in text


def test_the_published_figures_stand_below_ours_where_there_are_some(tmp_path):
    folder = fill(tmp_path)
    row = {"squad": {"r1": 0.5}, "nlu": {"r1": 0.25}, "mean": {"r1": 0.375}}
    names = ("after RL", "RAG-Top2", "untrained (warm start)", "no memory")
    (folder / "summary.json").write_text(json.dumps({"results": dict.fromkeys(names, row)}))
    text = write_report(folder).read_text()
    shown = [cells[:4] for cells in Cells(text).rows[1:]]
    table_1 = {"after RL": ["0.786", "0.658"], "RAG-Top2": ["0.762", "0.508"]}  # of the paper
    table_3 = {"untrained (warm start)": ["0.338", "0.381"]}
    wanted = []
    for name in names:
        wanted.append([name, "0.375", "0.500", "0.250"])
        if figures := (table_1 | table_3).get(name):
            wanted.append(["the same, published", "", *figures])
    assert shown == wanted
    assert "arXiv:2509.25911v1" in text
    assert "published" not in write_report(fill(tmp_path)).read_text()  # of invented streams


def test_it_needs_nothing_else_and_escapes_everything(tmp_path):
    text = write_report(fill(tmp_path, title=HOSTILE)).read_text()
    tags = Cells(text).tags
    assert not [tag for tag, _ in tags if tag in ("script", "img", "iframe", "object")]
    links = [a["href"] for tag, a in tags if tag == "a"]
    assert "metrics.jsonl" in links and "curves.png" not in links
    assert all(re.fullmatch(r"[a-z_]+\.\w+", link) for link in links)
    policy = next(a["content"] for _, a in tags if "http-equiv" in a)
    assert "script-src" not in policy and "default-src 'none'" in policy
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:xlink:href="|url\()#([^")]+)', text)
    assert referred and set(referred) <= set(ids)


@pytest.mark.parametrize(
    "steps, state", [(0, "Warm start, or not begun"), (1, "Not finished: 1 of 30")]
)
def test_a_run_on_its_way_has_a_report_too(tmp_path, steps, state):
    text = write_report(fill(tmp_path, steps, results=False)).read_text()
    assert state in text and "Results" not in text and "Example episodes" not in text


def test_a_config_alone_is_enough_and_less_is_not(tmp_path):
    with pytest.raises(ValueError, match="no workdir of a run"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "What ran" in write_report(tmp_path).read_text()
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match="summary.json is no JSON"):
        write_report(tmp_path)


def test_what_went_wrong_is_said_first(tmp_path):
    fill(tmp_path)
    line = {"step": 30, "nonfinite": 1.0, "failed": 2.0, "unfinished": 0.75, "r1": 0.5}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    text = write_report(tmp_path).read_text()
    said = text[text.index("Look at") : text.index("<h2>")]
    assert "1 steps with a loss" in said and "1 steps with episodes" in said
    assert "last step: more than half of the responses" in said and "not a number" not in said


def test_charts_take_the_colour_of_the_page_and_their_own_ids():
    lines = [{"step": n, "r1": n / 9} for n in range(10)]
    made = chart_svg(Chart("a <title>", {"r1": "one & only"}), lines)
    assert made == chart_svg(Chart("a <title>", {"r1": "one & only"}), lines)  # no date in it
    assert "currentColor" in made and "#010203" not in made and "<metadata" not in made
    assert "one &amp; only" in made and 'aria-label="a &lt;title&gt;"' in made
    assert not re.search(r'<svg[^>]* (width|height)="', made) and "viewBox" in made
    assert chart_svg(Chart("nothing", {"r9": "absent"}), lines) == ""


def test_every_source_of_a_validation_is_drawn():
    lines = [{"step": 0, "validation_r1_synthetic_facts": 0.5}, {"step": 1, "r1": 0.5}]
    chart = next(c for c in run_charts(lines) if c.title.startswith("r1 of each"))
    assert chart.dots == {"validation_r1_synthetic_facts": "facts"}
    assert "facts" in chart_svg(chart, lines)


@pytest.mark.parametrize("width, scheme", [(390, "dark"), (1300, "light")])
def test_it_fits_a_phone_and_a_screen_without_errors(tab, tmp_path, width, scheme):
    path = write_report(fill(tmp_path, title=HOSTILE))
    tab.set_viewport_size({"width": width, "height": 800})
    tab.emulate_media(color_scheme=scheme)
    tab.goto(path.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.title() == HOSTILE and tab.problems == []
    ink, paper = tab.evaluate(
        "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])"
    )
    light = {
        name: sum(map(int, re.findall(r"\d+", c))) for name, c in (("ink", ink), ("paper", paper))
    }
    assert (light["ink"] > light["paper"]) == (scheme == "dark")
    assert tab.locator("figure svg").first.bounding_box()["width"] > 250


def test_in_print_it_is_dark_on_light_and_nothing_is_cut_off(tab, tmp_path):
    folder = fill(tmp_path)
    of_source = {f"synthetic_{n}": {"r1": 0.5} for n in ("facts", "events", "labels", "story", "b")}
    mean = dict.fromkeys(("r1", "r2", "r3", "r4", "memory_tokens", "reader_tokens"), 0.5)
    summary = {"results": {"untrained (warm start)": of_source | {"mean": mean}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    path = write_report(folder)
    tab.set_viewport_size({"width": 690, "height": 1000})  # A4 between its margins
    tab.emulate_media(media="print", color_scheme="dark")
    tab.goto(path.as_uri())
    table = tab.locator("table").first.bounding_box()
    assert table["x"] + table["width"] <= 690
    colours = "getComputedStyle(document.querySelector('a')).color"
    assert tab.evaluate(colours) == "rgb(11, 98, 196)"
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.locator("details").count() == 2 and not tab.locator("summary").first.is_visible()
    assert tab.problems == []


def test_the_command_says_what_is_wrong_with_a_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "WORKDIR", SimpleNamespace(value=str(tmp_path)), raising=False)
    with pytest.raises(SystemExit, match="no workdir of a run"):
        report.main([])
