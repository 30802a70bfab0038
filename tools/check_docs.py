"""The docs check: what the documentation shows must exist.

Looks for links and anchors that lead nowhere, Python blocks that don't compile, `tutelage` commands
that the command line wouldn't take, and, in every public file, names of machines and registries.
Prints one line per finding and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from command_lines import calls, complaint, disarm

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "README.md",
    "README.zh-CN.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs",
    "examples",
    "benchmarks",
    "results",
)
PUBLIC = (
    *DOCUMENTS,
    ".ci",
    ".gitignore",
    ".pre-commit-config.yaml",
    "Makefile",
    "pyproject.toml",
    "requirements.lock",
    "src",
    "tests",
    "tools",
)
# One letter of each stands in brackets, so that this file doesn't find itself.
PRIVATE = re.compile(
    r"(?<![\w.])/(?:wor[k]|tm[p]|roo[t]|hom[e]|User[s]|far[m])/|pyp[i]\.org|python[h]osted|registry\.npm[j]s|deb\.debia[n]"
)

FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,}) *(?P<language>[\w+-]*)")
LINK = re.compile(r"\]\(\s*<?(?P<target>[^)\s>]+)>?(?:\s+[\"'][^)]*)?\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(?P<target>[^\s>]+)")
ATTRIBUTE = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=[\"'](?P<target>[^\"'\s]+)")
ANCHOR = re.compile(r"<[a-z]+\b[^>]*?\b(?:id|name)=[\"'](?P<anchor>[^\"']+)")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(?P<title>.+?)\s*#*\s*$")
CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)

SHELLS = {"bash", "sh", "shell"}
CONSOLES = {"console", "shell-session"}


class Finding(NamedTuple):
    """Something to mend.

    Attributes:
        line: Line in its file, counted from 1.
        text: What is wrong there.
    """

    line: int
    text: str


class Block(NamedTuple):
    """A fenced block of code.

    Attributes:
        language: The word after the fence, in lower case.
        line: Line of the block's first line in its file, counted from 1.
        text: The lines between the fences, without the fence's indentation.
    """

    language: str
    line: int
    text: str


def split(markdown: str) -> tuple[list[str], list[Block]]:
    """Parts a document into its prose and its code.

    Args:
        markdown: The whole document.

    Returns:
        The document's lines with those of code emptied (so that line numbers hold), and its fenced blocks.
    """
    prose: list[str] = []
    blocks: list[Block] = []
    fence: re.Match[str] | None = None
    inside: list[str] = []
    for number, line in enumerate(markdown.splitlines(), start=1):
        mark = FENCE.match(line)
        if fence is None and mark:
            fence, inside = mark, []
        elif fence is None:
            prose.append(line)
            continue
        elif mark and mark["marks"].startswith(fence["marks"]) and line.strip() == mark["marks"]:
            text = textwrap.dedent("\n".join(inside))
            blocks.append(Block(fence["language"].lower(), number - len(inside), text))
            fence = None
        else:
            inside.append(line)
        prose.append("")
    return prose, blocks


def anchors(markdown: str) -> set[str]:
    """The names a link may end in after `#`, made as GitHub makes them.

    Args:
        markdown: The whole document.
    """
    prose, _ = split(markdown)
    names: set[str] = set()
    for line in prose:
        names.update(found["anchor"] for found in ANCHOR.finditer(line))
        heading = HEADING.match(line)
        if not heading:
            continue
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading["title"])
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        name, again = slug, 0
        while name in names:
            again += 1
            name = f"{slug}-{again}"
        names.add(name)
    return names


def check_links(markdown: str, path: Path, root: Path) -> Iterator[Finding]:
    """Follows every link that stays in the project.

    Args:
        markdown: The document.
        path: Where it lies.
        root: The project's root; a link must not leave it.

    Yields:
        Links to files or anchors that don't exist.
    """
    prose, _ = split(markdown)
    for number, line in enumerate(prose, start=1):
        visible = CODE_SPAN.sub("", line)
        for found in (match for form in (LINK, DEFINITION, ATTRIBUTE) for match in form.finditer(visible)):
            target = found["target"]
            if ELSEWHERE.match(target):
                continue
            name, _, anchor = unquote(target).partition("#")
            file = (path.parent / name).resolve() if name else path.resolve()
            if not file.is_relative_to(root.resolve()) or not file.exists():
                yield Finding(number, f"link to '{target}', which does not exist")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
                yield Finding(number, f"link to '{target}', but {file.name} has no heading '#{anchor}'")


def check_python(block: Block) -> Iterator[Finding]:
    """Compiles a Python block.

    Args:
        block: The block.

    Yields:
        The block's syntax error, if it has one.
    """
    try:
        ast.parse(block.text)
    except SyntaxError as error:
        yield Finding(block.line + (error.lineno or 1) - 1, f"Python block does not compile: {error.msg}")


def check_commands(block: Block, tree: Any) -> Iterator[Finding]:
    """Reads the `tutelage` commands of a shell block.

    Args:
        block: The block.
        tree: The disarmed click command tree.

    Yields:
        The commands that would be refused.
    """
    try:
        for line, words in calls(block.text, prompted=block.language in CONSOLES):
            wrong = complaint(words, tree)
            if wrong:
                yield Finding(block.line + line, wrong)
    except ValueError as error:
        yield Finding(block.line, f"shell block can't be read: {error}")


def check_document(path: Path, root: Path, tree: Any) -> Iterator[Finding]:
    """Checks one document's links, Python and commands.

    Args:
        path: The document.
        root: The project's root.
        tree: The disarmed click command tree.

    Yields:
        What is to be mended.
    """
    markdown = path.read_text(encoding="utf-8")
    yield from check_links(markdown, path, root)
    for block in split(markdown)[1]:
        if block.language in {"python", "py"}:
            yield from check_python(block)
        elif block.language in SHELLS | CONSOLES:
            yield from check_commands(block, tree)


def check_private(path: Path) -> Iterator[Finding]:
    """Looks for names of machines and registries in one public file.

    Args:
        path: The file; one that isn't text is passed over.

    Yields:
        The lines that hold one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return
    for number, line in enumerate(lines, start=1):
        found = PRIVATE.search(line)
        if found:
            yield Finding(number, f"'{found[0]}' must not be in a public file")


def files(names: Iterable[str], root: Path, suffix: str = "") -> list[Path]:
    """The files with these names and those in the folders with these names.

    Args:
        names: Files and folders, relative to the root; those that don't exist are passed over.
        root: The project's root.
        suffix: How a file's name must end.
    """
    found: list[Path] = []
    for name in names:
        path = root / name
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [each for each in inside if each.is_file() and each.name.endswith(suffix)]
    return [each for each in found if "__pycache__" not in each.parts and not each.match("*.egg-info/*")]


def main(root: Path = ROOT) -> int:
    """Checks the whole project and prints what it finds.

    Args:
        root: The project's root.

    Returns:
        The exit code: 1 if anything is to be mended, else 0.
    """
    import typer.main

    from tutelage.cli import app

    tree = disarm(typer.main.get_command(app))
    documents, public = files(DOCUMENTS, root, ".md"), files(PUBLIC, root)
    findings = [(path, found) for path in documents for found in check_document(path, root, tree)]
    findings += [(path, found) for path in public for found in check_private(path)]
    for path, found in findings:
        print(f"{path.relative_to(root)}:{found.line}: {found.text}")
    print(f"docs check: {len(documents)} documents, {len(public)} public files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
