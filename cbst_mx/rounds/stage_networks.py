"""The networks of a run's stages: loaded from its folder one at a time, trained, and written there."""

from __future__ import annotations

import functools
import logging
from typing import Any

from cbst_mx.config import Optimiser
from cbst_mx.errors import RunError
from cbst_mx.evaluation.shared import NetworkFile, SharedNetwork
from cbst_mx.files import write_json
from cbst_mx.messages import Shares, stage_title
from cbst_mx.networks.devices import release_memory
from cbst_mx.networks.parameters import load_network, save_parameters
from cbst_mx.rounds.health import Health
from cbst_mx.rounds.opening import Opened
from cbst_mx.rounds.phases import start_network, train_phase, warm_up
from cbst_mx.rounds.together import Order, elsewhere
from cbst_mx.rounds.workload import count_iterations
from cbst_mx.run_dir.steps import RETRAINING, SOURCE
from cbst_mx.training.checkpoints import remove_checkpoints
from cbst_mx.training.samples import Samples
from symbols.backend import gluon

__all__ = ["StageNetworks"]

logger = logging.getLogger(__name__)


class StageNetworks:
    """The network of one stage at a time.

    Parameters
    ----------
    opened : Opened
        What the run works with.
    health : Health
        Knows which rounds were rolled back.
    cluster : Shares, optional
        Workers that run networks over images, and train where it says so; by default this process does.
    """

    def __init__(self, opened: Opened, health: Health, cluster: Shares | None = None):
        self._opened, self._health, self._cluster = opened, health, cluster
        self._network: gluon.HybridBlock | None = None
        self._holds = -1  # the stage whose parameters the network holds

    def start(self) -> gluon.HybridBlock:
        """Return the network that the run starts from, to be trained."""
        network, self._opened.start = self._opened.start, None  # kept for the source training alone
        if network is None:
            network = start_network(self._opened.experiment, self._opened.contexts, data_root=self._opened.data_root)
        return network

    def load(self, index: int) -> gluon.HybridBlock:
        """Return the network with the parameters of stage `index`.

        Raises
        ------
        RunError
            If they are not there, or are not what the stage's training wrote.
        """
        if self._network is None or self._holds != index:
            stage = self._opened.folder.stage(index)
            if not stage.training.is_file():
                what = "source" if index == 0 else f"retrain for round {index}"
                raise RunError(f"{stage.parameters} is not there or not finished: run {what} first")
            self._opened.record.check(RETRAINING if index else SOURCE, index)
            self.forget()
            self._network, _, _ = load_network(stage.parameters, self._opened.contexts[0])
            self._holds = index
        return self._network

    def shared(self, index: int, network: gluon.HybridBlock) -> gluon.HybridBlock | SharedNetwork:
        """Return the network of stage `index`, or where there is a cluster its file for the workers to load."""
        if self._cluster is None:
            return network
        experiment = self._opened.experiment
        device = experiment.ctx.split(",")[0]
        file = NetworkFile.of(self._opened.folder.stage(index).parameters, device, amp=experiment.amp)
        return SharedNetwork(file, self._cluster, network.stride)

    def forget(self) -> None:
        """Load parameters from the folder next time."""
        self._network, self._holds = None, -1
        release_memory()

    def train(
        self, index: int, network: gluon.HybridBlock, optimiser: Optimiser, samples: Samples, **options: Any
    ) -> None:
        """Train the network of stage `index`, and write it; `options` are further ones of :func:`.train_phase`."""
        self.forget()  # its parameters change from here on
        experiment, stage = self._opened.experiment, self._opened.folder.stage(index)
        what = f"{experiment.name}, {stage_title(index)}: training"
        self._opened.progress(what, 0, count_iterations(optimiser, len(samples)))  # the first step may take minutes
        progress = functools.partial(self._opened.progress, what)
        together, others = None if self._cluster is None else self._cluster.together, None
        if together is not None:
            order = Order(
                experiment,
                optimiser,
                samples,
                index,
                stage.checkpoint,
                {key: value for key, value in options.items() if not key.startswith("snapshot")},
                self._opened.folder.path,
            )
            others = functools.partial(elsewhere, together, order, progress)
        record = train_phase(
            experiment,
            network,
            optimiser,
            samples,
            index=index,
            contexts=self._opened.contexts,
            checkpoint=stage.checkpoint,
            progress=progress,
            elsewhere=others,
            **options,
        )
        if record.losses:
            logger.info("%s done, %d iterations, last loss %.4f", what, record.iterations, record.losses[-1])
        processes = {} if together is None else {"processes": together.size}
        self.finish(index, network, {**record.to_json(), **processes})

    def finish(self, index: int, network: gluon.HybridBlock, record: dict[str, Any]) -> None:
        """Write the parameters of stage `index`, and the record of its training; first adapt a source network.

        Parameters
        ----------
        index : int
            Stage.
        network : HybridBlock
            Its network; the source network is adapted in place, where the experiment says so.
        record : dict
            JSON values of ``training.json``.
        """
        opened, experiment = self._opened, self._opened.experiment
        stage = opened.folder.stage(index)
        if index == 0:
            bar = functools.partial(self._opened.progress, f"{experiment.name}, warm-up")
            where = {"ctx": opened.contexts[0], "checkpoint": stage.warm_up, "progress": bar}
            record.update(warm_up(experiment, network, opened.source, opened.target, **where))
        if rollbacks := self._health.rollbacks(index):
            record["rollbacks"] = rollbacks
        spec, space = experiment.network_spec(), experiment.classes()
        save_parameters(stage.parameters, network, spec, space, config_hash=opened.folder.config_hash)
        write_json(stage.training, record)
        opened.record.finish(RETRAINING if index else SOURCE, index)
        remove_checkpoints(stage.checkpoint, stage.warm_up)
        self._network, self._holds = network, index
