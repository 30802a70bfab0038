"""The command line: parse, call, print."""

from tutelage.cli.application import app, main

__all__ = ["app", "main"]
