"""Launchers are chosen in one place."""

from pathlib import Path

import pytest

from cupola_platform.errors import ConfigError
from cupola_platform.launch.launcher import make_launcher
from cupola_platform.settings import Settings

ROOT = Path(__file__).parents[3]


def test_the_settings_limit_a_job_unless_more_is_asked_for() -> None:
    settings = Settings(max_processes=2)
    make_launcher(settings).check(2)
    with pytest.raises(ConfigError, match=r"needs 3 processes, but this machine runs at most 2"):
        make_launcher(settings).check(3)
    make_launcher(settings, at_least=8).check(8)
    with pytest.raises(ConfigError, match=r"at most 8"):
        make_launcher(settings, at_least=8).check(9)


def test_no_code_outside_the_launch_room_names_a_launcher_of_its_own() -> None:
    sources = [
        path for part in ("platform", "trainer", "flows", "dashboards") for path in (ROOT / part).rglob("*.py")
        if path.parent.name != "launch"
    ]  # fmt: skip
    assert len(sources) > 300
    assert [path for path in sources if "LocalLauncher" in path.read_text()] == []
