"""The report as one HTML file: it opens offline, asks nobody for anything, and runs no code but its own.

What is drawn comes from :mod:`trainmedic.reports.picture` and lies in the file as data; the scripts beside it put it on
the page as text, never as markup. A policy in the file names the scripts and styles that may run, by their hashes.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from trainmedic.reports.picture import document
from trainmedic.reports.report import Report, plain
from trainmedic.reports.wording import printable

STYLES = ("uPlot.css", "medic.css")
SCRIPTS = ("uPlot.js", "base.js", "curves.js", "layers.js", "report.js")
START = "Medic.start(document.getElementById('data').textContent);"

NO_SCRIPT_RUNS = 20
"""Runs that are also in the page as plain text, for those who look at it without scripts."""


def render(*reports: Report) -> str:
    """A page of one run or of several, which are then chosen from a list."""
    if not reports:
        raise ValueError("a page needs at least one report")
    title = reports[0].path if len(reports) == 1 else f"{len(reports)} runs"
    text = "\n".join(report.to_text() for report in reports[:NO_SCRIPT_RUNS])
    return page(title or "this run", document(reports), without_script=text)


def page(
    title: str,
    data: Mapping[str, Any],
    *,
    scripts: Sequence[str] = SCRIPTS,
    start: str = START,
    without_script: str = "",
) -> str:
    """``data`` (a JSON value) drawn by ``scripts`` (names of assets) and ``start``, as one file.

    ``without_script`` is plain text for readers without scripts. Any text is safe in any place.
    """
    style = "\n".join(map(asset, STYLES))
    script = "\n".join([*map(asset, scripts), start])
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:"
    policy += "; base-uri 'none'; form-action 'none'"
    # Within a script element a browser looks for its end before it looks at quotes: no "<" of the data may be there.
    content = json.dumps(plain(data), allow_nan=False).replace("<", "\\u003c")
    return "".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<link rel="icon" href="data:,">\n',
            '<meta name="referrer" content="no-referrer">\n<meta name="generator" content="trainmedic">\n',
            f"<title>{html.escape(printable(title))} - trainmedic</title>\n<style>{style}</style>\n</head>\n<body>\n",
            '<div id="medic"></div>\n',
            f"<noscript><main><h1>trainmedic</h1><pre>{html.escape(without_script)}</pre></main></noscript>\n",
            f'<script type="application/json" id="data">{content}</script>\n<script>{script}</script>\n',
            "</body>\n</html>\n",
        )
    )


def asset(name: str) -> str:
    """The text of one of the files in ``assets``."""
    return files("trainmedic.reports").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
