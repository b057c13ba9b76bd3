"""Networks that the workers of a cluster run: the files of a run, and evaluations, are those of one process."""

from __future__ import annotations

import os
import pickle
import signal

import numpy as np
import pytest

pytest.importorskip("distributed")

from cbst_mx.errors import CheckpointError  # noqa: E402
from cbst_mx.evaluation.evaluate import evaluate_parameters  # noqa: E402
from cbst_mx.evaluation.shared import NetworkFile, cut, in_order  # noqa: E402
from cbst_mx.messages import cores  # noqa: E402
from cbst_mx.rounds import Run  # noqa: E402
from cbst_mx.selftrain import network_maps  # noqa: E402
from cbst_mx.training.checkpoints import count_threads  # noqa: E402
from tests import small_runs  # noqa: E402
from tests.clusters import MARKS  # noqa: E402
from tests.faults import contents  # noqa: E402

pytestmark = MARKS
THREADS = count_threads() or cores()  # of this process, on which the last bits depend


@pytest.fixture(scope="module")
def data(small_data):
    return small_data


# with a prior and a validation set, without either, and with several rounds
@pytest.mark.parametrize("kind", ["cbst-sp", "st", pytest.param("cbst", marks=pytest.mark.slow)])
def test_a_run_on_a_cluster_leaves_the_files_of_a_run_alone(local, data, tmp_path, kind):
    experiment = small_runs.experiment(kind)
    for out, cluster in (("alone", None), ("shared", local)):
        Run(experiment, tmp_path / out, data_root=data, cluster=cluster).run()
    alone, shared = contents(tmp_path / "alone"), contents(tmp_path / "shared")
    assert sorted(alone) == sorted(shared)
    assert [name for name in alone if alone[name] != shared[name]] == []
    assert not list((tmp_path / "shared").rglob("maps"))


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_labels_changes_nothing(local, data, tmp_path):
    experiment = small_runs.experiment("cbst")
    Run(experiment, tmp_path / "alone", data_root=data).run()
    killed = []

    def kill(what, done, total):
        if "pseudo-labels" in what and done == 1 and len(killed) < 2:
            killed.append(next(iter(local.client.run(os.getpid).values())))
            os.kill(killed[-1], signal.SIGKILL)

    Run(experiment, tmp_path / "shared", data_root=data, cluster=local, progress=kill).run()
    assert killed
    alone, shared = contents(tmp_path / "alone"), contents(tmp_path / "shared")
    assert [name for name in alone if alone[name] != shared.get(name)] == []


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    Run(small_runs.experiment("cbst"), out, data_root=data).train_source()
    return out / "source" / "parameters.params"


@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.0), "flip": False}, {"inference": "int8"}, {"tile": 16}])
def test_an_evaluation_on_a_cluster_is_that_of_one_process(local, data, trained, options):
    source = small_runs.experiment("cbst").source
    images = {"format": source.format, "root": data / source.root, "labels": source.labels, **source.selection()}
    alone, shared = (evaluate_parameters(trained, images, cluster=cluster, **options) for cluster in (None, local))
    assert alone.to_json() == shared.to_json()


def test_a_worker_keeps_the_network_that_it_loaded_last(data, trained):
    images = small_runs.experiment("cbst").open_target(data)
    form = {"calibration": images, "inference": "fused", "tile": None}
    file = NetworkFile.of(trained, "cpu", form=form)
    loaded = file.load()[0]
    assert pickle.loads(pickle.dumps(file)).load()[0] is loaded
    assert file._replace(form={**form, "calibration": images.subset([0])}).load()[0] is not loaded


def test_a_network_file_that_changes_is_refused(trained):
    file = NetworkFile.of(trained, "cpu")
    with pytest.raises(CheckpointError, match="is another file than the one of the command that asked for this"):
        file._replace(sha256="0" * 64).load()


def test_shares_are_cut_where_one_process_cuts_its_batches(data):
    images = small_runs.experiment("cbst").open_source(data)
    assert cut(images, 1, 1) == [[index] for index in range(len(images))]
    assert cut(images, 3, 1) == [[0, 1, 2], [3]]
    assert sorted(sum(cut(images, 2, 7), [])) == list(range(len(images)))


def test_shares_of_large_images_are_cut_where_one_process_cuts_them(data, monkeypatch):
    images = small_runs.experiment("cbst").open_source(data)
    height, width, _ = images.image(0).shape
    assert cut(images, None, 1) == [[0, 1, 2, 3]]
    assert cut(images, None, 1, on_cpu=False) == [[0], [1], [2], [3]]
    assert cut(images, 3, 1, on_cpu=False) == [[0, 1, 2], [3]]
    monkeypatch.setattr(network_maps, "_AT_ONCE", 3 * height * width)
    assert cut(images, None, 1, interpolation="bilinear") == [[0, 1, 2], [3]]
    assert cut(images, None, 1, scales=(0.5, 2.0)) == [[0], [1], [2], [3]]
    assert cut(images, None, 1, long_side=2 * width) == [[0], [1], [2], [3]]


def test_results_come_in_order():
    rng = np.random.default_rng(0)
    numbers = [(int(index), f"of {index}") for index in rng.permutation(20)]
    assert list(in_order(iter(numbers))) == sorted(numbers)


def test_predictions_on_a_cluster_are_those_of_one_process(data, trained, tmp_path):
    from click.testing import CliRunner

    from cbst_mx.cli import main

    folder = data / small_runs.experiment("cbst").target.root / "images"
    folder = folder if folder.is_dir() else data / small_runs.experiment("cbst").target.root
    given = ["predict", "--parameters", str(trained), str(folder), "--output", "label", "--output", "confidence"]
    for out, more in (("alone", []), ("shared", ["--cluster", "local:2"])):
        done = CliRunner().invoke(main, [*given, "--out", str(tmp_path / out), *more])
        assert done.exit_code == 0, (done.output, done.exception)
    alone, shared = contents(tmp_path / "alone"), contents(tmp_path / "shared")
    assert len(alone) > 6
    assert alone == shared
