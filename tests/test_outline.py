"""The parts of a run: what is told of it beforehand is what it does."""

from __future__ import annotations

import pytest

from cbst_mx.rounds import Run
from cbst_mx.rounds.outline import LAST_LOOK, outline
from tests import tiny

SMALL = (
    "network.options={width: 0.015625, batch_norm: batch, dropout: 0.1}",
    "augmentation.crop=[32, 32]",
    "source_training={iterations: 3, batch_size: 2, learning_rate: 0.05}",
    "self_training.retraining={iterations: 3, batch_size: 2, learning_rate: 0.01}",
    "self_training.target_per_batch=1",
    "self_training.rounds=1",
)
WARM_UP = "warm_up={optimiser: {iterations: 2, batch_size: 2, learning_rate: 0.01}, discriminator_width: 4}"
NUMBERS = {"source": 4, "target": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    return tiny.write_scenes(root, source=4, source_val=1, target=3, target_val=2)


@pytest.mark.parametrize(
    ("changes", "validation"),
    [
        (["self_training.method=cbst-sp", "source_training.snapshots=1"], {"target": 2, "source": 1}),
        (["validation={}", WARM_UP, "self_training.method=st"], {}),
    ],
)
def test_it_names_what_the_run_tells(data, tmp_path, changes, validation):
    told = {}

    def note(what, done, total):
        if done:
            told[what] = total

    run = Run(tiny.experiment(*SMALL, *changes), tmp_path / "run", progress=note, data_root=data)
    before = outline(run.experiment, run.dir.path, **NUMBERS, validation=validation)
    assert not any(part.done for part in before)
    told.clear()  # digests of the images are read when the run is opened
    run.run()
    told = {what: total for what, total in told.items() if not what.startswith("digests")}
    assert [(part.title, part.total) for part in before] == list(told.items())
    after = outline(run.experiment, run.dir.path, **NUMBERS, validation=validation)
    assert all(part.done for part in after)
    timed = [part.step for part in after if part.seconds is None]
    # the last look has no line in the ledger, and that of the source network is for both parts where there is a warm-up
    both = ["training", "warm-up"] if WARM_UP in changes else []
    assert timed == [*both, LAST_LOOK]


def test_the_steps_of_a_training_have_as_many_images_as_a_batch(tmp_path):
    parts = outline(tiny.experiment(*SMALL), tmp_path, **NUMBERS, validation={"target": 2})
    assert {part.size for part in parts if part.step == "training"} == {2}
    assert {part.size for part in parts if part.step != "training"} == {1}
    assert [part.step == LAST_LOOK for part in parts] == [False] * (len(parts) - 1) + [True]
