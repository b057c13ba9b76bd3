"""The names of a run folder's files, and its manifest.

::

    OUT/
      experiment.yaml            the experiment as it was run (all defaults written out)
      manifest.json              its hash and seed, versions, inputs
      ledger.jsonl               a line per step: digests of what it was made from and of what it wrote, settings, times
      inputs.json                digest, size and time of every image and label
      log.txt                    every line the run logged
      lock                       while a command works in the folder: which process on which computer
      spatial_prior.npz          the spatial prior (CBST-SP only)
      source/
        checkpoint.params        parameters and momentum while training goes on, and checkpoint.previous.params from
                                 before; removed at its end. warm_up.params in the warm-up
        parameters.params        the network, with its sidecar parameters.params.json
        training.json            losses and settings of the training, written last
        confusion.npz            confusion matrices per validation set and image, with the names of classes and images
        predictions.npz          predicted classes of the target images on a grid (without a validation set)
        label_free.json          class shares, confidence and moved pixels (without a validation set)
        shown.npz                predictions on some images, small, and how often each level of confidence is right
        evaluation.json          IoU per class and mIoU per validation set, written last
        snapshots/epoch-N/       the source network after N epochs, with confusion, evaluation and label_free
      round-1/                   the same, and
        maps.part/               the network's output while pseudo-labels are made; removed at their end
        pseudo_labels/NAME.png   trainIds with palette, 255 = not selected
        image_statistics.npz     predicted pixels and confidences per target image and class
        target_predictions.npz   predicted classes of the target images on a grid, by the network of the stage before
        guard.json               what the guard says of that network and of the pseudo-labels, before training
        rollback.json            how often the round was trained anew, and why (only where it was)
        thresholds.json          thresholds, counts and kept pixels, written last
      round-2/ ...
      last/                      image_statistics, target_predictions and guard of the network of the last round
      summary.json               IoU per class and mIoU after the source training and after every round

A step is done when the JSON file it writes last is there, so a killed run starts again at the step it was in.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import platform
import re
import uuid
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import cbst_mx
from cbst_mx.errors import RunError, StoppedError
from cbst_mx.files import (
    digest_of,
    file_digest,
    read_bounded,
    read_json,
    read_mapping,
    reading,
    remove_empty_folder,
    remove_file,
    remove_leftovers,
    write_json,
    write_text,
)
from cbst_mx.run_dir.links import check_links
from cbst_mx.run_dir.lock import LOCK, Lock, lock_folder
from cbst_mx.run_dir.log import log_end, open_log
from cbst_mx.run_dir.stage import StageDir

__all__ = ["RunDir", "new_manifest", "versions"]

logger = logging.getLogger(__name__)


_CPUINFO = Path("/proc/cpuinfo")
# MXNet's libraries choose their kernels by these, and other kernels add up in another order; the widest first.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "avx", "sse4_1")


def _processor() -> str:
    """Return model and widest vector instructions of the processor."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in _CPUINFO.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            told.setdefault(key.strip(), value.strip())
    flags = told.get("flags", "").split()
    widest = next((name for name in _INSTRUCTIONS if name in flags), "")
    return ", ".join(filter(None, (told.get("model name") or platform.processor() or platform.machine(), widest)))


