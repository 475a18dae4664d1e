"""The tab Medic takes what is written in files for what it is: text of somebody."""

import json
import zlib

import pytest

from trainmedic.reports.page import asset
from trainmedic.reports.picture import document
from trainmedic.reports.plugin import SHOWN, document_from
from trainmedic.reports.report import Report


def test_what_was_packed_is_unpacked(report: Report) -> None:
    content = json.dumps(document([report]))
    assert document_from(zlib.compress(content.encode()), "run")["runs"][0]["path"] == "runs/fc1"


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"nothing",
        "text",
        zlib.compress(b"[]"),
        zlib.compress(b"{"),
        zlib.compress(b'{"runs": 1}'),
        b"\x78\x9c\xff",
    ],
)
def test_what_is_no_run_is_one_clear_error(packed: object) -> None:
    with pytest.raises(ValueError, match=r"what is written of run 'a\\x1bb' cannot be read"):
        document_from(packed, "a\x1bb")


def test_a_bomb_is_not_unpacked() -> None:
    with pytest.raises(ValueError, match="larger than"):
        document_from(zlib.compress(b" " * 80_000_000), "run")


def test_the_tab_loads_what_the_page_holds() -> None:
    (line,) = (line for line in asset("plugin.js").splitlines() if line.startswith("const ASSETS"))
    assert json.loads(line.partition("= ")[2].rstrip(";")) == [name for name in SHOWN if name != "plugin.js"]
