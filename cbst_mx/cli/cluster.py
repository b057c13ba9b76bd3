"""``--cluster``, the option of every command whose work other processes may share, and the commands ``cluster``."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator

import click

from cbst_mx.cli.base import FOLDER, echo

if TYPE_CHECKING:
    from cbst_mx.cluster import Cluster

__all__ = ["COMMANDS", "cluster_options", "opened"]

_OPTIONS = (
    click.option(
        "--cluster",
        "cluster",
        metavar="WHERE",
        help="Share the work: local:N processes, tls://HOST:PORT of a scheduler, or a YAML file of dask-jobqueue.",
    ),
    click.option("--tls", type=FOLDER, help="Folder of `cluster certificates`, for --cluster tls://HOST:PORT."),
    click.option("--insecure", is_flag=True, help="Let --cluster tcp://HOST:PORT leave this machine, unencrypted."),
)


def cluster_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name a cluster; the function gets what they name as `where`, None without."""

    @functools.wraps(function)
    def command(*arguments: Any, cluster: str | None, tls: Path | None, insecure: bool, **options: Any) -> None:
        function(*arguments, where=_where(cluster, tls, insecure), **options)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _where(cluster: str | None, tls: Path | None, insecure: bool) -> Any:
    if cluster is None:
        if tls is not None or insecure:
            raise click.UsageError(f"{'--tls' if tls is not None else '--insecure'} needs --cluster")
        return None
    from cbst_mx.cluster import Where

    return Where.parse(cluster, certificates=tls, insecure=insecure)


@contextlib.contextmanager
def opened(where: Any, *, threads: int = 1, trainers: int = 0) -> Iterator[Cluster | None]:
    """Open the cluster that is named, for the time of the block.

    `threads` as for :func:`.cluster.open_cluster`; so many processes of it are `trainers`.
    """
    if where is None:
        yield None
        return
    from cbst_mx.cluster import KVStore, open_cluster

    with open_cluster(where, threads=threads) as cluster:
        if trainers:
            cluster.together = KVStore(cluster, trainers)
        yield cluster


@click.group()
def cluster() -> None:
    """Make what a cluster of your own needs: certificates, a scheduler, workers.

    The three programs (scheduler, workers, the command that is given --cluster) know each other by the certificates of
    one folder, which all of them must read and nobody else may. They must have the same versions of cbst-mx, of
    distributed and of Python, and see the files of the work under the same path.
    """


@cluster.command()
@click.argument("folder", type=FOLDER)
@click.option("--days", default=90, show_default=True, type=int, help="How long they are valid.")
def certificates(folder: Path, days: int) -> None:
    """Make FOLDER with an authority, a certificate and its key, for the programs of one cluster.

    Writes FOLDER/ca.pem, certificate.pem and key.pem. Whoever can read the key can run programs as you.
    """
    from cbst_mx.cluster.certificates import make_certificates
    from cbst_mx.cluster.nodes import need_distributed

    need_distributed("cluster certificates")
    end = make_certificates(folder, days)
    echo(f"certificates in {folder}, valid until {end:%Y-%m-%d %H:%M} UTC; keep the folder to yourself")


@cluster.command()
@click.argument("address", metavar="tls://HOST:PORT")
@click.option("--tls", type=FOLDER, help="Folder of `cluster certificates`.")
@click.option("--insecure", is_flag=True, help="Listen at tcp://HOST:PORT, unencrypted, on a network.")
def scheduler(address: str, tls: Path | None, insecure: bool) -> None:
    """Be the scheduler of a cluster, listening on HOST only; ends by Ctrl-C or SIGTERM.

    HOST is an address of this machine: of the network that the workers are in.
    """
    from cbst_mx.cluster.nodes import serve_scheduler
    from cbst_mx.cluster.where import check_address

    host, _, port = check_address(address, tls, insecure).partition("://")[2].rpartition(":")
    serve_scheduler(f"{address.partition(':')[0]}://{host}", int(port), tls)


@cluster.command()
@click.argument("address", metavar="tls://HOST:PORT")
@click.option("--tls", type=FOLDER, help="Folder of `cluster certificates`.")
@click.option("--insecure", is_flag=True, help="Use tcp://HOST:PORT of a network, unencrypted.")
@click.option("--host", help="Address of this machine to listen on. Default: the one from which HOST is reached.")
@click.option("--threads", default=0, type=click.IntRange(0), help="Threads within a task. Default: the cores.")
def worker(address: str, tls: Path | None, insecure: bool, host: str | None, threads: int) -> None:
    """Be a worker of the scheduler at tls://HOST:PORT, one task at a time; ends by Ctrl-C or SIGTERM, or with it.

    Start one for each GPU, or for each group of cores that --threads names.
    """
    from cbst_mx.cluster.nodes import serve_worker
    from cbst_mx.cluster.where import check_address

    serve_worker(check_address(address, tls, insecure), tls, host=host, threads=threads)


COMMANDS = (cluster,)
