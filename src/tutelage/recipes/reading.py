"""Recipe files: their names, their YAML, and what one takes over from another with ``extends``."""

from __future__ import annotations

import copy
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import UserError, nearest

EXTENDS = "extends"
NAMED = ("student", "teacher", "method", "data")
"""Sections that may be given by their name alone."""


def recipe_names() -> list[str]:
    """The bundled recipes as ``folder/name``, sorted."""
    return list(_bundled())


@cache
def _bundled() -> tuple[str, ...]:
    with resources.as_file(resources.files("tutelage.recipes")) as folder:
        return tuple(sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml")))


def read_recipe(source: str) -> dict[str, Any]:
    """Read a bundled recipe by name, or a YAML file by path, as plain values.

    A recipe that extends another one starts from that one's values, note excepted, and has no such key.

    Raises:
        UserError: No such recipe or file, its content is not a YAML mapping, or the same is true of a recipe
            that it extends, or it comes to extend itself.
    """
    return _read(source, ())


def _read(source: str, readers: tuple[str, ...]) -> dict[str, Any]:
    """Read ``source``, extended by the last of ``readers``, extended by the one before, and so on."""
    own = _values(source)
    if EXTENDS not in own:
        return own
    base = own.pop(EXTENDS)
    if not isinstance(base, str):
        raise UserError(
            f"'{EXTENDS}' in recipe {source} can't be {base!r}; give the name of one bundled recipe or file"
        )
    if _is_file(source) and Path(base).suffix in {".yaml", ".yml"}:
        base = str(Path(source).parent / base)
    chain = (*readers, source)
    if _identity(base) in map(_identity, chain):
        loop = " extends ".join([*chain, base])
        raise UserError(f"a recipe can't extend itself, but {loop}; remove one of these '{EXTENDS}'")
    try:
        inherited = _read(base, chain)
    except UserError as error:
        if readers:  # the first file of a chain is the one that the user knows
            raise
        raise UserError(f"recipe {source} extends another that can't be used: {error}") from error
    inherited.pop("note", None)
    return merge(inherited, own)


def _is_file(source: str) -> bool:
    return Path(source).suffix in {".yaml", ".yml"} or Path(source).is_file()


def _identity(source: str) -> str:
    """The same for two ways to write the same file."""
    return str(Path(source).resolve()) if _is_file(source) else source


def _values(source: str) -> dict[str, Any]:
    if _is_file(source):
        text = _file_text(Path(source))
    elif source in _bundled():
        text = resources.files("tutelage.recipes").joinpath(f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise UserError(
            f"there is no recipe '{source}'{nearest(source, _bundled())} (see tutelage list recipes)"
        )
    try:
        values = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(f"recipe {source} is not valid YAML{line}; correct it there") from error
    if not isinstance(values, dict):
        raise UserError(f"recipe {source} must be a mapping of sections such as data: and schedule:")
    return values


def _file_text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"there is no recipe file {path}; give an existing file or a bundled name")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no recipe (not even text); give a YAML file") from error


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``: sections key by key, everything else as a whole.

    Another method than the base's takes over none of the base's settings, which it may not know.
    """
    base, over = with_sections(base), with_sections(over)
    method = over.get("method")
    if isinstance(method, dict) and method.get("name", _name(base)) != _name(base):
        base.pop("method", None)
    return _merge(base, over)


def _name(values: dict[str, Any]) -> Any:
    method = values.get("method")
    return method.get("name") if isinstance(method, dict) else None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        known = base.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            value = _merge(known, value)
        merged[key] = value
    return merged


def with_sections(values: dict[str, Any]) -> dict[str, Any]:
    """A copy in which a section given by its name alone (``method: kd``) is a section."""
    values = copy.deepcopy(values)
    for part in NAMED:
        if values.get(part) is not None:
            section_of(values, part)
    return values


def section_of(values: dict[str, Any], part: str) -> dict[str, Any]:
    """The nested section ``part``, made (or expanded from a bare name) when needed."""
    inner = values.get(part)
    if isinstance(inner, str):
        inner = {"name": inner}
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise UserError(f"'{part}' is a single value, not a section; set it with --set {part}=VALUE")
    values[part] = inner
    return inner


class Loader(yaml.SafeLoader):
    """Safe YAML that reads ``5e-4`` as a number and ``on``, ``off``, ``yes``, ``no`` as words (YAML 1.2).

    A key given twice is refused.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


class Dumper(yaml.SafeDumper):
    """Safe YAML that quotes every string which `Loader`, or another reader, would take for a value."""


BOOL = "tag:yaml.org,2002:bool"
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
for _first in "-+0123456789.":
    Loader.yaml_implicit_resolvers.setdefault(_first, [])
for _both in (Loader, Dumper):
    _both.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
