"""Files appear whole; a CSV reads back; a lock holds, or says why not."""

import csv
import errno
import io
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tqa_jax import output, schema

ROOT = pathlib.Path(__file__).parents[1]
SHARED = pathlib.Path(os.environ.get("TQA_SHARED", "../shared"))
SHIM = SHARED / "data" / "odd" / "12_nfs_flock_shim.c"


def test_a_csv_reads_back_whatever_its_cells_hold(tmp_path):
    awkward = ["\r", "a\rb", "a\r\nb", "\n", ' "', '"', "a,b", "\u2028", "\x85", "\x0b"]
    awkward += ["\x1c\x1d", "", " ", "=1+1", "'", "\\", "ü", "\t", "#", "\ufeff", "\0"]
    rows = [[cell, "x", cell] for cell in awkward]
    path = tmp_path / "table.csv"
    output.write(path, output.table(awkward[:3], rows))
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file, strict=True)) == [awkward[:3], *rows]
    assert output.table(["a", "b"], [[1, None], [0.5, "x"]]) == "a,b\n1,\n0.5,x\n"
    assert output.table(["a"], [[None]]) == 'a\n""\n'  # no empty line, which is no row


def test_rows_with_the_same_keys_become_a_csv():
    text = output.table_of([{"a": 1, "b\r": None}, {"b\r": "x", "a": 2}])
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert rows == [{"a": "1", "b\r": ""}, {"a": "2", "b\r": "x"}]
    with pytest.raises(KeyError):
        output.table_of([{"a": 1}, {"b": 2}])


def test_a_csv_is_written_by_one_function_alone():
    writers = [
        str(file.relative_to(ROOT))
        for wing in ("tqa_jax", "extract", "experiments", "configs")
        for file in (ROOT / wing).rglob("*.py")
        if any(name in file.read_text("utf-8") for name in ("csv.writer", "DictWriter"))
    ]
    assert writers == ["tqa_jax/output.py"]


_TRY = """
import pathlib, sys
from tqa_jax import output, schema
try:
    with output.lock(pathlib.Path(sys.argv[1]), wait="wait" in sys.argv):
        print("locked", flush=True)
        if "hold" in sys.argv:
            sys.stdin.read()
except schema.InputError as error:
    sys.exit(str(error))
"""


def _start(lock, *words, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", _TRY, str(lock), *words],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _check_a_second_process_is_refused_or_waits(lock, **environment):
    first = _start(lock, "hold", **environment)
    assert first.stdout.readline() == "locked\n"
    second = _start(lock, **environment)
    assert second.communicate() == (
        "",
        f"another process works in {lock.parent}; wait for it, or choose another "
        "folder\n",
    )
    third = _start(lock, "wait", **environment)
    with pytest.raises(subprocess.TimeoutExpired):
        third.wait(2)
    first.kill()  # a dead process lets go
    first.communicate()
    assert third.communicate()[0] == "locked\n"


def test_a_second_process_is_refused_or_waits(tmp_path):
    _check_a_second_process_is_refused_or_waits(tmp_path / ".lock")


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for file in (tmp_path / "file" / ".lock", tmp_path / ("x" * 300)):
        with pytest.raises(schema.InputError, match="cannot be locked: [^\n]+$"):
            with output.lock(file):
                pass


@pytest.fixture(scope="module")
def nfs(tmp_path_factory):
    """Library that gives flock the rules of an NFSv4 client."""
    if not SHIM.is_file() or shutil.which("gcc") is None:
        pytest.skip(f"needs gcc and {SHIM}: set TQA_SHARED")
    library = tmp_path_factory.mktemp("nfs") / "nfs.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, SHIM, "-ldl"], check=True)
    return str(library)


def test_locks_hold_where_a_file_must_be_open_for_writing(nfs, tmp_path):
    _check_a_second_process_is_refused_or_waits(
        tmp_path / ".lock", LD_PRELOAD=nfs, FLK_DIR_ERR=str(errno.EBADF)
    )


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
@pytest.mark.parametrize("words", [(), ("wait",)])
def test_a_disk_without_locks_is_one_line(nfs, tmp_path, code, words):
    lock = tmp_path / ".lock"
    process = _start(lock, *words, LD_PRELOAD=nfs, FLK_ERR=str(code))
    written, message = process.communicate(timeout=60)
    assert (process.returncode, written) == (1, "")
    assert message.startswith(f"{lock} cannot be locked: {os.strerror(code)}; choose")
    assert message.count("\n") == 1


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, pathlib.Path.replace

    def syncing(handle):
        events.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def replacing(part, path):
        events.append("replace")
        return replace(part, path)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(pathlib.Path, "replace", replacing)
    output.write(tmp_path / "a.txt", "text")
    part, *rest = events
    assert part.startswith(str(tmp_path / "a.txt.")) and part.endswith(".part")
    assert rest == ["replace", str(tmp_path)]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with output.atomic(path) as one, output.atomic(path) as other:
        one.write_text("first")
        other.write_text("second")
    assert path.read_text() == "first" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("keep", [0, 0.5, None])
def test_damaged_arrays_are_one_line(tmp_path, keep):
    path = tmp_path / "a.npz"
    output.write_arrays(path, a=np.arange(1000) ** 2)
    content = path.read_bytes()
    garbage = bytes(len(content)) if keep is None else content[: int(keep * 1000)]
    path.write_bytes(garbage)
    with pytest.raises(schema.InputError, match="a.npz is damaged: [^\n]*$"):
        output.read_arrays(path)
