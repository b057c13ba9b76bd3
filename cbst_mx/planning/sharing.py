"""What a run costs whose work the workers of a cluster share, each on a machine like the one that is measured on."""

from __future__ import annotations

from typing import Iterator, NamedTuple

from cbst_mx.config import Experiment
from cbst_mx.errors import ConfigError
from cbst_mx.messages import counted
from cbst_mx.rounds.phases import check_batches
from symbols.backend import gluon

__all__ = ["ALONE", "Sharing"]


class Sharing(NamedTuple):
    """How many processes do the work, and what joins them.

    Attributes
    ----------
    processes : int
        Workers of the cluster, all of which train; 1: no cluster.
    mbit : float
        Speed of the network in 10^6 bits a second; 0: not known.
    """

    processes: int = 1
    mbit: float = 0.0

    def check(self, experiment: Experiment) -> None:
        """Refuse what no run could do.

        Raises
        ------
        ConfigError
            If a number is not allowed, or a batch has too few images.
        """
        if self.processes < 1:
            raise ConfigError(f"processes must be at least 1, got {self.processes}")
        if self.mbit < 0 or (self.mbit and self.processes == 1):
            raise ConfigError(
                f"a network is of two processes or more and has a speed above 0, got {self.mbit:g} Mbit/s"
            )
        if self.processes > 1:
            check_batches(experiment, self.processes)

    def part(self, batch: int) -> int:
        """Return how many crops of a batch the process with the most of them has."""
        return -(-batch // self.processes)

    def exchanged(self, network: gluon.HybridBlock) -> float:
        """Return the bytes that a machine sends in a step, and receives as well.

        Its process sends the gradient to the servers, which hold equal parts of it, and its server sends its part of
        the sum to all processes: of both stays what is for the machine itself.
        """
        trained = sum(
            parameter.data().size for parameter in network.collect_params().values() if parameter.grad_req != "null"
        )
        return 2 * 4 * trained * (self.processes - 1) / self.processes

    def exchange(self, network: gluon.HybridBlock) -> float:
        """Return the seconds that a step takes longer for it, at the full speed of the network."""
        return 8 * self.exchanged(network) / (1e6 * self.mbit) if self.mbit else 0.0

    def notes(self, network: gluon.HybridBlock) -> Iterator[str]:
        """Yield sentences on what is divided and what is not."""
        if self.processes == 1:
            return
        yield (
            f"{counted(self.processes, 'process', 'processes')}, each on a machine like this one: labels and test are "
            f"divided by {self.processes}, a training step is that of a part of the batch; not counted is that "
            "processes start, once for the cluster and in every training"
        )
        sent = f"in every step each machine sends and receives {self.exchanged(network) / 1e6:,.1f} MB"
        if self.mbit:
            seconds = self.exchange(network)
            yield f"{sent}, {seconds:.3g} s at {self.mbit:g} Mbit/s, which is counted; what ps-lite computes is not"
        else:
            yield f"{sent}, which is not counted: give --network-mbit"


ALONE = Sharing()
