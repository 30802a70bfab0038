"""Plain supervised training: the baseline beside every distilled student."""

from __future__ import annotations

from tutelage.methods.base import Method, Needs
from tutelage.methods.registry import register_method


@register_method("none", summary="cross entropy with the labels alone, no teacher", source="baseline")
class Vanilla(Method):
    """L = CE(z, y)."""

    @property
    def needs(self) -> Needs:
        """No teacher."""
        return Needs(teacher=None)
