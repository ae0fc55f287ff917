"""The one writer of pages: sections of texts, tables and pictures, as HTML in one file.

A part of a section is a Text, a Table, a Picture, or finished HTML (Markup): the text of the
trunk's report is a template. `as_markdown` gives the same parts as a text file.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from medood.data.files import write_text
from medood.data.workspace import SAMPLE_NAME, data_name
from medood.evaluation.figures import embed
from medood.evaluation.model_card import TEMPLATES
from medood.markdown import markdown

TEMPLATES.filters["embed"] = embed


class Text(NamedTuple):
    """A paragraph; kind: `verdict`, `note`, or none."""

    words: str
    kind: str = ""


class Table(NamedTuple):
    """A table, whose first column names the rows; label: for screen readers."""

    label: str
    header: Iterable[str]
    rows: list[list]


class Picture(NamedTuple):
    """A picture in a file."""

    path: Path
    caption: str


Part = Text | Table | Picture | Markup
Sections = dict[str, list[Part]]  # by heading; "" is shown without


def write_page(workspace: Path, out: Path, title: str, sections: Sections, text: str) -> None:
    """Write a page on the data of a workspace to `out`; print and write the tables as text.

    title: comes before the name of the data.
    """
    print(text)
    write_text(out / "table.md", text)
    data = data_name(workspace)
    page = TEMPLATES.get_template("page.html").render(
        title=f"{title} on {data}",
        sample="tissue" if data == SAMPLE_NAME else "",
        sections=sections,
    )
    write_text(out / "index.html", page)
    print(f"{out / 'index.html'}: open it in a browser; scores.json and table.md are next to it")


def as_markdown(parts: list[Part]) -> str:
    """Return the texts and tables among some parts as Markdown."""
    texts = [
        f"{part.words}\n" if isinstance(part, Text) else markdown([*part.header], part.rows)
        for part in parts
        if isinstance(part, Text | Table)
    ]
    return "\n".join(texts)
