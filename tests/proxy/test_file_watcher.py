# SPDX-License-Identifier: Apache-2.0
"""A change is reported once, when the file is stable, however it was changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailproxy.file_watcher import FileWatcher


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mailproxy.json"
    path.write_text("one")
    return path


def settle(watch: FileWatcher) -> list[Path]:
    """Poll until nothing changes."""
    changed_files = list(watch.changed())
    for _ in range(5):
        changed_files += watch.changed()
    return changed_files


def write(path: Path, text: str) -> None:
    path.write_text(text)


def rename(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.mark.parametrize("change", [write, rename, append])
def test_change_is_reported_once(file: Path, change: object) -> None:
    watch = FileWatcher([file])
    assert settle(watch) == []
    assert callable(change)
    change(file, "something longer")
    assert settle(watch) == [file]
    assert settle(watch) == []


def test_change_is_reported_when_the_file_is_stable(file: Path) -> None:
    watch = FileWatcher([file])
    write(file, "half")
    assert watch.changed() == ()
    assert watch.is_changing
    append(file, " and the rest")
    assert watch.changed() == ()
    assert watch.is_changing
    assert watch.changed() == (file,)
    assert not watch.is_changing


def test_the_swap_of_a_mounted_config_map_is_a_change(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "mailproxy.json").write_text(version)
    (tmp_path / "..data").symlink_to("v1")
    file = tmp_path / "mailproxy.json"
    file.symlink_to("..data/mailproxy.json")
    watch = FileWatcher([file])
    (tmp_path / "..data_tmp").symlink_to("v2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert settle(watch) == [file]


def test_same_contents_with_new_mtime_are_no_change(file: Path) -> None:
    watch = FileWatcher([file])
    os.utime(file, ns=(1, 1))
    rename(file, "one")
    assert settle(watch) == []


def test_reverted_change_is_not_reported(file: Path) -> None:
    watch = FileWatcher([file])
    write(file, "two")
    assert watch.changed() == ()
    write(file, "one")
    assert settle(watch) == []


def test_creation_and_removal_are_changes(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "tls.crt"
    watch = FileWatcher([file, other])
    other.write_text("certificate")
    assert settle(watch) == [other]
    file.unlink()
    assert settle(watch) == [file]
    write(file, "again")
    assert settle(watch) == [file]


def test_several_changes_are_reported_together(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("tls.crt", "tls.key")]
    watch = FileWatcher(paths)
    for path in paths:
        path.write_text("new")
    assert settle(watch) == paths


def test_watch_keeps_the_state_of_unchanged_files(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "tls.key"
    watch = FileWatcher([file, other])
    write(file, "two")
    watch.watch([file])
    other.write_text("new")
    assert settle(watch) == [file]
    watch.watch([file, other])
    assert settle(watch) == []


@pytest.mark.parametrize("path", [Path("/nowhere/at/all"), Path("/"), Path("a\0b")])
def test_unreadable_file_is_watched(path: Path) -> None:
    watch = FileWatcher([path])
    assert settle(watch) == []


def test_pipe_in_place_of_a_file_does_not_block(file: Path) -> None:
    file.write_text("a")
    watch = FileWatcher([file])
    file.unlink()
    os.mkfifo(file)
    assert watch.changed() == ()
    assert watch.changed() == (file,)
