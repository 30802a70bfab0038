"""The application: its commands in the order in which they are needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tutelage.cli import catalogue, data, exporting, failures, probe, running, weights
from tutelage.cli.options import Debug

EPILOG = (
    "A run is described by --recipe, changed by flags, changed by --set KEY.PATH=VALUE. "
    "Exit codes: 0 done, 1 failed, 2 wrong request, 130 interrupted."
)

app = typer.Typer(
    name="tutelage",
    help="Distil vision classifiers: a strong teacher, a small student, one command, "
    "and a number that can be trusted.",
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from tutelage import __version__

        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=print_version, is_eager=True),
    ] = False,
    debug: Debug = False,
) -> None:
    """What can be said before the command."""


TRYING, LOOKING = "Run", "Look"
app.command(rich_help_panel=TRYING)(running.demo)
app.command(rich_help_panel=TRYING)(running.train)
app.command(rich_help_panel=TRYING)(running.distill)
app.command(rich_help_panel=TRYING)(running.mutual)
app.command(rich_help_panel=TRYING)(running.resume)
app.command("eval", rich_help_panel=TRYING)(running.evaluate)
app.command(rich_help_panel=TRYING)(probe.probe)
app.command(rich_help_panel=TRYING)(exporting.export)
app.command(rich_help_panel=LOOKING)(running.doctor)
app.command("list", rich_help_panel=LOOKING)(catalogue.list_names)
app.command(rich_help_panel=LOOKING)(catalogue.show)
app.add_typer(weights.app, name="weights", rich_help_panel=LOOKING)
app.add_typer(data.app, name="data", rich_help_panel=LOOKING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Everything after the program's name; None takes it from the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong request, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return failures.run(typer.main.get_command(app), given or ["--help"])