def versions() -> dict[str, str]:
    """Return the versions of what can change the numbers of a run, and the processor."""
    found = {"python": platform.python_version(), "cbst_mx": cbst_mx.__version__, "processor": _processor()}
    for name in ("mxnet", "mxnet-cu112", "numpy", "opencv-python", "scipy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def new_manifest(
    experiment_text: str, *, identity: Mapping[str, Any], inputs: Mapping[str, Any], run_id: str = ""
) -> dict[str, Any]:
    """Return the manifest of a run that begins, as JSON values.

    Parameters
    ----------
    experiment_text, identity, inputs
        As for :meth:`RunDir.open`.
    run_id : str
        Id of the run; a new one where there is none.
    """
    return {
        "name": identity.get("name"),
        "id": run_id or uuid.uuid4().hex,
        "config_sha256": digest_of(identity),
        "experiment_sha256": hashlib.sha256(experiment_text.encode()).hexdigest(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "inputs": dict(inputs),
        "versions": versions(),
    }


def _holds_text(path: Path, text: str) -> bool:
    with contextlib.suppress(OSError):
        return read_bounded(path, len(text.encode())) == text.encode()
    return False


class RunDir:
    """Paths of one run folder.

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._logging = False
        self._is_new = False  # made by this object
        self._lock: Lock | None = None  # held by what goes on in the folder, not by what reads it

    @classmethod
    def open(
        cls,
        path: Path,
        experiment_text: str,
        *,
        identity: Mapping[str, Any],
        inputs: Mapping[str, Any],
        compare: Callable[[RunDir], None] | None = None,
    ) -> RunDir:
        """Create the run folder, or go on in it when it is this run's.

        Parameters
        ----------
        path : Path
            The folder; made when it does not exist.
        experiment_text : str
            The experiment with all defaults, as YAML.
        identity : mapping
            Settings that tell this run from others, as JSON values; their hash is kept in the manifest.
        inputs : mapping
            Facts about the inputs (such as the numbers of images), for the record.
        compare : callable, optional
            Called with a folder that is continued, locked, before anything in it is written; raises RunError where the
            experiment would have made what is finished otherwise. Without it only the same settings continue.

        Raises
        ------
        RunError
            If the folder belongs to another run or holds something else, or another process works in it.
        """
        run = cls(path)
        if not run.manifest.is_file() and run.path.exists() and not run._is_begun(experiment_text):
            raise RunError(f"output folder {run.path} is not empty and not a run folder: give a new or empty folder")
        if run.path.is_dir():
            check_links(run.path)
        run._lock = lock_folder(run.path)
        digest = digest_of(identity)
        for first in (run.experiment, run.manifest):
            remove_leftovers(run.path, first.name)
        stored = run._stored(compare is not None) if run.manifest.is_file() else None
        if run.manifest.is_file():
            if compare is not None:
                compare(run)
            elif stored is not None and stored["config_sha256"] != digest:
                raise RunError(
                    f"output folder {run.path} belongs to another run (experiment {stored.get('name')!r}, "
                    f"{stored.get('created')}): give an empty folder, or that experiment unchanged to continue it"
                )
            remove_leftovers(run.path, owned=run._lock.works, below=True)
        facts = dict(inputs)
        if stored is not None:
            known = stored.get("inputs")
            facts.update(known if isinstance(known, dict) else {})  # the prior is that of the beginning, ...
            facts.update({"images": inputs["images"]} if "images" in inputs else {})  # ... the images are today's
        manifest = new_manifest(experiment_text, identity=identity, inputs=facts, run_id=run._id_in_ledger())
        if stored is not None:
            present = {key: manifest[key] for key in ("name", "config_sha256", "experiment_sha256", "inputs")}
            manifest = {**{"id": manifest["id"]}, **stored, **present}
        begun = run.manifest.is_file()
        run._is_new = not begun
        if begun and not _holds_text(run.experiment, experiment_text):  # continued otherwise, damaged, or killed
            write_text(run.experiment, experiment_text)
        if manifest != stored:
            write_json(run.manifest, manifest, sealed=True)  # of a new run first: with it the folder is this run's
        if not begun:
            write_text(run.experiment, experiment_text)
        return run

    def withdraw(self) -> None:
        """Remove the folder where it was made anew and no step has begun: a step that cannot be done leaves nothing."""
        first = {self.experiment.name, self.manifest.name, self.log.name}
        if not self._is_new or not {path.name for path in self.path.iterdir()} <= {*first, LOCK}:
            return
        with contextlib.suppress(OSError, RunError):  # the error that led here is the one to tell
            for name in first:
                remove_file(self.path / name)
            if self._lock is not None:
                self._lock.release()
            remove_empty_folder(self.path)

    def _stored(self, rebuilt: bool) -> dict[str, Any] | None:
        """Return the manifest; None of a damaged one that can be written anew, since the ledger knows the run."""
        try:
            stored = read_json(self.manifest)
            if not isinstance(stored, dict) or "config_sha256" not in stored:
                raise RunError(
                    f"{self.manifest} is no record of a run: it must hold names and values, and config_sha256"
                )
            return stored
        except RunError as error:
            if rebuilt and self._id_in_ledger():
                logger.warning("%s; it is written anew", error)
                return None
            raise RunError(f"{error}; put it back from a copy, or give a new folder") from error

    def _id_in_ledger(self) -> str:
        """Return the id of the run that the ledger's last line has; empty where it has none."""
        try:
            found = re.findall(rb'"run": "([0-9a-f]{32})"', self.ledger.read_bytes())
        except OSError:
            return ""
        return found[-1].decode() if found else ""

    @property
    def run_id(self) -> str:
        """What tells this run from others: the id in its manifest; empty where that has none or cannot be read."""
        try:
            value = read_mapping(self.manifest).get("id", "")
        except RunError:
            return ""
        return value if isinstance(value, str) else ""

    def check_experiment(self) -> None:
        """Refuse an ``experiment.yaml`` that is not what the manifest says was run, or a damaged manifest.

        Raises
        ------
        RunError
            If one of them was altered; the next run in the folder writes them anew.
        """
        if not self.manifest.is_file():
            return
        way = "the next cbst-mx run in the folder writes it anew"
        try:
            stored = read_json(self.manifest)
        except RunError as error:
            raise RunError(f"{error}: {way}") from error
        expected = stored.get("experiment_sha256") if isinstance(stored, dict) else None
        with reading(self.experiment, RunError):
            altered = self.experiment.is_file() and file_digest(self.experiment) != expected
        if isinstance(expected, str) and altered:
            raise RunError(f"{self.experiment} is not what {self.manifest.name} says was run: {way}")

    def _is_begun(self, experiment_text: str) -> bool:
        """Return whether the folder is empty, or holds only this experiment, which earlier versions wrote first."""
        if not self.path.is_dir():
            return False
        begun = re.compile(rf"{LOCK}|\.({self.manifest.name}|{self.experiment.name})\.[0-9]+\.part")
        content = [path for path in self.path.iterdir() if not begun.fullmatch(path.name)]
        return not content or (content == [self.experiment] and _holds_text(self.experiment, experiment_text))

    @property
    def experiment(self) -> Path:
        """The experiment as it was run."""
        return self.path / "experiment.yaml"

    @property
    def manifest(self) -> Path:
        """Hash, versions and inputs."""
        return self.path / "manifest.json"

    @property
    def ledger(self) -> Path:
        """One line per step that began or was finished, see `ledger`."""
        return self.path / "ledger.jsonl"

    @property
    def inputs(self) -> Path:
        """Digest, size and time of change of every image and label that a step has used."""
        return self.path / "inputs.json"

    @property
    def log(self) -> Path:
        """Every line the run logged."""
        return self.path / "log.txt"

    @property
    def summary(self) -> Path:
        """Results of all stages."""
        return self.path / "summary.json"

    @property
    def spatial_prior(self) -> Path:
        """The spatial prior q_n(c), float32 (C, H, W), key ``prior``."""
        return self.path / "spatial_prior.npz"

    @property
    def config_hash(self) -> str:
        """SHA-256 of the experiment."""
        return str(read_json(self.manifest)["config_sha256"])

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Write what the package logs into the log file while the (outermost) block runs, and what ends it early."""
        if self._logging:
            yield
            return
        try:
            handler = open_log(self.log)
        except OSError as error:
            raise RunError(f"cannot write {self.log}: {error.strerror or error}") from error
        self._logging = True
        package = logging.getLogger("cbst_mx")
        level = package.level
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        try:
            yield
        except BaseException as error:
            if isinstance(error, StoppedError):
                error.keep("steps")
            log_end(handler, error)
            raise
        finally:
            self._logging = False
            package.removeHandler(handler)
            package.setLevel(level)
            with contextlib.suppress(OSError):  # what it could not write before
                handler.close()

    def snapshot(self, epoch: int) -> StageDir:
        """Return the folder of the source network after `epoch` epochs."""
        return StageDir(self.stage(0).path / "snapshots" / f"epoch-{epoch}")

    def snapshots(self) -> list[int]:
        """Return the epochs after which the source network was kept, in their order."""
        names = [path.parent.name[len("epoch-") :] for path in self.path.glob("source/snapshots/epoch-*/*.params")]
        return sorted(int(name) for name in names if name.isdecimal())

    @property
    def last(self) -> StageDir:
        """The folder of what the network of the last round predicts on the target, and of the judgement on it."""
        return StageDir(self.path / "last")

    def stage(self, index: int) -> StageDir:
        """Return the folder of the source network (`index` 0) or of round `index` (1, 2, ...)."""
        return StageDir(self.path / ("source" if index == 0 else f"round-{index}"))
