"""A report's file: head with policy and style sheet, and that it is written over no other page."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from everlearn.errors import RunError
from everlearn.files import read_text, write_text
from everlearn.report.page.markup import Html, el, stylesheet

_GENERATOR = '<meta name="generator" content="everlearn">'
_HEAD_CHARACTERS = 4096
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def write_page(folder: Path, text: str) -> Path:
    """Writes `report.html`, over an earlier report but over no other page.

    Raises:
        RunError: somebody else's page stands there, or it cannot be written.
    """
    path = folder / "report.html"
    if path.exists() and _GENERATOR not in read_text(path)[:_HEAD_CHARACTERS]:
        raise RunError(f"{path} is no report of everlearn's: move it, then ask for the report again.")
    write_text(path, text)
    return path


def document(name: str, header: Html, main: Html) -> str:
    """A report's whole file: head with policy and style sheet, the two parts, and the foot."""
    return "<!doctype html>\n" + el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", http_equiv="Content-Security-Policy", content=POLICY),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("meta", name="generator", content="everlearn"),
            el("title", f"{name} · everlearn report"),
            stylesheet(style_sheet()),
        ),
        el(
            "body",
            header,
            main,
            el("footer", el("p", "Made by everlearn from the files of the run folder alone; one file, no network.")),
        ),
        lang="en",
    )


def style_sheet() -> str:
    """The rules that pages and the figures of a file have in common."""
    return resources.files("everlearn.report.page").joinpath("style.css").read_text(encoding="utf-8")
