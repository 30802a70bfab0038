"""The two kinds of failure a user meets, each ending in one sentence instead of a traceback.

A message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TutelageError(Exception):
    """The run failed although the request was sound (full disk, NaN loss). Exit code 1."""

    exit_code = 1


class UserError(TutelageError):
    """The request itself can't be met (unknown name, wrong key, broken file). Exit code 2."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ``; did you mean 'x'?`` for a misspelt name, or the empty string.

    Args:
        name: What was asked for.
        known: The names that exist.
    """
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""
