"""From a name or file, flags and ``--set`` to a checked recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from tutelage.errors import UserError
from tutelage.recipes.reading import NAMED, Dumper, Loader, read_recipe, section_of, with_sections
from tutelage.recipes.schema import Recipe, validate


def parse_setting(text: str) -> tuple[list[str], Any]:
    """Split ``a.b=value`` into its path and its YAML value.

    Raises:
        UserError: There is no ``=`` or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text!r} must have the form key.path=value, e.g. --set optimiser.lr=0.1")
    try:
        return key.strip().split("."), yaml.load(value, Loader=Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text!r}: the value is not valid YAML; quote it") from error


def apply(values: dict[str, Any], path: Iterable[str], value: Any) -> None:
    """Set one nested value in place, making sections on the way.

    Setting ``method.name`` to another method drops the former one's settings, which it may not know.
    A bare string where a section is expected (``method: kd``) counts as the section's name.
    """
    *sections, last = path
    if not sections and last in NAMED and isinstance(value, str):
        sections, last = [last], "name"
    if sections == ["method"] and last == "name" and section_of(values, "method").get("name") != value:
        values["method"] = {"name": value}
        return
    for part in sections:
        values = section_of(values, part)
    values[last] = value


def resolve(
    source: str | None = None, flags: dict[str, Any] | None = None, settings: Iterable[str] = ()
) -> Recipe:
    """Combine a recipe, flags and ``--set`` overrides, later ones winning.

    Args:
        source: Bundled name or YAML file; None starts from the defaults.
        flags: Dotted path -> value; None values are ignored.
        settings: Strings ``key.path=value``.

    Raises:
        UserError: See `reading.read_recipe`, `parse_setting` and `schema.validate`.
    """
    values = {} if source is None else with_sections(read_recipe(source))
    for key, value in (flags or {}).items():
        if value is not None:
            apply(values, key.split("."), value)
    for text in settings:
        path, value = parse_setting(text)
        apply(values, path, value)
    return validate(values)


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, complete with defaults; reading it back gives an equal recipe."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)
