"""Methods by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from tutelage.errors import UserError, nearest
from tutelage.methods.base import Config, Method

_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register_method(name: str, *, summary: str, source: str) -> Callable[[M], M]:
    """Make a method known under ``name``.

    Args:
        name: Lower-case name used in recipes and on the command line.
        summary: One line for lists.
        source: The paper, with year.
    """

    def register(cls: M) -> M:
        if name in _METHODS:
            raise ValueError(f"method '{name}' is registered twice")
        cls.name, cls.summary, cls.source = name, summary, source
        _METHODS[name] = cls
        return cls

    return register


def method_names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_METHODS)


def method_class(name: str) -> type[Method]:
    """The class registered under ``name``.

    Raises:
        UserError: No method has that name.
    """
    if name not in _METHODS:
        raise UserError(
            f"there is no method '{name}'{nearest(name, _METHODS)} (tutelage list methods shows all)"
        )
    return _METHODS[name]


def method_config(name: str, settings: dict[str, Any]) -> Config:
    """Check ``settings`` against the method's config and fill in its defaults.

    Raises:
        UserError: Unknown key (with the nearest known one) or a value out of range.
    """
    cls = method_class(name)
    try:
        return cls.Config.model_validate(settings)
    except ValidationError as error:
        raise UserError(explain(error, cls.Config, "method")) from error


def create_method(name: str, **settings: Any) -> Method:
    """Build a method, e.g. ``create_method("kd", temperature=4.0)``. See `method_config` for errors."""
    return method_class(name)(method_config(name, settings))


def explain(error: ValidationError, model: type[Any], where: str) -> str:
    """One sentence for the first problem that pydantic found; a wrong key goes before all others.

    Args:
        error: What validation raised.
        model: The pydantic class whose fields the key hint is taken from.
        where: Dotted path of the object that was validated.
    """
    problems = error.errors()
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    path = ".".join([where, *(str(part) for part in first["loc"] if part != "[key]")]).lstrip(".")
    if first["type"] == "extra_forbidden":
        fields = _fields_at(model, first["loc"][:-1])
        hint = nearest(str(first["loc"][-1]), fields)
        return f"'{path}' is not a known setting{hint} (known here: {', '.join(fields)})"
    if first["type"] == "missing":
        return f"'{path}' is missing; set it with --set {path}=VALUE"
    message = first["msg"].removeprefix("Value error, ")
    return f"'{path}' can't be {first['input']!r}: {message[0].lower()}{message[1:]}"


def _fields_at(model: type[Any], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        inner = [c for c in candidates if hasattr(c, "model_fields")]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)
