"""Networks that the workers of a cluster run: the files of a run, and evaluations, are those of one process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("distributed")

from cbst_mx.cli import main  # noqa: E402
from cbst_mx.data import ImageSet  # noqa: E402
from cbst_mx.data.videos import VideoFile  # noqa: E402
from cbst_mx.errors import CheckpointError  # noqa: E402
from cbst_mx.evaluation.evaluate import evaluate_parameters  # noqa: E402
from cbst_mx.evaluation.shared import NetworkFile, SharedNetwork, cut, in_order  # noqa: E402
from cbst_mx.labelling import MapFolder  # noqa: E402
from cbst_mx.labelling.workers import Workers  # noqa: E402
from cbst_mx.messages import cores  # noqa: E402
from cbst_mx.rounds import Run  # noqa: E402
from cbst_mx.selftrain import network_maps  # noqa: E402
from cbst_mx.training.checkpoints import count_threads  # noqa: E402
from tests import small_runs  # noqa: E402
from tests.clusters import MARKS, Apart, die_at_a_label  # noqa: E402
from tests.faults import contents  # noqa: E402
from tests.maps import random_maps, write_maps  # noqa: E402

pytestmark = MARKS
THREADS = count_threads() or cores()  # of this process, on which the last bits depend


@pytest.fixture(scope="module")
def data(small_data):
    return small_data


def test_shares_that_are_taken_apart_leave_the_files_of_a_run_alone(data, tmp_path):
    experiment, cluster = small_runs.experiment("st"), Apart(whole=True)
    for out, where in (("alone", None), ("shared", cluster)):
        Run(experiment, tmp_path / out, data_root=data, cluster=where).run()
    assert cluster.singly > 0
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")


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


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_writes_leaves_nothing_behind(local, data, tmp_path):
    experiment = small_runs.experiment("st")
    Run(experiment, tmp_path / "alone", data_root=data).run()
    one = local.workers()[0]
    killed = local.client.run(os.getpid, workers=[one])[one]
    local.client.run(die_at_a_label, workers=[one])
    Run(experiment, tmp_path / "shared", data_root=data, cluster=local).run()
    assert killed not in local.client.run(os.getpid).values()
    alone, shared = contents(tmp_path / "alone"), contents(tmp_path / "shared")
    assert sorted(alone) == sorted(shared)
    assert [name for name in alone if alone[name] != shared[name]] == []


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


@pytest.mark.parametrize(("ctx", "parts"), [("cpu", [[0, 1, 2, 3]]), ("gpu:0", [[0], [1], [2], [3]])])
def test_workers_with_gpus_share_images_one_by_one(data, ctx, parts):
    images = small_runs.experiment("cbst").open_source(data)
    asked = []

    def each(work, shares, waiting_for):
        asked.extend(share.arguments[3] for share in shares)
        return iter(enumerate(shares))

    network = SharedNetwork(SimpleNamespace(ctx=ctx), SimpleNamespace(size=1, each=each), stride=8)
    assert [part for part, _ in network.run(len, images, None, {})] == asked == parts


class _Scale:
    """A cluster that does nothing, and weighs what it is given."""

    size = 2

    def each(self, function, shares, *, waiting_for):
        self.bytes = [len(pickle.dumps((function, share.arguments))) for share in shares]
        return iter(())


def _share_maps(scale, folder, data, names):
    one = MapFolder.open(write_maps(folder / str(len(names)), random_maps(0, (1, 4, 8, 16))), stride=8)
    many = {field: getattr(one, field) * len(names) for field in ("paths", "shapes", "sizes", "versions")}
    every = dataclasses.replace(one, names=names, all_names=names, left_out=names, **many)
    list(Workers(1, scale).blocks(len, every, names))


def _share_images(scale, folder, data, names):
    path = small_runs.experiment("cbst").open_source(data).image_paths[0]
    network = NetworkFile(folder / "parameters.params", "0" * 64, "cpu")
    list(SharedNetwork(network, scale, stride=8).run(len, ImageSet(names, [path] * len(names)), 1, {}))


@pytest.mark.parametrize("share", [_share_maps, _share_images])
def test_a_share_does_not_grow_with_the_number_of_images(data, tmp_path, share):
    largest, scale = [], _Scale()
    for count in (100, 3000):
        share(scale, tmp_path, data, tuple(f"berlin_{index:06d}_000019_leftImg8bit" for index in range(count)))
        largest.append(max(scale.bytes))
    assert largest[1] < largest[0] + 200  # indices from 256 on take a byte more each, and the number of images does


def test_results_come_in_order():
    rng = np.random.default_rng(0)
    numbers = [(int(index), f"of {index}") for index in rng.permutation(20)]
    assert list(in_order(iter(numbers))) == sorted(numbers)


# --------------------------------------------------------------------------------------------------------- predictions


def film(path, frames, seed):
    rng = np.random.default_rng(seed)
    with VideoFile(path, 12.5) as written:
        for _ in range(frames):
            written.write(rng.integers(0, 256, (4, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1))
    return path


def predict(out, *given, code=0):
    arguments = ["predict", *given, "--output", "label", "--output", "confidence", "--out", out]
    done = CliRunner().invoke(main, [str(one) for one in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return " ".join(done.output.split())


def test_predictions_on_a_cluster_are_those_of_one_process(data, trained, tmp_path):
    films = [film(tmp_path / "films" / f"{name}.mp4", 5 + seed, seed) for seed, name in enumerate("ab")]
    broken = tmp_path / "films" / "broken.mp4"
    broken.write_bytes(films[0].read_bytes()[:300])
    given = ["--parameters", trained, data / small_runs.experiment("cbst").target.root, *films, broken]
    said = [predict(tmp_path / "alone", *given, code=1)]
    said.append(predict(tmp_path / "shared", *given, "--cluster", "local:2", code=1))
    alone, shared = contents(tmp_path / "alone"), contents(tmp_path / "shared")
    assert len([name for name in alone if name.endswith("_label.png")]) > 2
    assert {"a_confidence.mp4", "b_confidence.mp4", "a_label/000004.png", "b_label/000005.png"} <= set(alone)
    assert alone == shared
    for output in said:
        assert "b: 6 frames at 12.5 a second" in output
        assert "2 videos segmented" in output
        assert f"the others are done: video {broken} cannot be read" in output
    assert "segmented" in predict(tmp_path / "shared", *given, code=1)  # done, and not made again
    assert contents(tmp_path / "shared") == shared


def test_predictions_of_shares_that_are_taken_apart_are_those_of_one_process(data, trained, tmp_path, monkeypatch):
    cluster = Apart()
    monkeypatch.setattr("cbst_mx.cluster.open_cluster", lambda *_, **__: contextlib.nullcontext(cluster))
    given = ["--parameters", trained, data / small_runs.experiment("cbst").source.root]
    predict(tmp_path / "alone", *given)
    predict(tmp_path / "shared", *given, "--cluster", "local:2")
    assert cluster.singly > 0
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")


def test_workers_that_are_killed_leave_their_video_to_another(local, trained, tmp_path, monkeypatch):
    films = [film(tmp_path / "films" / f"{name}.mp4", 40, seed) for seed, name in enumerate("ab")]
    killed, ended = [], threading.Event()

    def kill():
        while not ended.is_set() and len(killed) < 2:
            for part in [*(tmp_path / "shared").glob(".a_confidence.mp4.*.part.mp4")]:
                pid = int(part.name.split(".")[-3])  # of the worker that writes it
                if pid not in killed:
                    killed.append(pid)
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    predict(tmp_path / "alone", "--parameters", trained, *films)
    monkeypatch.setattr("cbst_mx.cli.predict.opened", lambda *_, **__: contextlib.nullcontext(local))
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        output = predict(tmp_path / "shared", "--parameters", trained, *films)
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 2
    assert "2 videos segmented" in output
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")  # and nothing half-written beside
