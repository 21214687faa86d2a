"""Tables of text as Markdown, LaTeX and HTML; each format escapes names and notes."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from experiments.lib import page
from experiments.lib.intervals import Estimate

_LATEX = {
    **{c: f"\\{c}" for c in "{}$&#_%"},
    **{"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "[": "{[}", "*": "{*}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "\n": " "},
}  # fmt: skip
STYLE = "caption { text-align: left; font-weight: 600; padding: .4em 0; }"


@dataclass(frozen=True)
class Table:
    """Formatted cells; the first column has names, the others have numbers."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.heads):
                raise ValueError(
                    f"{self.title}: a row of {len(row)} cells under {len(self.heads)} heads"
                )


def interval(value: Estimate | None) -> str:
    """A mean, with its interval if there is one: 0.594 [0.512, 0.671]; empty without a mean."""
    if value is None:
        return ""
    bounds = "" if value.low is None else f" [{value.low:.3f}, {value.high:.3f}]"
    return f"{value.mean:.3f}{bounds}"


def markdown(tables: Sequence[Table]) -> str:
    """The tables one after the other, each below its title."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    lines = [f"### {_plain(table.title)}", "", _pipes(table.heads)]
    lines.append("|---|" + "---:|" * (len(table.heads) - 1))
    lines += map(_pipes, table.rows)
    lines += ["", *(f"- {_plain(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "\\`")


def latex(tables: Sequence[Table]) -> str:
    """A table environment per table; needs no package. Small type: the widest fits landscape A4."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    rows = [_ampersands(row) for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_tex(table.title)}}}",
            r"\scriptsize\setlength{\tabcolsep}{2pt}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
            r"\hline",
            _ampersands(table.heads),
            r"\hline",
            *rows,
            r"\hline",
            r"\end{tabular}",
            *(rf"\par {_tex(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def html(title: str, tables: Sequence[Table], pictures: Sequence[str] = ()) -> str:
    """A complete document without external files. pictures: SVG text, shown before the tables."""
    figures = "".join(f"<figure>{picture}</figure>" for picture in pictures if picture)
    body = f'<div class="charts">{figures}</div>\n' if figures else ""
    body += "\n".join(_html(table) for table in tables)
    style = page.read("report.css") + STYLE
    return page.page(title, f"<h1>{escape(title)}</h1>\n{body}", style)


def _html(table: Table) -> str:
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="wide"><table><caption>{escape(table.title)}</caption>\n<thead><tr>{heads}'
        f"</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
        + (f'<ul class="soft">{notes}</ul>' if notes else "")
    )
