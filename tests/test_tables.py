"""Tables: figures worked by hand, empty cells, escaping, and what may stand in one table."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.stats import bootstrap

from experiments.lib.charts import frontier, frontier_svg
from experiments.lib.data_tables import data_tables
from experiments.lib.intervals import estimate
from experiments.lib.pool import (
    Weights,
    mean_points,
    read_pool,
    score_first_boxes,
    shared_sources,
)
from experiments.lib.render import Table, html, latex, markdown
from experiments.lib.results import ResultsError, read_results
from experiments.tables import PUBLISHED, paper_tables, pictures, small_tables, thousands
from memalpha.data import built_sets
from memalpha.data.instance import Instance, Question

PDFLATEX = shutil.which("pdflatex")  # Debian: texlive-latex-base
HOSTILE = "<script>alert(1)</script>|&$_{%#\\^~[*`"


def write(folder, rows, split="validation", beta=0.05, gamma=0.1, about=None, **reading):
    """A results folder of rows (system, source, instance, r1, memory tokens)."""
    about = {
        "split": split,
        "reward": {"beta": beta, "gamma": gamma},
        "reading": {
            "reader": "rules",
            "judge": "rule",
            "retriever": "bm25",
            "top_k": 20,
            "tokenizer": "t",
        }
        | reading,
        "systems": {},
        "sources": {},
    } | (about or {})
    folder.mkdir()
    (folder / "about.json").write_text(json.dumps(about))
    lines = [
        {
            "system": system, "source": source, "instance": name, "digest": "d", "r1": r1,
            "memory_tokens": held, "reader_tokens": 100.0, "chunk_tokens": 20_000, "chunks": 10,
            "questions": 5, "failed": 5 if r1 is None else 0,
        }
        for system, source, name, r1, held in rows
    ]  # fmt: skip
    (folder / "instances.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return str(folder)


def of(tables, title):
    (table,) = [table for table in tables if table.title.startswith(title)]
    return table


def row(table, label, kind="Perf."):
    """Cells of a line by head; Mem. stands below Perf."""
    place = [cells[0] for cells in table.rows].index(label) + (kind == "Mem.")
    assert table.rows[place][1] == kind
    return dict(zip(table.heads, table.rows[place], strict=True))


def every(system, r1, held=1000):
    """One instance of every column of table 1."""
    return [(system, column, "i", r1, held) for column in PUBLISHED["1"]["columns"]]


def test_the_mean_of_columns_and_its_interval_by_hand():
    # Two instances of 0 and 1: a resample has mean 0, 1/2 or 1, with chances 1/4, 1/2, 1/4.
    assert estimate([[0.0, 1.0]]).__dict__ == {"mean": 0.5, "low": 0.0, "high": 1.0}
    # Columns count alike, however many instances they have.
    assert estimate([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0]]).mean == 0.5
    same = estimate([[0.25, 0.25], [0.75, 0.75]])
    assert (same.mean, same.low, same.high) == (0.5, 0.5, 0.5)
    assert estimate([[0.0, 1.0], [1.0]]).low is None
    with pytest.raises(ValueError, match="NaN"):
        estimate([[0.0, np.nan]])
    with pytest.raises(ValueError, match="every column needs a value"):
        estimate([[1.0], []])


def test_the_first_of_several_boxes_counts_where_that_is_asked_for(tmp_path):
    """Only label and choice questions are scored again, and only where an answer had a score."""
    names = ("system", "source", "instance")
    rows = [
        *(("trained", "nlu", "i", 0.5, 9), ("trained", "nlu", "j", 1.0, 9)),
        *(("trained", "squad", "i", 0.25, 9), ("trained", "detectiveqa", "i", None, 9)),
    ]
    folder = tmp_path / "a"
    write(folder, rows)
    asked = [
        *(("nlu", "i", "\\boxed{3}, no: \\boxed{4}", "3", 0), ("nlu", "i", "\\boxed{4}", "4", 1)),
        *(("nlu", "i", None, "5", None), ("nlu", "j", "\\boxed{1} \\boxed{2}", "2", 1)),
        *(("squad", "i", "Oslo", "Lund", 0), ("detectiveqa", "i", None, "B", None)),
    ]
    lines = [
        dict(zip(names, ("trained", source, instance), strict=True))
        | {"prediction": reply, "gold": [gold], "score": score}
        for source, instance, reply, gold, score in asked
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    plain, first = ([r["r1"] for r in scored] for scored in of_boxes(folder))
    assert plain == [0.5, 1.0, 0.25, None] and first == [1.0, 0.0, 0.25, None]
    pools = [read_pool([str(folder)], first_box=box).rows for box in (False, True)]
    of_nlu = [next(c for key, c in rows.items() if key.column == "nlu") for rows in pools]
    assert [sorted(r["r1"] for (r,) in cell.values()) for cell in of_nlu] == [[0.5, 1], [0, 1]]


def of_boxes(folder):
    rows = read_results(folder)[1]
    return rows, score_first_boxes(folder, rows)


def test_the_interval_agrees_with_scipy_and_repeats():
    values = np.random.default_rng(3).beta(2, 3, 60)
    ours = estimate([values])
    theirs = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1))
    interval = theirs.confidence_interval
    assert [ours.low, ours.high] == pytest.approx([interval.low, interval.high], abs=0.01)
    assert estimate([values]) == ours != estimate([values], seed=1)


@pytest.mark.parametrize(
    "tokens, said", [(0, "0"), (30.4, "0.0304"), (7900, "7.9"), (129_400, "129"), (2e6, "2000")]
)
def test_memory_in_thousands_of_tokens(tokens, said):
    assert thousands(tokens) == said


def test_a_measured_cell_stands_beside_the_published_one(tmp_path):
    rows = [("trained", "squad", str(n), r1, 8000 + n) for n, r1 in enumerate((0.0, 1.0))]
    rows += [("store_everything", "squad", "0", 0.5, 20_000)]
    table = of(paper_tables(read_pool([write(tmp_path / "a", rows)])), "Table 1")
    ours, paper = (
        row(table, "Mem-α, trained writer (ours)"),
        row(table, "Mem-α, trained writer (paper)"),
    )
    assert ours["squad"] == "0.500 [0.000, 1.000]" and paper["squad"] == "0.786"
    assert row(table, "Mem-α, trained writer (ours)", "Mem.")["squad"] == "8"
    assert row(table, "Mem-α, trained writer (paper)", "Mem.")["squad"] == "10.1"
    assert ours["reader tokens"] == "100"
    # What nobody measured is empty and no copy of the paper's.
    assert {ours[c] for c in PUBLISHED["1"]["columns"] if c != "squad"} == {""}
    assert ours["Avg."] == "" and paper["Avg."] == "0.642"
    assert ours["Avg. of 1"] == "0.500 [0.000, 1.000]" and paper["Avg. of 1"] == "0.786"
    assert set(row(table, "MEM1 (ours)").values()) == {"MEM1 (ours)", "Perf.", ""}
    # A system that the paper does not have; one instance, so no interval.
    assert row(table, "store everything (ours)")["squad"] == "0.500"
    assert "store everything (paper)" not in [cells[0] for cells in table.rows]
    (sizes,) = [note for note in table.notes if note.startswith("Instances")]
    assert sizes == "Instances: squad 1 to 2 of 20k tokens (paper: 30 of 10.6k)."


def test_the_average_is_the_mean_over_all_columns(tmp_path):
    rows = every("trained", 0.5, 2000)
    rows[0] = ("trained", "squad", "i", 1.0, 9000)
    table = of(paper_tables(read_pool([write(tmp_path / "a", rows)])), "Table 1")
    ours = row(table, "Mem-α, trained writer (ours)")
    assert ours["Avg."] == f"{(1.0 + 6 * 0.5) / 7:.3f}"
    assert row(table, "Mem-α, trained writer (ours)", "Mem.")["Avg."] == "3"  # (9 + 6 x 2) / 7
    assert "Avg. of 7" not in table.heads
    assert any("Mem-α, trained writer: 0.642 (mean 0.619)" in note for note in table.notes)


def test_validation_and_test_go_to_their_own_tables(tmp_path):
    folders = [
        write(tmp_path / "v", [("trained", "nlu", "1", 0.25, 9)]),
        write(tmp_path / "t", [("trained", "icl_nlu_8296shot_balance", "1", 0.75, 9)], "test"),
    ]
    tables = paper_tables(read_pool(folders))
    label = "Mem-α, trained writer (ours)"
    assert row(of(tables, "Table 1"), label)["nlu"] == "0.250"
    assert row(of(tables, "Table 2"), label)["nlu"] == "0.750"
    assert row(of(tables, "Table 3"), label)["nlu"] == "0.250"
    assert row(of(tables, "Table 4"), "β = 0.05, γ = 0.1 (ours)")["nlu"] == "0.250"
    assert row(of(tables, "Table 9"), "β = 0.05, γ = 0.1 (ours)")["nlu"] == "0.750"


def test_weights_are_rows_of_the_ablation_and_not_of_the_other_tables(tmp_path):
    folders = [
        write(tmp_path / "a", [("trained", "squad", "1", 0.5, 9)]),
        write(tmp_path / "b", [("trained", "squad", "1", 0.25, 9)], beta=0.4),
        write(tmp_path / "c", [("trained", "squad", "1", 0.125, 9)], beta=0.7),
    ]
    tables = paper_tables(read_pool(folders))
    ablation = of(tables, "Table 4")
    assert row(ablation, "β = 0.05, γ = 0.1 (ours)")["squad"] == "0.500"
    assert row(ablation, "β = 0.4, γ = 0.1 (ours)")["squad"] == "0.250"
    assert row(ablation, "β = 0.7, γ = 0.1 (ours)")["squad"] == "0.125"
    assert row(ablation, "β = 0, γ = 0.1 (ours)")["squad"] == ""
    assert row(of(tables, "Table 1"), "Mem-α, trained writer (ours)")["squad"] == "0.500"
    assert read_pool(folders[1:]).main == Weights(0.4, 0.1)


def test_runs_of_several_seeds_are_averaged_instance_by_instance(tmp_path):
    folders = [
        write(
            tmp_path / "a", [("trained", "squad", "1", 0.0, 9), ("trained", "squad", "2", 1.0, 9)]
        ),
        write(tmp_path / "b", [("trained", "squad", "1", 0.5, 9)], tokenizer="another"),
    ]
    cell = row(of(paper_tables(read_pool(folders)), "Table 1"), "Mem-α, trained writer (ours)")
    assert cell["squad"] == "0.625 [0.250, 1.000]"  # of 1/4 and 1


def test_an_unanswered_instance_is_left_out_and_said(tmp_path):
    rows = [("trained", "squad", "1", 1.0, 4000), ("trained", "squad", "2", None, 8000)]
    table = of(paper_tables(read_pool([write(tmp_path / "a", rows)])), "Table 1")
    assert row(table, "Mem-α, trained writer (ours)")["squad"] == "1.000"
    assert row(table, "Mem-α, trained writer (ours)", "Mem.")["squad"] == "6"
    assert any("trained writer on squad 5 of 10" in note for note in table.notes)
    alone = of(paper_tables(read_pool([write(tmp_path / "b", rows[1:])])), "Table 1")
    assert row(alone, "Mem-α, trained writer (ours)")["squad"] == ""


def test_a_memory_that_was_never_finished_has_no_size(tmp_path):
    rows = [("mem0", "squad", "1", 0.5, 4000), ("mem0", "squad", "2", None, None)]
    table = of(paper_tables(read_pool([write(tmp_path / "a", rows)])), "Table 1")
    assert row(table, "Mem0 (ours)", "Mem.")["squad"] == "4"
    assert any(note.startswith("Instances: squad 2 of") for note in table.notes)
    alone = of(paper_tables(read_pool([write(tmp_path / "b", rows[1:])])), "Table 1")
    assert row(alone, "Mem0 (ours)", "Mem.")["squad"] == ""


def test_synthetic_and_small_sources_have_tables_of_their_own(tmp_path):
    rows = [(s, "synthetic_facts", "1", 0.5, 30) for s in ("untrained", "trained", "other")]
    first = write(tmp_path / "a", rows, "test")
    small = write(tmp_path / "b", [("trained", "squad", "1", 0.25, 50)], "test")
    pool = read_pool([first], [small])
    tables = small_tables(pool)
    whole = of(tables, "Small version of tables 1 and 2")
    assert whole.heads[2:5] == ("facts", "squad", "Avg.")
    assert row(whole, "Mem-α, trained writer")["facts"] == "0.500"
    assert row(whole, "Mem-α, trained writer")["Avg."] == "0.375"
    assert row(whole, "Mem-α, trained writer", "Mem.")["facts"] == "0.03"
    assert row(whole, "other")["squad"] == ""
    assert len(of(tables, "Small version of table 3").rows) == 4
    sizes = of(tables, "Small version of tables 7 and 8")
    assert sizes.rows == (("facts", "1", "10", "2000", "5"), ("squad", "1", "10", "2000", "5"))
    assert not [t for t in tables if "4 and 9" in t.title]  # one pair of weights is no comparison
    assert row(of(paper_tables(pool), "Table 2"), "Mem-α, trained writer (ours)")["nlu"] == ""
    more = write(tmp_path / "c", rows, "test", beta=0.4)
    ablation = of(small_tables(read_pool([first, more])), "Small version of tables 4 and 9")
    assert [cells[0] for cells in ablation.rows[::2]] == ["β = 0.05, γ = 0.1", "β = 0.4, γ = 0.1"]


def test_one_table_one_reader(tmp_path):
    folders = [
        write(tmp_path / "a", [("trained", "squad", "1", 0.0, 9)]),
        write(tmp_path / "b", [("trained", "squad", "1", 0.0, 9)], reader="a model"),
    ]
    with pytest.raises(ResultsError, match="reader: 'rules' and 'a model'"):
        read_pool(folders)
    with pytest.raises(ResultsError, match="give at least one"):
        read_pool([])
    two = [("trained", "nlu", "1", 0.0, 9), ("trained", "icl_nlu_8296shot", "1", 0.0, 9)]
    with pytest.raises(ResultsError, match="'nlu' of .*c and of .*c are two things.*icl_nlu"):
        read_pool([write(tmp_path / "c", two)])
    with pytest.raises(ResultsError, match="'nlu' of .*d and of .*e are two things.*icl_nlu"):
        read_pool([write(tmp_path / "d", two[:1]), write(tmp_path / "e", two[1:])])


def test_streams_of_different_lengths_have_no_mean(tmp_path):
    def long(name, chunks, system="trained", small="synthetic_facts", **more):
        about = {"sources": {small: {"seed": len(name), "chunks": chunks}}, "systems": {}} | more
        return write(tmp_path / name, [(system, small, name, 0.5, 9)], about=about)

    two, again, twenty = long("a", 2), long("bb", 2), long("c", 20)
    cells = read_pool([two, again]).small  # seeds differ, and the text with them
    assert [len(instances) for instances in cells.values()] == [2]
    for folders in (([two, twenty],), ([two], [twenty])):
        with pytest.raises(
            ResultsError, match="'synthetic_facts' of .*a and of .*c .*chunks: 2 and 20"
        ):
            read_pool(*folders)
    # As a main column and as a small one it has two places.
    real = [long(f"r{n}", n, small="squad") for n in (3, 5)]
    assert len(read_pool(real[:1], real[1:]).rows) == 1


def test_settings_of_a_system_are_one_in_a_table(tmp_path):
    def one(name, system, made, **more):
        rows = [(system, "squad", "1", 0.5, 9)]
        return write(tmp_path / name, rows, about={"systems": {system: made}}, **more)

    budgets = [one(f"b{n}", "rag_matched", {"budget": n}) for n in (60, 1024)]
    with pytest.raises(ResultsError, match="'rag_matched' .*budget: 60 and 1024"):
        read_pool(budgets)
    writer = {"temperature": 0.7, "rows": 8, "trained": {"seed": 0, "eval": {"every": 5}}}
    first = one("w1", "trained", writer)
    other_seed = {"rows": 4, "trained": {"seed": 1, "eval": {"every": 9}}}
    read_pool([first, one("w2", "trained", writer | other_seed)])
    ahead = [{"checkpoint_every": n, "rl": {"overlap": True}} for n in (5, 25)]
    names = [one(f"w{n}", "trained", writer | {"trained": of}) for n, of in enumerate(ahead, 5)]
    with pytest.raises(ResultsError, match="trained.checkpoint_every: 5 and 25"):
        read_pool(names)
    greedy = one("w3", "trained", writer | {"temperature": 0})
    with pytest.raises(ResultsError, match="'trained' .*temperature: 0.7 and 0"):
        read_pool([first, greedy])
    # Weights are rows of their own.
    read_pool([first, one("w4", "trained", writer | {"trained": {"beta": 0.4}}, beta=0.4)])


def test_every_table_renders_with_nothing_measured(tmp_path):
    pool = read_pool([write(tmp_path / "a", [])])
    tables = [*small_tables(pool), *paper_tables(pool), *data_tables()]
    numbers = [re.match(r"Table (\d)", table.title)[1] for table in tables]
    assert sorted(numbers) == ["1", "2", "3", "4", "6", "7", "8", "9"]
    for table in tables:
        ours = [r for r in table.rows if "(ours)" in r[0] or r[0] in ("", "ours")]
        assert ours or any("(ours)" in head for head in table.heads)
    for text in (markdown(tables), latex(tables), html("t", tables)):
        assert "0.642" in text and "4139" in text and "nan" not in text.lower()
    assert latex(tables).count(r"\begin{tabular}") == len(tables)


def test_sizes_of_built_sets_stand_beside_the_published(tmp_path):
    def build(source, split, count):
        asked = (Question("q", ("a",)),) * 3
        some = [Instance(source, f"i{n}", ("one two three", "four"), asked) for n in range(count)]
        about = {"source": source, "split": split, "tokens": "words"}
        built_sets.write(tmp_path / source / split, some, about, lambda text: len(text.split()))

    build("squad", "train", 2)
    build("nlu", "validation", 3)
    six, seven, eight = data_tables(str(tmp_path), str(tmp_path))
    assert six.rows[1] == ("ours", "2", *[""] * 8)
    lines = {cells[0]: cells[1:] for cells in seven.rows}
    assert lines["squad, train"] == ("100", "2", "9.9", "2", "1084.1", "2", "94.8", "3")
    assert lines["nlu, validation"][:2] == ("20", "3")
    assert lines["squad, validation"][1::2] == ("", "", "", "")
    assert seven.notes == ("Our tokens counted by: words.",)
    assert {cell for cells in eight.rows for cell in cells[2::2]} == {""}


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("th", "td"):
            self.cells[-1] += data


def test_names_are_data_in_every_form():
    table = Table(HOSTILE, ("a", HOSTILE), ((HOSTILE, "1"), ("[b", "two\nlines")), (HOSTILE,))
    page = Tags(html(HOSTILE, [table]))
    assert not {"script", "img", "link"} & {
        tag for tag, a in page.tags if a.get("href") != "data:,"
    }
    assert [cell.strip() for cell in page.cells] == ["a", HOSTILE, HOSTILE, "1", "[b", "two\nlines"]
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert "default-src 'none'" in policy and "script-src" not in policy

    text = markdown([table])
    assert "<script>" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4  # a name with a line break or a bar makes no new row or column
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}

    text = latex([table])
    expected = (
        r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{}\textbar{}"
        r"\&\$\_\{\%\#\textbackslash{}\^{}\~{}{[}{*}`"
    )
    assert f"a & {expected} \\\\\n" in text and f"{expected} & 1 \\\\\n" in text
    assert "{[}b & two lines \\\\\n" in text  # "\\\\[b" would be read as a length


def test_latex_is_well_formed(tmp_path):
    pool = read_pool([write(tmp_path / "a", [("trained", "squad", "1", 0.5, 9)])])
    tables = [*small_tables(pool), *paper_tables(pool), *data_tables()]
    tables.append(Table(HOSTILE, ("a", HOSTILE), (("[b", HOSTILE), ("*", "é")), (HOSTILE,)))
    text = latex(tables)
    bare = re.sub(r"\\[{}\\&$#_%]", "", text.replace("\\\\\n", "\n"))  # what is escaped is text
    depth = [bare[:n].count("{") - bare[:n].count("}") for n in range(len(bare) + 1)]
    assert min(depth) == depth[-1] == 0 and bare.count("$") % 2 == 0
    assert not set(bare) & set("#%_") and "^" not in re.sub(r"\\\^", "", bare)
    for part, table in zip(text.split(r"\begin{table}")[1:], tables, strict=True):
        lines = [line for line in part.splitlines() if line.endswith(r" \\")]
        ends = {len(re.findall(r"(?<!\\)&", line)) for line in lines}
        assert len(lines) == 1 + len(table.rows) and ends == {len(table.heads) - 1}
    if PDFLATEX is None:
        return
    whole = "\\documentclass{article}\n\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(whole)
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert made.returncode == 0, made.stdout[-1500:]


def test_systems_as_points_and_the_line_that_none_beats(tmp_path):
    points = {
        "a": (100.0, 0.5),
        "b": (10.0, 0.2),
        "c": (100.0, 0.4),
        "d": (200.0, 0.5),
        "e": (0, 0),
    }
    assert frontier(points) == ["e", "b", "a"]
    assert frontier_svg("t", {}) == "" and frontier({}) == []
    assert ">a</text>" in frontier_svg("t", points)

    def one(name, tokens, r1, more=()):
        rows = [
            ("trained", "synthetic_facts", "1", r1, 9),
            ("rag_top2", "synthetic_facts", "1", 1, 9),
        ]
        folder = write(tmp_path / name, [*rows, *more], "test")
        path = tmp_path / name / "instances.jsonl"
        path.write_text(path.read_text().replace("20000", str(tokens)))
        return folder

    other = ("trained", "synthetic_events", "1", 0.0, 9)
    short, long = one("a", 100, 0.5), one("b", 4000, 0.25)
    assert mean_points([tmp_path / "a"], "test", "chunk") == {
        "trained": (100.0, 0.5),
        "rag_top2": (100.0, 1.0),
    }
    assert mean_points([tmp_path / "a"], "validation", "chunk") == {}
    pool = read_pool([short])
    first, second = pictures(pool, [long])
    assert "Score against reader tokens, test split" in first and "RAG-Top2" in first
    assert "Score against length, test split" in second
    assert pictures(pool, [])[1] == ""  # one length is no line
    # Only what was measured on all sources has a mean.
    one("c", 100, 0.5, [other])
    assert mean_points([tmp_path / "c"], "test", "reader") == {"trained": (100.0, 0.25)}
    shared = shared_sources([tmp_path / "b", tmp_path / "c"], "test")
    assert shared == {"synthetic_facts"} and shared_sources([tmp_path / "c"], "train") == set()
    assert set(mean_points([tmp_path / "c"], "test", "reader", shared)) == {"trained", "rag_top2"}
    page = html("t", [], [first, ""])
    assert page.count("<figure>") == 1 and "<svg" in page


def test_greek_letters_in_latex():
    text = latex([Table("β", ("α", "γ"), ())])
    assert r"\caption{$\beta$}" in text and r"$\alpha$ & $\gamma$ \\" in text


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="a row of 1 cells under 2 heads"):
        Table("t", ("a", "b"), (("x",),))


def test_the_published_figures_have_a_cell_for_every_column_and_an_average():
    for number in ("1", "2", "3", "4", "9"):
        columns = PUBLISHED[number]["columns"]
        for name, figures in PUBLISHED[number]["systems"].items():
            for kind in ("perf", "mem"):
                assert len(figures[kind]) == len(columns) + 1, (number, name)
    assert PUBLISHED["1"]["systems"]["trained"]["perf"][-1] == 0.642
    assert PUBLISHED["2"]["systems"]["rag_top2"]["mem"][1] == 474
    assert PUBLISHED["9"]["systems"]["beta0.4_gamma0.1"]["perf"][-1] == 0.375
