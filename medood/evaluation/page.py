"""The one writer of pages: sections of texts, tables and pictures, as HTML in one file.

A part of a section is a Text, a Table, a Picture, or HTML that is ready (Markup): the words of the
trunk's report are a template. `as_markdown` gives the same parts as a text file.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from medood.evaluation.figures import embed
from medood.evaluation.model_card import TEMPLATES
from medood.evaluation.tables import markdown

TEMPLATES.filters["embed"] = embed


class Text(NamedTuple):
    """A paragraph; kind: `verdict`, `note`, or none."""

    words: str
    kind: str = ""


class Table(NamedTuple):
    """A table, whose first column names the rows; label: for those who cannot see it."""

    label: str
    header: Iterable[str]
    rows: list[list]


class Picture(NamedTuple):
    """A picture in a file."""

    path: Path
    caption: str


Part = Text | Table | Picture | Markup
Sections = dict[str, list[Part]]  # by heading; "" is shown without


def page(title: str, sections: Sections, sample: str = "") -> str:
    """Return a page. sample: what of it a program has drawn, such as "tissue"."""
    body = Markup("").join(section(heading, parts) for heading, parts in sections.items())
    return TEMPLATES.get_template("page.html").render(title=title, sample=sample, body=body)


def section(heading: str, parts: list[Part]) -> Markup:
    """Return a section as HTML."""
    return Markup(TEMPLATES.get_template("section.html").render(heading=heading, parts=parts))


def as_markdown(parts: list[Part]) -> str:
    """Return the texts and tables among some parts as Markdown."""
    texts = [
        f"{part.words}\n" if isinstance(part, Text) else markdown([*part.header], part.rows)
        for part in parts
        if isinstance(part, Text | Table)
    ]
    return "\n".join(texts)
