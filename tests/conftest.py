"""What holds for every test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another one, or the user, has trained."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "tutelage-cache"))
