"""A run in TensorBoard while it goes on: what its folder has, after every part, and the loss as it comes."""

from __future__ import annotations

from pathlib import Path

from cbst_mx.cli.base import Terminal
from cbst_mx.cli.display import View
from cbst_mx.cli.tracking import Tracker

__all__ = ["TensorBoard"]


class TensorBoard(View):
    """Writes the events of a run.

    Parameters
    ----------
    tracker : Tracker
        Where the work is.
    folder : Path
        The run folder.
    out : Path
        Folder of the events; those of an earlier call are replaced.
    """

    def __init__(self, tracker: Tracker, folder: Path, out: Path):
        from cbst_mx.evaluation.run_results import open_run
        from cbst_mx.report.tensorboard import LiveEvents

        super().__init__(tracker, Terminal(quiet=True))
        run = open_run(folder)
        self._events = LiveEvents(run, out, name=run.leading)
        self._events.catch_up()
        self._loss: tuple[str, int] | None = None

    def update(self, new: bool) -> None:
        """Write the loss of a training, and, when a part begins, what the part before has left."""
        if new:
            self._events.catch_up()
        current = self.tracker.current
        if current is None or current.loss is None or current.part.step != "training":
            return
        place = (current.part.title, current.done)
        if place != self._loss:
            self._loss = place
            self._events.training(current.part.stage, current.done, current.loss, current.rate)

    def stop(self, error: BaseException | None = None) -> None:
        """Write what the last part has left."""
        try:
            if error is None:
                self._events.catch_up()
        finally:
            self._events.close()
