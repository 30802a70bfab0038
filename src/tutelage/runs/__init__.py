"""Runs on disk: their records, tables over several of them, and the page that shows them."""

from tutelage.runs.page import write_page
from tutelage.runs.record import RunFolder
from tutelage.runs.tables import Gain, Row, as_dicts, as_markdown, as_table, gain, summarise

__all__ = [
    "Gain",
    "Row",
    "RunFolder",
    "as_dicts",
    "as_markdown",
    "as_table",
    "gain",
    "summarise",
    "write_page",
]
