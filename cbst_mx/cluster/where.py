"""Which cluster is meant: ``local:N``, an address, or a file of dask-jobqueue's own keys."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbst_mx.errors import ConfigError
from cbst_mx.strict_yaml import read_yaml

__all__ = ["BATCH_SYSTEMS", "MOST", "JobQueue", "Where", "is_loopback", "read_job_queue"]

MOST = 1000  # workers that are asked for
_ADDRESS = re.compile(r"(tls|tcp)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_ALLOWED = "local:N, tls://HOST:PORT, or a YAML file of dask-jobqueue"

#: dask-jobqueue's section to its class.
BATCH_SYSTEMS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
    "oar": "OARCluster",
    "moab": "MoabCluster",
    "htcondor": "HTCondorCluster",
    "local": "LocalCluster",
}


@dataclass(frozen=True)
class Where:
    """A cluster that is to be opened.

    Attributes
    ----------
    workers : int
        Workers to start on this machine; 0 where another cluster is meant.
    address : str
        Of a scheduler that is there; empty where another cluster is meant.
    file : Path or None
        Description of the jobs of a batch system.
    certificates : Path or None
        Folder of ``cluster certificates``.
    """

    workers: int = 0
    address: str = ""
    file: Path | None = None
    certificates: Path | None = None

    @classmethod
    def parse(cls, text: str, *, certificates: Path | None = None, insecure: bool = False) -> Where:
        """Return the cluster that a text names.

        Parameters
        ----------
        text : str
            ``local:N``, ``tls://HOST:PORT``, ``tcp://HOST:PORT`` or the path of a YAML file.
        certificates : Path, optional
            Folder of the certificates, which ``tls://`` needs.
        insecure : bool
            Whether ``tcp://`` may leave this machine.

        Raises
        ------
        ConfigError
            If it is none of them, or not safe.

        Examples
        --------
        >>> Where.parse("local:4").workers
        4
        >>> Where.parse("local:0")
        Traceback (most recent call last):
        cbst_mx.errors.ConfigError: cluster local:N must have N from 1 to 1,000 workers, got '0'
        """
        kind, colon, rest = text.partition(":")
        if kind == "local" and colon:
            if not re.fullmatch("[0-9]{1,9}", rest) or not 1 <= int(rest) <= MOST:
                raise ConfigError(f"cluster local:N must have N from 1 to {MOST:,} workers, got {rest[:40]!r}")
            return cls(workers=int(rest))
        if text.startswith(("tls://", "tcp://")):
            return cls(address=check_address(text, certificates, insecure), certificates=certificates)
        if text.lower().endswith((".yaml", ".yml")):
            return cls(file=Path(text), certificates=certificates)
        raise ConfigError(f"cluster must be {_ALLOWED}, got {text[:80]!r}")


def check_address(address: str, certificates: Path | None, insecure: bool) -> str:
    """Return the address of a scheduler; refuse one that is none, or that is not safe.

    Raises
    ------
    ConfigError
        If it is refused.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or not 1 <= int(found.group(3)) < 1 << 16:
        raise ConfigError(f"cluster must be {_ALLOWED}, got {address[:80]!r}")
    encrypted = found.group(1) == "tls"
    if encrypted and certificates is None:
        raise ConfigError(f"cluster {address} needs the folder of its certificates: give --tls FOLDER")
    if not encrypted and certificates is not None:
        raise ConfigError(f"cluster {address} uses no certificates: give tls://, or no --tls")
    if not encrypted and not insecure and not is_loopback(found.group(2)):
        raise ConfigError(
            f"cluster {address} is not encrypted, and whoever connects can run programs: give tls:// with --tls "
            "FOLDER (cbst-mx cluster certificates makes it), or --insecure in a network where that does not matter"
        )
    return address


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine by its loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class JobQueue:
    """What a YAML file asks a batch system for.

    Attributes
    ----------
    system : str
        One of `BATCH_SYSTEMS`.
    section : dict
        Keys of that section, dask-jobqueue's own.
    workers : int
        Workers in all.
    """

    system: str
    section: dict[str, Any]
    workers: int


def read_job_queue(path: Path) -> JobQueue:
    """Read a file with one section of dask-jobqueue's configuration and the number of workers.

    Such as::

        jobqueue: {slurm: {cores: 4, processes: 1, memory: 24GB, walltime: "08:00:00", interface: ib0}}
        workers: 64

    Raises
    ------
    ConfigError
        If it is not such a file.
    """
    values = read_yaml(path)
    queue = values.get("jobqueue")
    if not isinstance(queue, dict) or len(queue) != 1 or not isinstance(next(iter(queue.values())), dict):
        raise ConfigError(
            f"{path} must hold jobqueue with one section of dask-jobqueue ({', '.join(BATCH_SYSTEMS)}), and workers"
        )
    ((system, section),) = queue.items()
    if system not in BATCH_SYSTEMS:
        raise ConfigError(f"{path}: jobqueue must hold one of {', '.join(BATCH_SYSTEMS)}, got {system!r}")
    workers = values.get("workers")
    if type(workers) is not int or not 1 <= workers <= MOST:
        raise ConfigError(f"{path}: workers must be a whole number from 1 to {MOST:,}, got {workers!r}")
    unknown = sorted(set(map(str, values)) - {"jobqueue", "workers"})
    if unknown:
        raise ConfigError(f"{path} must hold jobqueue and workers only, got {unknown[0]}")
    return JobQueue(system, section, workers)
