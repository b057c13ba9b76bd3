"""The ledger of a run folder: what every step was made from, and what it wrote.

``ledger.jsonl`` has one line, a JSON object, when a step begins and one when it is finished; of several lines of a step
the last counts. A finished step's line has

* ``step``, ``begun`` and ``end`` (ISO 8601, UTC), ``seed``, ``versions``, ``threads``;
* ``keys``: the settings that can change the step, with their values; ``keys_sha256``, their SHA-256, and
  ``line_sha256``, that of the whole line;
* ``inputs``: SHA-256 of what it was made from, by name;
* ``outputs``: SHA-256, bytes and time of change of every file that it wrote; of a folder one SHA-256 over names and
  contents.

A line with the note "rolled back" says that what was finished before it counts no more.

The file is replaced as a whole, and the disk has it before the next step begins. If a disk has lost its end all the
same, the lines before it hold: a step without a line is taken as it is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Mapping, Sequence

from cbst_mx.errors import RunError
from cbst_mx.files import digest_of, file_digest, in_one_line, parse_json, read_bounded, write_text
from cbst_mx.messages import counted
from cbst_mx.run_dir.folder import RunDir, versions
from cbst_mx.run_dir.links import below, leads_out
from cbst_mx.run_dir.rollbacks import find_unfinished, rejected_steps
from cbst_mx.run_dir.steps import Step

__all__ = ["Entry", "Ledger", "now", "output_record"]

_SMALL = 1 << 20  # bytes of files that are read each time, whatever their time of change
_LARGEST = 64 << 20  # bytes of a ledger
_MOST_LINES = 100_000  # a run of 1,000 rounds has 6,000
_VOID = "rolled back"  # note of the line by which a step counts as not done


def now() -> str:
    """Return the time, UTC, as text."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Entry:
    """What the ledger says of a step.

    Attributes
    ----------
    step : str
        Name of the step.
    begun : str
        When.
    end : str, optional
        When it was finished; None of a step that only began.
    seed : int
        Seed of the run.
    keys : dict
        Settings that can change it.
    inputs : dict
        Name to SHA-256.
    outputs : dict
        Path in the run folder to what :func:`output_record` says.
    versions, threads
        What it was made with.
    note : str
        How it came into the ledger, where no step wrote it: "adopted", "branch of" another run, or "rolled back".
    run : str
        Id of the run, as in its manifest; empty in lines of earlier versions.
    """

    step: str
    begun: str
    seed: int
    keys: dict[str, Any]
    inputs: dict[str, str]
    end: str | None = None
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    threads: str = field(default_factory=lambda: os.environ.get("OMP_NUM_THREADS", "default"))
    host: str = field(default_factory=platform.node)
    note: str = ""
    run: str = ""

    def to_line(self) -> str:
        """Return the line of the ledger."""
        values = {**asdict(self), "keys_sha256": digest_of(self.keys)}
        return json.dumps({**values, "line_sha256": digest_of(values)}, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Entry:
        """Read a line of the ledger.

        Raises
        ------
        ValueError
            If it is none, or was altered.
        """
        values = parse_json(line)
        whole = values.pop("line_sha256", None) if isinstance(values, dict) else None
        if whole is not None and whole != digest_of(values):
            raise ValueError("it was altered")
        if not isinstance(values, dict) or digest_of(values.get("keys")) != values.pop("keys_sha256", None):
            raise ValueError("it is no record of a step, or was altered")
        entry = cls(**values)
        texts = (entry.step, entry.threads, entry.host, entry.note, *entry.inputs.values(), *entry.versions.values())
        if not all(isinstance(text, str) for text in texts) or not isinstance(entry.seed, int):
            raise ValueError("it is no record of a step")
        for time in (entry.begun, entry.end):
            if time is not None and datetime.fromisoformat(time).utcoffset() is None:
                raise ValueError(f"{time[:40]!r} is no time with a zone")
        for name, record in entry.outputs.items():
            below(Path(), name)
            if not (isinstance(record["sha256"], str) and type(record["bytes"]) is int):
                raise ValueError("it is no record of a step")
        return entry


class Ledger:
    """The ledger of one run folder.

    Parameters
    ----------
    folder : RunDir
        The run folder.

    Attributes
    ----------
    entries : list of Entry
        Its lines.
    torn : bool
        Whether its last line is cut off, and left out.
    rejected : set of str
        Names of the steps that a rollback rejects which has begun and is not done.

    Raises
    ------
    RunError
        If the file is damaged otherwise, or of another run.
    """

    def __init__(self, folder: RunDir):
        self.folder = folder
        self.entries: list[Entry] = []
        self.torn = False
        self.rejected = {step.name for index in find_unfinished(folder) for step in rejected_steps(folder, index)}
        if not folder.ledger.exists():
            return
        way = "put it back from a copy, or remove it, and the steps are taken as they are found"
        try:
            self._read(read_bounded(folder.ledger, _LARGEST).decode("utf-8").splitlines(keepends=True))
        except (OSError, ValueError) as error:
            raise RunError(f"{folder.ledger} is damaged ({in_one_line(error)}): {way}") from error
        own = folder.run_id
        if own and (other := next((entry.run for entry in self.entries if entry.run not in ("", own)), None)):
            raise RunError(
                f"{folder.ledger} is of another run ({other}) than {folder.manifest.name} ({own}): put the right ones "
                f"back from a copy, or remove {folder.ledger.name}, and the steps are taken as they are found"
            )

    def _read(self, lines: list[str]) -> None:
        if len(lines) > _MOST_LINES:
            raise ValueError(f"it has {len(lines):,} lines, at most {_MOST_LINES:,} are read")
        for number, line in enumerate(lines, 1):
            try:
                self.entries.append(Entry.from_line(line))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                self.torn = number == len(lines) and not line.endswith("\n")
                if not self.torn:
                    raise ValueError(f"line {number}: {in_one_line(error)}") from error

    def finished(self, step: Step | str) -> Entry | None:
        """Return what was recorded when a step was last finished; None where it never was, or was rolled back."""
        name = step if isinstance(step, str) else step.name
        last = next((entry for entry in reversed(self.entries) if entry.step == name and entry.end), None)
        return None if last is None or last.note == _VOID or name in self.rejected else last

    def begun(self, step: Step) -> Entry | None:
        """Return what was recorded when a step began that has not been finished since."""
        last = next((entry for entry in reversed(self.entries) if entry.step == step.name), None)
        return None if last is None or last.end else last

    def append(self, *entries: Entry) -> None:
        """Write further lines; a step that begins anew takes the place of the line with which it began before."""
        new = {entry.step for entry in entries}
        kept = [entry for entry in self.entries if entry.end or entry.step not in new]
        self._write([*kept, *entries])

    def void(self, steps: Sequence[Step]) -> None:
        """Let finished steps count as not done; they are begun anew."""
        self.rejected.difference_update(step.name for step in steps)
        done = [entry for step in steps if (entry := self.finished(step)) is not None]
        if done:
            self.append(*(Entry(entry.step, now(), entry.seed, {}, {}, end=now(), note=_VOID) for entry in done))

    def update(self, entry: Entry) -> None:
        """Put an entry into the place of the last of its step."""
        places = [i for i, other in enumerate(self.entries) if other.step == entry.step and bool(other.end)]
        self._write([*self.entries[: places[-1]], entry, *self.entries[places[-1] + 1 :]])

    def _write(self, entries: list[Entry]) -> None:
        own = self.folder.run_id
        entries = [entry if entry.run == own else replace(entry, run=own) for entry in entries]
        write_text(self.folder.ledger, "".join(entry.to_line() for entry in entries))
        self.entries = entries

    def outputs(self, step: Step) -> dict[str, dict[str, Any]]:
        """Return what is there of a step's files.

        Raises
        ------
        RunError
            If one cannot be read.
        """
        found = {}
        for path in step.files:
            try:
                if path.exists():
                    found[self._name(path)] = output_record(path)
            except OSError as error:
                raise RunError(f"{error.filename or path} cannot be read: {in_one_line(error)}") from error
        return found

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder.path).as_posix()

    def problems(self, step: Step | Entry, *, full: bool = False) -> dict[Path, str]:
        """Return the files of a finished step that are not what the ledger says, each with a sentence.

        Parameters
        ----------
        step : Step or Entry
            The step; one that the ledger does not have has no problem.
        full : bool
            Read all files. Else those above 1 MB whose size and time of change are as recorded are taken as unaltered.
        """
        entry = step if isinstance(step, Entry) else self.finished(step)
        found: dict[Path, str] = {}
        refreshed: dict[str, dict[str, Any]] = {}
        for name, record in {} if entry is None else entry.outputs.items():
            path = self.folder.path / name
            problem = self._problem(name, path, record, full, refreshed)
            if problem is not None:
                found[path] = problem
        if entry is not None and refreshed and not found:
            entry.outputs.update(refreshed)  # not read again the next time; written with the next line
        return found

    def _problem(
        self, name: str, path: Path, record: Mapping[str, Any], full: bool, refreshed: dict[str, dict[str, Any]]
    ) -> str | None:
        if not path.exists():
            return f"{name} is missing"
        if leads_out(path, self.folder.path):
            return f"{name} is a link that leads out of the run folder"
        try:
            if not full and record["bytes"] > _SMALL and _times(path) == (record["bytes"], record.get("time")):
                return None
            there = output_record(path)
        except OSError as error:
            return f"{name} cannot be read ({in_one_line(error)})"
        if there["sha256"] == record["sha256"]:
            refreshed[name] = there
            return None
        if "files" in record and there.get("files") != record["files"]:
            return f"{name} has {counted(there.get('files', 0), 'file')} in place of {record['files']}"
        return f"{name} is " + ("empty" if not there["bytes"] else "altered")


def output_record(path: Path) -> dict[str, Any]:
    """Return SHA-256, bytes and time of change of a file, or of a folder as a whole (names and contents).

    Hidden files of a folder, and what is in folders inside it, do not count.

    Raises
    ------
    OSError
        If something cannot be read.
    """
    size, time = _times(path)
    if not path.is_dir():
        return {"sha256": file_digest(path), "bytes": size, "time": time}
    digest = hashlib.sha256()
    files = _files(path)
    for file in files:
        digest.update(f"{file_digest(file)} {file.name}\n".encode("utf-8", "surrogateescape"))
    return {"sha256": digest.hexdigest(), "bytes": size, "time": time, "files": len(files)}


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))


def _times(path: Path) -> tuple[int, str]:
    """Return bytes and time of change (in ns) of a file; of a folder their sum, and a digest of all times."""
    if not path.is_dir():
        status = path.stat()
        return status.st_size, str(status.st_mtime_ns)
    found = [(file.name, file.stat()) for file in _files(path)]
    stamps = "\n".join(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in found)
    return sum(status.st_size for _, status in found), hashlib.sha256(
        stamps.encode("utf-8", "surrogateescape")
    ).hexdigest()[:32]
