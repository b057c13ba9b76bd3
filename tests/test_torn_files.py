"""Files that were cut, altered or exchanged for another run's: noticed and named, or made again, never believed.

After a power cut a file that was just renamed may be a part of itself; disks flip bits; people copy files about.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.errors import CBSTError
from tests import small_runs
from tests.faults import Disk, Killed, attempt, contents

CUTS = ("0", "1", "half", "-1")
FLIPS = tuple(f"flip {seed}" for seed in range(6))
DAMAGES = (*CUTS, *FLIPS, "foreign")
KIND = "cbst-sp"
READERS = (("status",), ("status", "--json"), ("verify",), ("results",), ("results", "--snapshots"), ("diff",))
# What says nothing about results; `lock` is covered by test_lock.
LEFT_OUT = ("log.txt", "lock")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_runs.write_data(tmp_path_factory.mktemp("torn") / "data")


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """Return a function that gives a run folder by name: whole, foreign, or stopped on the way."""
    root, known = tmp_path_factory.mktemp("folders"), {}

    def of(name):
        if name not in known:
            out = root / name
            known[name] = out
            if name == "whole":
                small_runs.go(KIND, out, data)
            elif name == "foreign":
                small_runs.go(KIND, out, data, seed=1)
            else:
                stop_at(out, data, name)
        return known[name]

    return of


def stop_at(out, data, what):
    """Make the folder of a run that was killed as it renamed a file the second time in its round."""
    disk = Disk(out, fault="kill")
    place, times = what.split(":")
    seen = []

    def renamed(kind, name, before_death=None, call=disk.call):
        if kind == "rename" and name == place:
            seen.append(name)
            if len(seen) == int(times):
                disk.at = len(disk.calls) + 1
        call(kind, name, before_death)

    disk.call = renamed
    assert isinstance(attempt(lambda: small_runs.go(KIND, out, data), disk), Killed)


def damage(path, what, foreign):
    content = path.read_bytes()
    if what in CUTS:
        length = {"0": 0, "1": 1, "half": len(content) // 2, "-1": len(content) - 1}[what]
        path.write_bytes(content[:length])
    elif what == "foreign":
        path.write_bytes(foreign.read_bytes())
    else:
        rng = np.random.default_rng(int(what.split()[1]))
        changed = bytearray(content)
        changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(changed))
    return path.read_bytes() != content


def mentions(text, name):
    """Return whether a text names a file; of the many of a folder the folder, of the ledger's lines the ledger."""
    path = Path(name)
    folder = [path.parent.name] if path.suffix == ".png" else []
    return any(each in text for each in (path.name, path.stem if "ledger" in name else path.name, *folder))


def same(name, one, other):
    """Return whether two contents are the same; a line's end that JSON does not need does not count."""
    if one is None or other is None or not name.endswith(".json"):
        return one == other
    return one.rstrip() == other.rstrip()


def read(command, folder, whole):
    arguments = [command[0], str(folder), *command[1:]]
    if command[0] == "diff":
        arguments.append(str(whole))
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), (command, repr(result.exception))
    return result.exit_code, result.output.replace(str(folder), "RUN")


def check_readers(folder, whole, name, told):
    """Run the commands that read: they say what they always say, or name the file."""
    spoke = set()
    for command in READERS:
        code, output = read(command, folder, whole)
        if (code, output) != told[command]:
            assert mentions(output, name), (command, output, told[command][1])
            spoke.add(command[0])
    return spoke


def go_on(folder, data, expected, name):
    """Run what is left; the end is the same, or a sentence names the file, or the log does and it is of no use more."""
    error = attempt(lambda: small_runs.go(KIND, folder, data), Disk(folder))
    if error is not None:
        assert isinstance(error, CBSTError), repr(error)
        assert mentions(str(error), name), str(error)
        assert "\n" not in str(error)
        return str(error)
    found = contents(folder)
    other = [each for each in {**expected, **found} if not same(each, found.get(each), expected.get(each))]
    log = (folder / "log.txt").read_text()
    assert other in ([], [name]), (other, log[-2000:])
    assert not other or mentions(log, name), log[-2000:]
    return "left" if other else ""
