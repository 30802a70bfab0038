"""How a command ends when it can't do what was asked: one sentence, an exit code, no traceback."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import typer

from tutelage.cli.console import print_json, speaks
from tutelage.errors import TutelageError

FAILURE = 1
USAGE = 2
INTERRUPTED = 130

UsageError = typer.BadParameter.__bases__[0]
"""Base of everything that Typer raises about a command line; Typer itself only names its subclass."""


class Failure(NamedTuple):
    """What the user is told.

    Attributes:
        sentence: What is wrong and what to do; one line.
        exit_code: 1 for a failure, 2 for a mistake in the request, 130 after Ctrl-C.
    """

    sentence: str
    exit_code: int


def run(command: Any, arguments: Sequence[str]) -> int:
    """Run the command line and turn every failure into one sentence on stderr.

    With ``--json`` among the arguments the sentence is also the last line of stdout, as
    ``{"error": sentence, "exit_code": code}``. With ``--debug``, or TUTELAGE_DEBUG
    set, the traceback comes first.

    Args:
        command: The application, as Typer's own command class.
        arguments: Everything after the program's name.

    Returns:
        The exit code.
    """
    debug = "--debug" in arguments or os.environ.get("TUTELAGE_DEBUG", "0") not in ("", "0")
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' warnings speak to programmers
    try:
        outcome = command.main(list(arguments), prog_name="tutelage", standalone_mode=False)
        sys.stdout.flush()
        if outcome != INTERRUPTED:  # Typer hands over Ctrl-C as a code
            return outcome if isinstance(outcome, int) else 0
        failure = explain(KeyboardInterrupt())
    except BrokenPipeError:
        abandon_stdout()
        return FAILURE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        failure = explain(error)
    return report(failure, "--json" in arguments)


def explain(error: BaseException) -> Failure:
    """The sentence and exit code for an exception."""
    if isinstance(error, typer.Abort):
        cause = error.__cause__  # Typer takes the end of any file for the end of the user's patience
        return explain(cause) if isinstance(cause, EOFError) else Failure("interrupted", INTERRUPTED)
    if isinstance(error, TutelageError):
        return Failure(one_line(str(error)), error.exit_code)
    if isinstance(error, UsageError):
        return Failure(usage_sentence(error), USAGE)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", INTERRUPTED)
    if isinstance(error, OSError) and error.strerror:
        where = f"can't use {error.filename}" if error.filename else "the system refused a file operation"
        return Failure(f"{where}: {error.strerror}; check free space and permissions", FAILURE)
    if is_out_of_memory(error):
        return Failure("out of memory; lower --batch-size or choose smaller networks", FAILURE)
    name = type(error).__name__
    message = str(error).strip().split("\n")[0]
    what = f"{name}: {message}" if message else name
    return Failure(f"unexpected {what}; run again with --debug to see where, and report it", FAILURE)


def usage_sentence(error: BaseException) -> str:
    """What Typer says about a wrong command line, with the way to the help."""
    text = one_line(error.format_message().replace("Value error, ", ""))  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "tutelage"
    return f"{text[:1].lower()}{text[1:].rstrip('.')} ({command} --help explains)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, a tensor or the GPU ran out of memory; told by name, as PyTorch loads slowly."""
    named = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or named


def process_mark() -> str:
    """Which of several processes is speaking; empty for one alone."""
    together = os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ
    return f"process {os.environ['RANK']}: " if together else ""


def report(failure: Failure, as_json: bool) -> int:
    """Tell the user, and return the exit code."""
    prefix = process_mark() + ("" if failure.exit_code == INTERRUPTED else "error: ")
    try:
        sys.stderr.write(f"{prefix}{failure.sentence}\n")
        if as_json and speaks():
            print_json({"error": failure.sentence, "exit_code": failure.exit_code})
        sys.stdout.flush()
    except OSError:  # stdout or stderr is closed or full: nobody can be told more
        abandon_stdout()
    return failure.exit_code


def abandon_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush can't fail as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(text: str) -> str:
    """``text`` with all white space runs, line breaks included, turned into single blanks."""
    return re.sub(r"\s+", " ", text).strip()
