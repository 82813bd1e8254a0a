"""Atomic replacement, with processes that really die in the middle of it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from pathosam_qupath.errors import ChangedSinceReadError, ProjectError
from pathosam_qupath.qupath.atomic import (
    MISSING,
    check_unchanged,
    fingerprint,
    is_unchanged,
    read_file,
    replace_file,
)

OLD, NEW, OLDER = b"old " * 5000, b"new!" * 7000, b"older"

kills = pytest.mark.skipif(sys.platform == "win32", reason="kills processes by signal")

WRITERS = f"""
import json, os, shutil, signal, sys
from pathlib import Path
from pathosam_qupath.qupath import atomic

template, target = Path(sys.argv[1]), Path(sys.argv[2])

def write(file):
    piece = {NEW!r}
    half = len(piece) // 2
    file.write(piece[:half])
    file.flush()
    file.write(piece[half:])

def die_at(folder, deadly):
    executed = 0

    def on_line(frame, event, argument):
        nonlocal executed
        if frame.f_code.co_filename not in (atomic.__file__, __file__):
            return None
        if event == "line":
            executed += 1
            if executed == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    path = folder / "data.qpdata"
    expected = atomic.fingerprint(path)
    sys.settrace(on_line)
    atomic.replace_file(path, write, expected=expected, backup=folder / "data.qpdata.bkp")
    os._exit(0)

deaths, deadly, status = [], 0, None
while status != 0 and deadly < 1000:
    deadly += 1
    folder = target / str(deadly)
    shutil.copytree(template, folder)
    child = os.fork()
    if child == 0:
        die_at(folder, deadly)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    deaths.append(status)
print(json.dumps(deaths))
"""
"""For each executed line of a write, a process that is killed when it gets there."""


def write_new(file: BinaryIO) -> None:
    file.write(NEW)


@kills
@pytest.mark.parametrize("existing", ["file and backup", "file", "nothing"])
def test_a_crash_at_any_line_leaves_the_old_or_the_new_file(tmp_path: Path, existing: str) -> None:
    template, target = tmp_path / "template", tmp_path / "killed"
    template.mkdir()
    target.mkdir()
    if existing != "nothing":
        (template / "data.qpdata").write_bytes(OLD)
    if existing == "file and backup":
        (template / "data.qpdata.bkp").write_bytes(OLDER)
    script = tmp_path / "writers.py"
    script.write_text(WRITERS, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(template), str(target)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    *deaths, last = json.loads(done.stdout)
    assert last == 0
    assert len(deaths) > 40
    assert set(deaths) == {-signal.SIGKILL}

    old = None if existing == "nothing" else OLD
    seen = set()
    for folder in target.iterdir():
        path, backup = folder / "data.qpdata", folder / "data.qpdata.bkp"
        content = path.read_bytes() if path.exists() else None
        assert content in (old, NEW), f"torn at line {folder.name}"
        seen.add(content)
        kept = backup.read_bytes() if backup.exists() else None
        assert kept in (OLD, OLDER, None)
        if existing == "file and backup":
            assert kept is not None
        if path.exists() and backup.exists():
            # QuPath truncates files in place: a backup that is a link would go too
            assert not path.samefile(backup)
        # whatever was left, the next write works, and nothing of the dead one stays
        replace_file(path, write_new, expected=fingerprint(path), backup=backup)
        assert path.read_bytes() == NEW
        assert {p.name for p in folder.iterdir()} <= {"data.qpdata", "data.qpdata.bkp"}
    assert seen == {old, NEW}


def test_a_write_leaves_the_new_file_and_the_old_as_backup(tmp_path: Path) -> None:
    path, backup = tmp_path / "a.bin", tmp_path / "a.bin.bkp"
    path.write_bytes(OLD)
    path.chmod(0o640)
    mark = replace_file(path, write_new, expected=fingerprint(path), backup=backup)
    assert path.read_bytes() == NEW
    assert backup.read_bytes() == OLD
    assert mark == fingerprint(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.bin.bkp"]


def test_an_exception_while_writing_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path, backup = tmp_path / "a.bin", tmp_path / "a.bin.bkp"
    path.write_bytes(OLD)

    def fails(file: BinaryIO) -> None:
        file.write(NEW)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        replace_file(path, fails, backup=backup)
    assert path.read_bytes() == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_change_during_the_write_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(OLD)

    def slowly(file: BinaryIO) -> None:
        file.write(NEW)
        path.write_bytes(b"saved by QuPath")

    with pytest.raises(ChangedSinceReadError):
        replace_file(path, slowly, expected=fingerprint(path))
    assert path.read_bytes() == b"saved by QuPath"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_change_of_content_alone_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(OLD)
    content, mark = read_file(path)
    assert content == OLD
    path.write_bytes(OLD[:-1] + b"?")
    os.utime(path, ns=(mark.mtime_ns, mark.mtime_ns))
    with pytest.raises(ChangedSinceReadError, match="changed after it was read"):
        check_unchanged(path, mark)


def test_a_new_time_alone_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(OLD)
    mark = fingerprint(path)
    os.utime(path, ns=(1, 1))
    check_unchanged(path, mark)
    assert not is_unchanged(path, mark)


def test_a_file_that_must_not_exist_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    assert fingerprint(path) == MISSING
    replace_file(path, write_new, expected=MISSING)
    with pytest.raises(ChangedSinceReadError, match="created"):
        replace_file(path, write_new, expected=MISSING)


def test_a_linked_file_is_replaced_where_it_is(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.bin"
    real.write_bytes(OLD)
    link = tmp_path / "a.bin"
    link.symlink_to(real)
    replace_file(link, write_new)
    assert link.is_symlink()
    assert real.read_bytes() == NEW


def test_the_temporary_file_of_a_live_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(OLD)

    def meanwhile(file: BinaryIO) -> None:
        replace_file(path, write_new)
        file.write(OLD)

    replace_file(path, meanwhile)
    assert path.read_bytes() == OLD


def test_a_name_with_wildcards_sweeps_only_its_own_remains(tmp_path: Path) -> None:
    other = tmp_path / "ab.00000000.pathosam-tmp"
    own = tmp_path / "[a]*.00000000.pathosam-tmp"
    other.write_bytes(b"")
    own.write_bytes(b"")
    replace_file(tmp_path / "[a]*", write_new)
    assert other.exists()
    assert not own.exists()


def test_a_folder_that_is_not_there_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="gone"):
        replace_file(tmp_path / "gone" / "a.bin", write_new)


def test_the_bytes_reach_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename that outlives the data of the file would leave an empty file."""
    path = tmp_path / "a.bin"
    path.write_bytes(OLD)
    events: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        size = 0 if is_folder else os.fstat(descriptor).st_size
        events.append("folder" if is_folder else f"{size} bytes")
        fsync(descriptor)

    def noting_replace(source: Path, target: Path) -> Path:
        events.append(f"-> {target.name}")
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    replace_file(path, write_new, backup=tmp_path / "a.bkp")
    assert events == [f"{len(NEW)} bytes", "-> a.bin", "-> a.bkp", "folder"]
