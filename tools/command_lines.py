"""Reads the `tutelage` commands that the documentation shows, and says which of them would be refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

SEPARATOR = re.compile(r"^[|&;()]+$")
REDIRECTION = re.compile(r"^[<>]+[&|]?$")
VARIABLE = re.compile(r"\$(?:\w+|\{\w+\})")
LEADING_WORDS = {"do", "then", "else", "time", "exec", "!"}


def calls(text: str, prompted: bool) -> Iterator[tuple[int, list[str]]]:
    """Finds the `tutelage` commands in a piece of shell.

    Lines that end in a backslash are joined, prompts and comments dropped, pipes and lists parted.

    Args:
        text: Lines of shell.
        prompted: Whether only the lines after a `$` prompt are commands, the others being output.

    Yields:
        Each command's line in the text, counted from 0, and the words after `tutelage` or
        `python -m tutelage`.

    Raises:
        ValueError: A quotation is left open.
    """
    start, command = 0, ""
    for number, line in enumerate(text.splitlines()):
        if not command:
            start = number
            if prompted and not line.startswith("$ "):
                continue
            line = line.strip().removeprefix("$ ")
        command += line
        if command.endswith("\\"):
            command = command[:-1] + " "
            continue
        for words in simple_commands(command):
            yield start, words
        command = ""


def simple_commands(line: str) -> Iterator[list[str]]:
    """Parts a line of shell at its pipes and lists.

    Args:
        line: One whole line.

    Yields:
        What follows `tutelage` in each part that calls it, without redirections.

    Raises:
        ValueError: A quotation is left open.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if SEPARATOR.match(word):
            parts.append([])
        elif redirected or REDIRECTION.match(word):
            redirected = not redirected
        else:
            parts[-1].append(word)
    for words in parts:
        places = [place for place, word in enumerate(words) if Path(word).name == "tutelage"]
        if places and is_call(words[: places[0]]):
            yield words[places[0] + 1 :]


def is_call(before: list[str]) -> bool:
    """Whether a word is the command (and not an argument of another), by the words before it.

    Args:
        before: The words.
    """
    return before[-1:] == ["-m"] or all("=" in word or word in LEADING_WORDS for word in before)


def disarm(command: Any) -> Any:
    """Takes what a command does out of it, so that it can be called for its reading of the line alone.

    Args:
        command: A click command tree, `typer.main.get_command(app)`; changed in place.

    Returns:
        The same tree.
    """
    command.callback = None
    for each in getattr(command, "commands", {}).values():
        disarm(each)
    return command


def complaint(words: list[str], tree: Any) -> str | None:
    """What the program says of a command line that it doesn't take.

    Args:
        words: What follows `tutelage`; a shell variable is read as 1.
        tree: The disarmed click command tree.

    Returns:
        The error message, or None if the line is taken.
    """
    line = [VARIABLE.sub("1", word) for word in words]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            tree.main(args=line, prog_name="tutelage", standalone_mode=False)
        except Exception as error:
            # Typer may carry its own copy of click, so the class of a usage error can't be named.
            if not hasattr(error, "format_message"):
                raise
            return f"'tutelage {' '.join(words)}': {error.format_message()}"
    return None
