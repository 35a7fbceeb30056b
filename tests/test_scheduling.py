"""coxcompile.measurement.scheduling: a scheduling group is raised while timing, and only then."""

from pathlib import Path

import pytest

from coxcompile.measurement import scheduling


def test_the_group_is_raised_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "autogroup"
    group.write_text("/autogroup-7 nice 3\n")
    monkeypatch.setattr(scheduling, "AUTOGROUP", group)
    with scheduling.scheduled_first():
        assert group.read_text() == "-20"
    assert group.read_text() == "3"


def test_no_group_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "autogroup"
    group.write_text("")
    monkeypatch.setattr(scheduling, "AUTOGROUP", group)
    with scheduling.scheduled_first():
        assert group.read_text() == ""


def test_no_such_file_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "AUTOGROUP", tmp_path / "missing")
    with scheduling.scheduled_first():
        assert not (tmp_path / "missing").exists()
