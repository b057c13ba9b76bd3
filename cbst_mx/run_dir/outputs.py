"""Records of a run as they are read: none is believed that is not what its step wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

from cbst_mx.errors import RunError
from cbst_mx.files import file_digest, in_one_line, read_mapping, reading
from cbst_mx.messages import listed
from cbst_mx.run_dir.folder import RunDir
from cbst_mx.run_dir.ledger import Ledger
from cbst_mx.run_dir.stage import StageDir

__all__ = ["Outputs", "judged_files"]


def judged_files(stage: StageDir) -> dict[str, str]:
    """Return name to SHA-256 of the files that the judgement in a stage's ``guard.json`` is made from.

    Raises
    ------
    RunError
        If one cannot be read.
    """
    found = {}
    for path in (stage.image_statistics, stage.target_predictions, stage.thresholds):
        if path.is_file():
            with reading(str(path), RunError):
                found[path.name] = file_digest(path)
    return found


class Outputs:
    """The files that the steps of a run wrote, for whoever reads them: they are compared with the ledger before.

    Parameters
    ----------
    folder : RunDir
        The run folder; without a ledger nothing is compared.
    """

    def __init__(self, folder: RunDir):
        self._folder = folder
        self._stamp: tuple[int, int] | None = None  # of the ledger that was read
        self._known: dict[Path, tuple[str, str]] = {}  # file to the step that wrote it and its SHA-256

    def check(self, path: Path) -> None:
        """Refuse a file that is not what the step of the ledger wrote that has it.

        Raises
        ------
        RunError
            If it was altered, or the ledger is damaged.
        """
        step, sha256 = self._read().get(path, ("", ""))
        try:
            if sha256 and path.is_file() and file_digest(path) != sha256:
                raise RunError(
                    f"{path} is altered, it is not what the step {step} wrote: put it back from a copy, or make it "
                    f"again by cbst-mx run; cbst-mx verify {self._folder.path} names all such files"
                )
        except OSError as error:
            raise RunError(f"{path} cannot be read: {in_one_line(error)}") from error

    def read(self, path: Path) -> dict[str, Any]:
        """Read a JSON file of names and values.

        Raises
        ------
        RunError
            If it is missing, damaged, something else, or not what its step wrote.
        """
        self.check(path)
        return read_mapping(path)

    def read_summary(self, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Read the summary of a run, of which these are the stages as their own files have them.

        Raises
        ------
        RunError
            If it is missing or damaged, or has other numbers; words may be another version's. A summary alone, without
            the stages' own files, is read as it is.
        """
        self.check(self._folder.summary)
        found = read_mapping(self._folder.summary, finite=False)  # check-paper judges what is not
        there = found.get("stages")
        if stages and (not isinstance(there, list) or list(map(_numbers, there)) != list(map(_numbers, stages))):
            raise RunError(f"{self._folder.summary} has other results than the stages: cbst-mx run writes it anew")
        return found

    def read_judgement(self, stage: StageDir) -> dict[str, Any]:
        """Read the judgement of the guard in the folder of a stage; empty where there is none.

        Raises
        ------
        RunError
            If it is damaged, or of other files than there are.
        """
        if not stage.guard.is_file():
            return {}
        found = self.read(stage.guard)
        now = judged_files(stage)
        of = found.get("of", now)  # earlier versions did not say
        if stage.thresholds.name in of and not stage.thresholds.is_file():  # what it judged is being made again
            return {}
        if of != now:
            names = [name for name in {**now, **of} if now.get(name) != of.get(name)]
            raise RunError(
                f"{stage.guard} is of another {listed(names, 3)} than there is: cbst-mx run in the folder judges again"
            )
        return found

    def _read(self) -> dict[Path, tuple[str, str]]:
        try:
            status = self._folder.ledger.stat()
        except FileNotFoundError:
            return {}
        stamp = status.st_mtime_ns, status.st_ino
        if stamp != self._stamp:
            last = {entry.step: entry for entry in Ledger(self._folder).entries}
            entries = [entry for entry in last.values() if entry.end]  # another may be making the others again
            self._known = {
                self._folder.path / name: (entry.step, record["sha256"])
                for entry in entries
                for name, record in entry.outputs.items()
            }
            self._stamp = stamp
        return self._known


def _numbers(stage: Any) -> Any:
    return {**stage, "warnings": None} if isinstance(stage, dict) else None
