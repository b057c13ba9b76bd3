"""The labelling job and the command ``label``: against the golden pass, the sorted form, shards and interruptions."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx import files
from cbst_mx.cli.base import OneSentence
from cbst_mx.cli.labelling import COMMANDS
from cbst_mx.data.image_files import read_label
from cbst_mx.errors import ConfigError, DataError, RunError
from cbst_mx.label_space import CITYSCAPES_19, NTHU_13, numbered
from cbst_mx.labelling import MapFolder, State, job, needs, run
from cbst_mx.selftrain import prior_files
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.pseudo_labels import confidence, select
from tests.maps import random_maps, write_maps

GOLDEN = Path(__file__).parent / "golden" / "pseudo_labels.npz"
ROOT = Path(__file__).resolve().parents[1]


def call(*arguments):
    """Run ``label`` as the program does: errors become one sentence and an exit code."""
    main = OneSentence(commands={command.name: command for command in COMMANDS})
    return CliRunner().invoke(main, ["label", *map(str, arguments)], prog_name="cbst-mx")


def succeed(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments):
    result = call(*arguments)
    assert result.exit_code == 1, (result.output, result.exception)
    assert result.output.count("\n") <= 3, result.output
    text = result.output
    del result
    gc.collect()  # before click 8.2 a runner's frames refer to each other, and keep the locks of an error
    return text


def probabilities(seed, count=5, classes=13, size=(6, 8)):
    return random_maps(seed, (count, classes, *size))


def contents(folder):
    """Return every file below a folder but those that name times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".npz" and path.name != "job.json"
    }


@pytest.fixture
def maps(tmp_path):
    return write_maps(tmp_path / "maps", probabilities(0))


# ------------------------------------------------------------------------------------------------------ what it makes


@pytest.mark.parametrize(("policy", "name"), [("class-balanced", "cb"), ("global", "global"), ("class-balanced", "sp")])
def test_released_rules_reproduce_the_measured_pass_through_files(tmp_path, policy, name):
    with np.load(GOLDEN) as golden:
        write_maps(tmp_path / "maps", golden["probability"])
        limits, ids, portion = golden[f"{name}_threshold"], golden[f"{name}_pseudo_label_ids"], float(golden["portion"])
        sizes = golden[f"{name}_class_size"]
        np.savez(tmp_path / "prior.npz", prior=golden["spatial_prior"])
    prior = ["--spatial-prior", tmp_path / "prior.npz"] if name == "sp" else []
    out = tmp_path / "out"
    succeed(
        *("--probabilities", tmp_path / "maps", "--policy", policy, "--portion", portion, "--fidelity", "released"),
        *(*prior, "--out", out),
    )
    record = json.loads((out / "kc.json").read_text())
    np.testing.assert_array_equal(
        np.array(record["threshold"]).astype(np.float32), np.where(limits == 0, 1, limits).astype(np.float32)
    )
    if policy == "class-balanced":  # the measured sizes count the extra zero of every pool
        np.testing.assert_array_equal(record["count"], np.maximum(sizes - 1, 0))
    kept = np.zeros(19, int)
    for index, expected in enumerate(ids):
        label = read_label(out / "pseudo_labels" / f"image-{index}.png")
        np.testing.assert_array_equal(CITYSCAPES_19.decode(label, "cityscapes"), expected)
        kept += np.bincount(label.ravel(), minlength=256)[:19]
    assert record["kept"] == kept.tolist()
    assert record["names"] == list(CITYSCAPES_19.names)
    assert (record["policy"], record["fidelity"], record["portion"]) == (policy, "released", portion)


@pytest.mark.parametrize("policy", ["class-balanced", "global"])
def test_thresholds_and_labels_are_those_of_the_sorted_form(maps, tmp_path, policy):
    from cbst_mx.selftrain import on_device
    from cbst_mx.selftrain.kc import ConfidencePool
    from symbols.backend import mx

    output = succeed("--probabilities", maps, "--policy", policy, "--portion", 0.3, "--out", tmp_path / "out")
    assert "5 images of 6 x 8, 13 classes (nthu-13); needs up to" in output
    assert "% of the pixels kept" in output
    pool = ConfidencePool(13)
    arrays = [mx.nd.array(array) for array in probabilities(0)]
    for array in arrays:
        pool.add(array)
    thresholds = pool.thresholds(policy, 0.3)
    record = json.loads((tmp_path / "out" / "kc.json").read_text())
    stored = [np.inf if value is None else value for value in record["threshold"]]
    np.testing.assert_array_equal(np.float32(stored), thresholds.values)
    assert record["count"] == thresholds.counts.tolist()
    assert record["pixels"] == 5 * 48
    assert record["images"] == 5
    for index, array in enumerate(arrays):
        label = read_label(tmp_path / "out" / "pseudo_labels" / f"image-{index}.png")
        np.testing.assert_array_equal(label, on_device.select(array, thresholds))


def test_stride_maps_are_upsampled_and_multiplied_by_the_prior(tmp_path):
    small = probabilities(1)
    folder = write_maps(tmp_path / "maps", small)
    prior = np.random.default_rng(2).random((13, 4, 5), dtype=np.float32)
    np.savez(tmp_path / "prior.npz", prior=prior)
    for kind, size in (("bilinear", ()), ("bicubic", (47, 60)), ("pillow", (47, 60))):
        out = tmp_path / kind
        given = ["--size", *size] if size else []
        succeed(
            *("--probabilities", folder, "--upsample", 8, *given, "--upsampling", kind, "--portion", 0.5, "--out", out),
            *("--spatial-prior", tmp_path / "prior.npz", "--workers", 2),
        )
        full = size or (48, 64)
        state = StreamingThresholds(13)
        seen = [ClassMaps.at_stride(array, full, 8, interpolation=kind) for array in small]
        for _ in range(2):
            for index, array in enumerate(seen):
                state.add(str(index), *confidence(array, ClassMaps(prior, full)))
            state.refine(["class-balanced"], [0.5])
        thresholds = state.thresholds("class-balanced", 0.5)
        record = json.loads((out / "kc.json").read_text())
        np.testing.assert_array_equal(np.float32(record["threshold"]), thresholds.values)
        for index, array in enumerate(seen):
            label = read_label(out / "pseudo_labels" / f"image-{index}.png")
            np.testing.assert_array_equal(label, select(array, [thresholds], ClassMaps(prior, full))[0])


def test_the_files_dtype_and_container_do_not_matter(tmp_path):
    half = probabilities(3).astype(np.float16)
    first = write_maps(tmp_path / "npy", half, np.float16)
    second = tmp_path / "npz"
    second.mkdir()
    for index, array in enumerate(half.astype(np.float32)):
        if index == 0:
            np.savez(second / "image-0.npz", probability=array, other=np.zeros(3))
        elif index == 1:
            np.savez_compressed(second / "image-1.npz", array)
        elif index == 2:
            np.save(second / "image-2.npy", array.astype(">f4"))
        else:
            np.save(second / f"image-{index}.npy", np.asfortranarray(array))
    (second / "README.txt").write_text("left alone")
    for folder in (first, second):
        succeed("--probabilities", folder, "--portion", 0.4, "--out", tmp_path / f"{folder.name}-out")
    assert contents(tmp_path / "npy-out") == contents(tmp_path / "npz-out")


def test_images_may_have_different_sizes(tmp_path):
    folder = tmp_path / "maps"
    for size in ((4, 5), (7, 3)):
        write_maps(folder / str(size[0]), probabilities(4, count=1, size=size))
        (folder / str(size[0]) / "image-0.npy").rename(folder / f"{size[0]}.npy")
    record = run(MapFolder.open(folder, stride=4), tmp_path / "out", policy="global", portion=0.5)
    assert record["pixels"] == 16 * (20 + 21)
    assert read_label(tmp_path / "out" / "pseudo_labels" / "7.png").shape == (28, 12)
    named = MapFolder.open(folder, stride=4, size={"4": (15, 20), "7": (28, 10)})
    assert named.sizes == ((15, 20), (28, 10))
    assert confidence(named.maps(1))[0].shape == (28, 10)


def test_sweep_counts_what_single_jobs_keep(maps, tmp_path):
    portions = [0.2, 0.25, 0.5]
    out = tmp_path / "sweep"
    output = succeed("--probabilities", maps, "--portions", "0.2,0.25,0.5", "--out", out)
    assert not (out / "kc.json").exists()
    assert "kept pixels by portion" in output
    rows = list(csv.DictReader(io.StringIO((out / "sweep.csv").read_text())))
    assert len(rows) == 3 * 13
    assert list(rows[0])[:3] == ["portion", "train_id", "name"]
    for portion in portions:
        record = run(MapFolder.open(maps), tmp_path / str(portion), policy="class-balanced", portion=portion)
        own = [row for row in rows if float(row["portion"]) == portion]
        assert [int(row["kept"]) for row in own] == record["kept"]
        assert [int(row["count"]) for row in own] == record["count"]
        thresholds = [float(row["threshold"]) if row["threshold"] else None for row in own]
        assert thresholds == record["threshold"]
        assert [row["name"] for row in own] == list(NTHU_13.names)
    # both at once, and read back by the finished job
    both = tmp_path / "both"
    arguments = ("--probabilities", maps, "--portions", "0.2,0.25,0.5", "--portion", 0.25, "--out", both)
    first, again = (succeed(*arguments) for _ in range(2))
    assert again[again.index("CBST, p = 0.25") :] == first[first.index("CBST, p = 0.25") :]
    assert (both / "sweep.csv").read_bytes() == (out / "sweep.csv").read_bytes()
    assert json.loads((both / "kc.json").read_text())["kept"] == [int(r["kept"]) for r in rows[13:26]]


def test_statistics_of_every_image_come_with_it(maps, tmp_path):
    run(MapFolder.open(maps), tmp_path / "out", policy="global", portion=0.5, workers=2)
    statistics = ImageStatistics.load(tmp_path / "out" / "image_statistics.npz")
    assert statistics.names == tuple(f"image-{index}" for index in range(5))
    assert statistics.class_names == NTHU_13.names
    for row, sums, array in zip(statistics.counts, statistics.confidence_sums, probabilities(0)):
        predicted, value = array.argmax(axis=0).ravel(), array.max(axis=0).ravel()
        np.testing.assert_array_equal(row, np.bincount(predicted, minlength=13))
        np.testing.assert_allclose(sums, np.bincount(predicted, weights=value, minlength=13), rtol=1e-12)


# ---------------------------------------------------------------------------------- processes, shards, interruptions


def test_the_number_of_processes_changes_nothing(tmp_path):
    folder = write_maps(tmp_path / "maps", probabilities(5, count=7))
    for workers in (1, 3):
        run(
            MapFolder.open(folder, stride=2),
            tmp_path / str(workers),
            policy="class-balanced",
            portion=0.3,
            workers=workers,
        )
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


@pytest.mark.parametrize("refine", [True, False])
def test_shards_give_what_one_command_gives(maps, tmp_path, refine):
    reading = ("--probabilities", maps, "--upsample", 4)
    succeed(*reading, "--portion", 0.3, "--portions", "0.3,0.6", "--out", tmp_path / "whole")
    for shard in (1, 2, 3):
        succeed("count", *reading, "--shard", f"{shard}/3", "--out", tmp_path / f"{shard}.npz")
    shards = [tmp_path / f"{shard}.npz" for shard in (3, 1, 2)]
    succeed("merge", *shards, "--out", tmp_path / "merged.npz")
    merged = tmp_path / "merged.npz"
    if refine:
        for shard in (1, 2, 3):
            succeed(
                *("count", *reading, "--shard", f"{shard}/3", "--refine", merged, "--portions", "0.3,0.6"),
                *("--out", tmp_path / f"fine-{shard}.npz"),
            )
        output = succeed("merge", tmp_path / "fine-2.npz", tmp_path / "fine-1.npz", "--out", tmp_path / "part.npz")
        assert "5 images" in output
        assert "1 of them are still to be counted a second time" in output
        succeed("merge", tmp_path / "part.npz", tmp_path / "fine-3.npz", "--out", merged)
    succeed(
        *("select", "--state", merged, *reading, "--portion", 0.3, "--portions", "0.3,0.6"),
        *("--out", tmp_path / "sharded"),
    )
    assert contents(tmp_path / "whole") == contents(tmp_path / "sharded")
    for name in ("image_statistics.npz", "state.npz"):
        with np.load(tmp_path / "whole" / name) as ours, np.load(tmp_path / "sharded" / name) as theirs:
            for key in ours.files:
                np.testing.assert_array_equal(ours[key], theirs[key])
    if refine:  # the labels of one machine's images
        succeed("select", "--state", merged, *reading, "--shard", "2/3", "--portion", 0.3, "--out", tmp_path / "second")
        labels = tmp_path / "second" / "pseudo_labels"
        assert [path.name for path in sorted(labels.iterdir())] == ["image-1.png", "image-4.png"]
        for path in labels.iterdir():
            assert path.read_bytes() == (tmp_path / "whole" / "pseudo_labels" / path.name).read_bytes()


def test_shards_refuse_what_does_not_fit(maps, tmp_path):
    state = tmp_path / "state.npz"
    succeed("count", "--probabilities", maps, "--shard", "1/2", "--out", state)
    assert "state.npz is the state of another count" in refused(
        "count", "--probabilities", maps, "--shard", "2/2", "--out", state
    )
    assert "state.npz was counted with upsample 1, it cannot go on with 2" in refused(
        "count", "--probabilities", maps, "--upsample", 2, "--shard", "1/2", "--out", state
    )
    for step in (("select", "--state"), ("count", "--refine")):  # a shard is forgotten
        assert "state.npz holds 3 of 5 images, not image-1: run label count again for what is missing, and" in refused(
            *step, state, "--probabilities", maps, "--portion", 0.2, "--out", tmp_path / "out"
        )
    assert "must be of different images, got image-0 in both" in refused("merge", state, state, "--out", state)
    succeed("count", "--probabilities", maps, "--out", tmp_path / "all.npz")
    assert "such as image-1, and needs a second count" in refused(
        *("select", "--state", tmp_path / "all.npz", "--probabilities", maps, "--shard", "1/2", "--portion", 0.2),
        *("--out", tmp_path / "out"),
    )
    assert not (tmp_path / "out").exists()
    (tmp_path / "text.npz").write_text("no archive")
    assert "text.npz is not a readable state of counts" in refused(
        "merge", tmp_path / "text.npz", "--out", tmp_path / "x.npz"
    )
    assert "shard must be one of at most 5" in refused(
        "count", "--probabilities", maps, "--shard", "1/6", "--out", tmp_path / "x.npz"
    )
    for arguments, sentence in (
        (("--shard", "2"), "'2' is not a shard such as 1/4"),
        (("--portion", 0.2), "--portion and --portions need --refine"),
        (("--refine", state), "--refine needs --portion or --portions"),
    ):
        result = call("count", "--probabilities", maps, "--out", tmp_path / "x.npz", *arguments)
        assert result.exit_code == 2
        assert sentence in result.output


@pytest.mark.parametrize("stop_at", range(15))
def test_a_stopped_job_goes_on_with_the_same_result(maps, tmp_path, monkeypatch, stop_at):
    arguments = {"policy": "class-balanced", "portion": 0.3}
    whole = tmp_path / "whole"
    run(MapFolder.open(maps), whole, **arguments)
    monkeypatch.setattr("cbst_mx.labelling.workers._BLOCK", 1)
    reads = 0
    original = MapFolder.maps

    def stop(self, index):
        nonlocal reads
        reads += 1
        if reads == stop_at + 1:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(MapFolder, "maps", stop)
    with pytest.raises(KeyboardInterrupt):
        run(MapFolder.open(maps), tmp_path / "out", **arguments)
    assert not (tmp_path / "out" / "kc.json").exists()
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".part")]
    run(MapFolder.open(maps), tmp_path / "out", **arguments)
    assert reads == 15 + 1  # 5 images, three passes: what was done is not done again
    assert contents(tmp_path / "out") == contents(whole)


def test_counts_are_saved_on_the_way(maps, tmp_path, monkeypatch):
    monkeypatch.setattr("cbst_mx.labelling.workers._BLOCK", 1)
    monkeypatch.setattr(job, "_CHECKPOINT", -1.0)
    folder = MapFolder.open(maps)
    state, seen = State.new(folder, "paper"), []
    path = tmp_path / "state.npz"
    job.count(
        folder, state, path, progress=lambda *_: seen.append(len(State.load(path).counts.names) if path.exists() else 0)
    )
    assert seen == [0, 1, 2, 3, 4]  # progress is told before the state is saved


@pytest.mark.parametrize("portions", [1, 2])
def test_labels_that_are_lost_or_damaged_are_made_again(maps, tmp_path, portions):
    out, labels = tmp_path / "out", tmp_path / "out" / "pseudo_labels"
    arguments = {"policy": "global", "portion": 0.5, "portions": [0.5, 0.7][: 0 if portions == 1 else 2]}
    run(MapFolder.open(maps), out, **arguments)
    before = contents(out)
    (labels / "image-0.png").unlink()
    (labels / "image-1.png").write_bytes(b"")
    run(MapFolder.open(maps), out, **arguments)
    assert contents(out) == before
    (labels / "image-2.png").write_bytes((labels / "image-2.png").read_bytes()[:60])
    (labels / "image-3.png").write_bytes(b"")
    (out / "kc.json").unlink()
    run(MapFolder.open(maps), out, **arguments)
    assert contents(out) == before


# ------------------------------------------------------------------------------------------ files that are not counted


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mended_file_is_counted_and_no_other_again(maps, tmp_path, monkeypatch, workers):
    arguments = {"policy": "class-balanced", "portion": 0.3}
    good = (maps / "image-3.npy").read_bytes()
    run(MapFolder.open(maps), tmp_path / "whole", **arguments)
    np.save(maps / "image-3.npy", broken(probabilities(0)[3]))
    with pytest.raises(DataError, match="image-3.npy: probabilities must be finite"):
        run(MapFolder.open(maps), tmp_path / "out", workers=workers, **arguments)
    kept = State.load(tmp_path / "out" / "state.npz").counts.names
    assert "image-3" not in kept
    assert workers > 1 or kept == ("image-0", "image-1", "image-2")
    (maps / "image-3.npy").write_bytes(good)
    reads = []
    original = MapFolder.maps
    monkeypatch.setattr(MapFolder, "maps", lambda self, i: reads.append(self.names[i]) or original(self, i))
    run(MapFolder.open(maps), tmp_path / "out", **arguments)
    first = reads[: 5 - len(kept)]
    assert not set(first) & set(kept)
    assert len(reads) == len(first) + 10
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_damaged_file_may_be_taken_away(maps, tmp_path):
    np.save(maps / "image-4.npy", broken(probabilities(0)[4]))
    out = tmp_path / "out"
    given = ("--probabilities", maps, "--portion", 0.3)
    refused(*given, "--out", out)
    refused("count", "--probabilities", maps, "--out", tmp_path / "state.npz")
    assert "state.npz holds 4 of 5 images: run label count again" in refused(
        "merge", tmp_path / "state.npz", "--out", tmp_path / "merged.npz"
    )
    (maps / "image-4.npy").unlink()
    succeed(*given, "--out", out)
    assert json.loads((out / "kc.json").read_text())["images"] == 4
    succeed("count", "--probabilities", maps, "--out", tmp_path / "state.npz")
    succeed("select", "--state", tmp_path / "state.npz", *given, "--out", tmp_path / "steps")
    assert contents(tmp_path / "steps") == contents(out)
    np.save(maps / "image-4.npy", probabilities(0)[4])
    assert "image-4 is new: give a new output folder" in refused(*given, "--out", out).replace("\n", " ")


def test_an_unfinished_shard_is_not_merged(maps, tmp_path):
    reading = ("--probabilities", maps)
    good = (maps / "image-0.npy").read_bytes()
    np.save(maps / "image-0.npy", broken(probabilities(0)[0]))
    refused("count", *reading, "--shard", "1/2", "--out", tmp_path / "1.npz")
    succeed("count", *reading, "--shard", "2/2", "--out", tmp_path / "2.npz")
    shards = (tmp_path / "2.npz", tmp_path / "1.npz")
    for order in (shards, shards[::-1]):
        assert "1.npz holds 0 of 3 images: run label count again" in refused(
            "merge", *order, "--out", tmp_path / "merged.npz"
        )
    assert not (tmp_path / "merged.npz").exists()
    assert "1.npz holds 0 of 5 images, not image-0" in refused(
        "select", "--state", tmp_path / "1.npz", *reading, "--portion", 0.3, "--out", tmp_path / "out"
    )
    (maps / "image-0.npy").write_bytes(good)
    succeed("count", *reading, "--shard", "1/2", "--out", tmp_path / "1.npz")
    assert "counts of 5 images" in succeed("merge", *shards, "--out", tmp_path / "merged.npz")


@pytest.mark.parametrize("step", ["--refine", "--state"])
def test_maps_that_change_after_the_count_are_refused(maps, tmp_path, step):
    state = tmp_path / "state.npz"
    succeed("count", "--probabilities", maps, "--out", state)
    np.save(maps / "image-1.npy", probabilities(9)[1])
    output = refused(
        *("count" if step == "--refine" else "select", step, state, "--probabilities", maps, "--portion", 0.3),
        *("--out", tmp_path / "out"),
    ).replace("\n", " ")
    assert "image-1.npy must be the file that" in output
    assert "state.npz has counted, it has changed since" in output
    assert not (tmp_path / "out").exists()
    assert "it has changed since" in refused("count", "--probabilities", maps, "--out", state).replace("\n", " ")


def test_states_of_older_versions_are_refused(maps, tmp_path):
    folder = MapFolder.open(maps)
    State.new(folder, "paper").save(tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz") as stored:
        np.savez(tmp_path / "old.npz", **{key: stored[key] for key in stored.files if key != "versions"})
    assert "old.npz is not a readable state of counts: it does not say which files it is of" in refused(
        "merge", tmp_path / "old.npz", "--out", tmp_path / "x.npz"
    ).replace("\n", " ")


def test_a_finished_job_is_only_read(maps, tmp_path, monkeypatch):
    record = run(MapFolder.open(maps), tmp_path / "out", policy="global", portion=0.5)
    monkeypatch.setattr(MapFolder, "maps", None)
    assert run(MapFolder.open(maps), tmp_path / "out", policy="global", portion=0.5) == record


def test_half_precision_at_full_size_needs_two_passes_only(tmp_path, monkeypatch):
    folder = write_maps(tmp_path / "maps", probabilities(6, count=2), np.float16)
    reads = []
    original = MapFolder.maps
    monkeypatch.setattr(MapFolder, "maps", lambda self, i: reads.append(self.names[i]) or original(self, i))
    run(MapFolder.open(folder), tmp_path / "out", policy="class-balanced", portion=0.2)
    assert reads == ["image-0", "image-1"] * 2


# ------------------------------------------------------------------------------------------------------------ refusals


def test_another_jobs_folder_is_refused(maps, tmp_path):
    out = tmp_path / "out"
    succeed("--probabilities", maps, "--portion", 0.2, "--out", out)
    before = contents(out)
    for changes, what in (
        (("--portion", 0.3), "other portion"),
        (("--portion", 0.2, "--policy", "global"), "other policy"),
        (("--portion", 0.2, "--upsample", 2), "other settings"),
    ):
        assert f"belongs to another job ({what})" in refused("--probabilities", maps, "--out", out, *changes)
    time.sleep(0.01)
    whole = (maps / "image-0.npy").read_bytes()
    np.save(maps / "image-0.npy", probabilities(9)[0])
    os.utime(maps / "image-0.npy")
    assert "image-0.npy must be the file that" in refused("--probabilities", maps, "--portion", 0.2, "--out", out)
    (maps / "image-0.npy").unlink()
    assert "image-0, which it has counted, is gone: give" in refused(
        "--probabilities", maps, "--portion", 0.2, "--out", out
    ).replace("\n", " ")
    (maps / "image-0.npy").write_bytes(whole)
    assert contents(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    assert "mine is not empty and not of a labelling job" in refused(
        "--probabilities", maps, "--portion", 0.2, "--out", tmp_path / "mine"
    )


def broken(array):
    array = array.copy()
    array[1, 2, 3] = np.nan
    return array


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (np.zeros((13, 4), np.float32), r"must hold an array of shape (C, H, W), got (13, 4)"),
        (np.zeros((2, 13, 4, 4), np.float32), "must hold the map of one image, got 2 of them (shape (2, 13, 4, 4))"),
        (np.zeros((1, 1, 13, 4, 4), np.float32), r"must hold an array of shape (C, H, W), got (1, 1, 13, 4, 4)"),
        (np.zeros((19, 6, 8), np.float32), "must have the 13 classes of image-0.npy, got 19"),
        (np.zeros((512, 13, 8), np.float32), "must hold at most 253 classes, got 512"),
        (np.zeros((13, 6, 8), np.uint8), "must hold probabilities as float16, float32 or float64, got uint8; whole"),
        (np.zeros((13, 6, 8), np.uint16), "converted by m = np.float32(m); np.save(path, m / np.maximum(m.sum(axis"),
        (np.zeros((13, 6, 8), complex), "must hold probabilities as float16, float32 or float64, got complex128"),
        (np.full((13, 6, 8), 1e300), "image-9.npy: probabilities must be finite, got NaN or infinity"),
        (np.array([[[{}]]], dtype=object), "is not a readable .npy or .npz file of numbers"),
        (b"\x93NUMPY", "is not a readable .npy or .npz file of numbers"),
        (b"", "is not a readable .npy or .npz file of numbers"),
        (broken(probabilities(0)[0]), "image-9.npy: probabilities must be finite, got NaN or infinity"),
        (np.full((13, 6, 8), -4, np.float32), "logits have to go through a softmax"),
        (np.full((13, 6, 8), 1.6, np.float32), "must sum to 1 (within 0.01), got 20.8 to 20.8: every pixel has the"),
        (np.full((13, 6, 8), 0.5 / 13, np.float32), "got 0.5 to 0.5: every pixel has the same sum, by which the maps"),
        (np.eye(9, 8, dtype=np.float32)[np.arange(104).reshape(13, 8) % 8][:, :6], "sum to 1 along the last axis"),
    ],
)
def test_files_that_cannot_be_used_are_named(maps, tmp_path, content, sentence):
    path = maps / "image-9.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    output = refused("--probabilities", maps, "--portion", 0.2, "--out", tmp_path / "out")
    assert sentence in output
    assert "image-9.npy" in output
    assert not (tmp_path / "out" / "kc.json").exists()


def test_wrong_names_are_refused_before_anything_is_made(maps, tmp_path):
    given = ("--probabilities", maps, "--portion", 0.2, "--out", tmp_path / "o")
    np.savez(tmp_path / "x.npz", probability=probabilities(0)[0])
    (tmp_path / "x.npz").rename(maps / "image-9.npy")
    assert "image-9.npy is not a readable .npy or .npz file of numbers: it is an .npz archive" in refused(*given)
    (maps / "image-9.npy").unlink()
    np.save(maps / "a\nb.npy", probabilities(0)[0])
    assert "must be text without control characters, got 'a\\nb.npy'" in refused(*given).replace("\n", " ")
    assert not (tmp_path / "o").exists()


def test_nothing_is_announced_before_arguments_are_checked(maps, tmp_path):
    for arguments in (("--portion", 1.2), ("--portion", 0.2, "--workers", -3)):
        for step in ((), ("count", "--refine", tmp_path / "x.npz")):
            output = refused(*step, "--probabilities", maps, "--out", tmp_path / "o", *arguments)
            assert "needs up to" not in output
            assert output.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("policy", ["class-balanced", "global"])
def test_released_rules_keep_nothing_where_the_threshold_would_be_0(maps, tmp_path, policy):
    given = {"policy": policy, "portion": 1.0, "fidelity": "released"}
    record = run(MapFolder.open(maps), tmp_path / "out", **given)
    assert record["threshold"] == [1.0] * 13
    assert record["kept_portion"] == 0
    zeros = write_maps(tmp_path / "zeros", [np.zeros_like(array) for array in probabilities(2, 2, 13)])
    given["portion"] = 0.5
    record = run(MapFolder.open(zeros), tmp_path / "out-zeros", **given)
    assert record["threshold"] == [1.0] * 13
    assert record["kept_portion"] == 0


def test_a_prior_of_zeros_is_refused_by_its_name(maps, tmp_path):
    np.savez(tmp_path / "prior.npz", prior=np.zeros((13, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"prior[.]npz must hold a value above 0, got zeros only"):
        run(MapFolder.open(maps, prior=tmp_path / "prior.npz"), tmp_path / "out", policy="class-balanced", portion=0.5)


def test_masked_regions_never_become_a_class(tmp_path):
    whole = probabilities(12, 12, 13)
    masked = [array.copy() for array in whole]
    for array in masked:
        array[:, array.shape[1] * 3 // 4 :] = 0
    folders = [
        write_maps(tmp_path / name, arrays)
        for name, arrays in (("masked", masked), ("cut", [array[:, : array.shape[1] * 3 // 4] for array in whole]))
    ]
    for policy in ("global", "class-balanced"):
        found, expected = (
            run(MapFolder.open(folder), tmp_path / f"{folder.name}-{policy}", policy=policy, portion=0.5)
            for folder in folders
        )
        for key in ("threshold", "count", "kept"):
            assert found[key] == expected[key]
        assert found["without_confidence"] == found["pixels"] - expected["pixels"]
        assert "without_confidence" not in expected
        for path in (tmp_path / f"masked-{policy}" / "pseudo_labels").iterdir():
            label = read_label(path)
            assert (label[label.shape[0] * 3 // 4 :] == 255).all()


def test_maps_of_nothing_but_zeros_are_refused_and_one_of_them_is_not(tmp_path):
    folder = write_maps(tmp_path / "maps", np.zeros((2, 3, 4, 5)))
    with pytest.raises(DataError, match="no pixel of the target set has a confidence above 0"):
        run(MapFolder.open(folder), tmp_path / "out", policy="class-balanced", portion=1.0)
    first = probabilities(1, 1, 3)[0]
    folder = write_maps(tmp_path / "second", [first, np.zeros_like(first)])
    record = run(MapFolder.open(folder), tmp_path / "second-out", policy="class-balanced", portion=1.0)
    assert sum(record["kept"]) == sum(record["count"])  # classes may differ from the plain argmax
    assert record["without_confidence"] == first[0].size == sum(record["count"])


def test_a_truncated_file_and_several_arrays_are_refused(maps, tmp_path):
    given = ("--probabilities", maps, "--portion", 0.2, "--out", tmp_path / "o")
    whole = (maps / "image-0.npy").read_bytes()
    (maps / "image-0.npy").write_bytes(whole[:-100])
    assert "image-0.npy is not a readable" in refused(*given)
    (maps / "image-0.npy").write_bytes(whole)
    np.savez(maps / "two.npz", a=np.zeros(3), b=np.zeros(3))
    assert "must hold one array or one called 'probability', got a, b" in refused(*given)
    (maps / "two.npz").unlink()
    np.savez(maps / "image-0.npz", probability=probabilities(0)[0])
    assert "every image must have one map, got" in refused(*given)


def test_arguments_that_cannot_be_used_are_refused(maps, tmp_path):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "prior.npz", prior=np.ones((19, 4, 4), np.float32))
    for changes, sentence in (
        (("--probabilities", tmp_path / "nowhere"), "nowhere does not exist"),
        (("--probabilities", tmp_path / "empty"), "holds no .npy, .npz or .pt file"),
        (("--portion", 0), "portion must be in (0, 1], got 0"),
        (("--portions", "0.2,1.5"), "portion must be in (0, 1], got 1.5"),
        (("--workers", 0), "workers must be at least 1, got 0"),
        (("--upsample", 0), "upsample must be at least 1, got 0"),
        (("--classes", "19"), "label space cityscapes-19 has 19 classes, but"),
        (("--label-space", "birds"), "label space must be one of cityscapes-19"),
        (("--classes", "\N{SUPERSCRIPT TWO}"), "label space must be one of cityscapes-19"),
        (("--upsample", 2000), "must have at most 178,956,970 pixels, got 12000 x 16000: give a smaller upsample"),
        (("--upsample", 8, "--size", 40, 64), "must have the cells of 40 x 64 pixels at stride 8, got 6 x 8"),
        (("--upsample", 8, "--size", 40, 56), "got 6 x 8, as a network has that aligns corners: upsample its maps"),
        (("--spatial-prior", tmp_path / "prior.npz"), r"must hold a prior of shape (13, H, W), got (19, 4, 4)"),
        (("--spatial-prior", tmp_path / "none.npz"), "none.npz cannot be read: No such file"),
    ):
        given = {"--probabilities": maps, "--portion": 0.2, "--out": tmp_path / "out"}
        given.update({changes[0]: changes[1:]})
        arguments = [
            part for key, value in given.items() for part in (key, *(value if isinstance(value, tuple) else [value]))
        ]
        output = refused(*arguments).replace("\n", " ")
        assert sentence in output, output
        assert not (tmp_path / "out").exists()


def test_wrong_usage():
    for arguments, sentence in (
        ((), "--probabilities and --out must be given"),
        (("--probabilities", "x", "--out", "y", "--size", 4, 4), "--size needs --upsample"),
        (("--policy", "global", "merge", "a", "--out", "b"), "--policy must come after merge"),
        (("--portions", "0.2;0.3"), "'0.2;0.3' is not a list of numbers such as 0.2,0.25,0.3"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2, result.output
        assert sentence in result.output


def test_a_portion_must_be_given(maps, tmp_path):
    result = call("--probabilities", maps, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--portion or --portions must be given" in result.output
    with pytest.raises(ConfigError, match="a portion or portions must be given, got neither"):
        run(MapFolder.open(maps), tmp_path / "out", policy="global", portion=None)
    with pytest.raises(ConfigError, match="portions must be at most 100, got 101"):
        run(MapFolder.open(maps), tmp_path / "out", policy="global", portion=None, portions=np.linspace(0.1, 1, 101))


def test_too_small_a_disk_is_refused_before_anything_is_written(maps, tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    output = refused("--probabilities", maps, "--portion", 0.2, "--out", tmp_path / "out").replace("\n", " ")
    assert "not enough disk space" in output
    assert not (tmp_path / "out").exists()


def test_a_count_checks_the_disk_as_well(maps, tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    output = refused("count", "--probabilities", maps, "--out", tmp_path / "c" / "1.npz").replace("\n", " ")
    assert "not enough disk space" in output
    assert not (tmp_path / "c").exists()


def test_the_memory_of_a_prior_is_that_of_its_array(maps, tmp_path):
    np.savez_compressed(tmp_path / "prior.npz", prior=np.ones((13, 1000, 1000), np.float32))
    with_prior = MapFolder.open(maps, prior=tmp_path / "prior.npz")
    assert needs(with_prior, workers=1).memory - needs(MapFolder.open(maps), workers=1).memory == 52_000_000


def test_needs_grow_with_the_job(maps):
    folder = MapFolder.open(maps, stride=8)
    one, more = needs(folder, workers=1), needs(folder, workers=2, portions=7)
    assert one.disk < more.disk
    assert 2 * one.memory < more.memory
    assert needs(folder, workers=1, labels=False).disk < one.disk


def test_label_spaces(tmp_path):
    nineteen, seven = (write_maps(tmp_path / str(count), probabilities(1, 1, count)) for count in (19, 7))
    assert MapFolder.open(nineteen).label_space is CITYSCAPES_19
    assert MapFolder.open(nineteen, classes="cityscapes-19").label_space is CITYSCAPES_19
    assert MapFolder.open(seven).label_space == MapFolder.open(seven, classes="7").label_space == numbered(7)
    with pytest.raises(ConfigError, match=r"label space synthia-16 has 16 classes, but .*image-0\.npy has 19"):
        MapFolder.open(nineteen, classes="16")


@pytest.mark.parametrize("option", ["--label-space", "--classes"])
def test_own_classes_from_a_description(tmp_path, option):
    description = tmp_path / "own.yaml"
    description.write_text(
        "label_space: {name: two, names: [sky, road], palette: [[70, 130, 180], [128, 64, 128]], ids: {0: 0, 1: 1}}\n"
        "splits: {all: {images: ['*.png']}}\n"
    )
    maps = write_maps(tmp_path / "maps", probabilities(1, 2, 2))
    succeed("--probabilities", maps, option, description, "--portion", 0.5, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out/kc.json").read_text())["names"] == ["sky", "road"]
    prior_files.save(tmp_path / "prior.npz", np.ones((2, 4, 4), np.float32), {"names": ["road", "sky"]})
    with pytest.raises(DataError, match="class 0 is .road., not .sky."):
        MapFolder.open(maps, classes=str(description), prior=tmp_path / "prior.npz")
    MapFolder.open(maps, prior=tmp_path / "prior.npz")  # unnamed classes: there is nothing to compare


def test_maps_that_change_while_the_job_runs_are_noticed(maps, tmp_path, monkeypatch):
    original = State.save

    def change(self, path):
        original(self, path)
        if not self.counts.refining:
            np.save(maps / "image-2.npy", probabilities(7)[2])

    monkeypatch.setattr(State, "save", change)
    with pytest.raises(DataError, match="image-2.npy has changed since this run began: give the same command again"):
        run(MapFolder.open(maps), tmp_path / "out", policy="class-balanced", portion=0.3)
    with pytest.raises(RunError, match="image-2.npy must be the file that .*state.npz has counted, it has changed"):
        run(MapFolder.open(maps), tmp_path / "out", policy="class-balanced", portion=0.3)
    (maps / "image-2.npy").unlink()
    with pytest.raises(RunError, match="image-2, which it has counted, is gone"):
        run(MapFolder.open(maps), tmp_path / "out", policy="class-balanced", portion=0.3)


def test_label_works_where_mxnet_cannot_be_imported(maps, tmp_path):
    code = f"""
import sys
sys.modules["mxnet"] = None
from cbst_mx.cli.labelling import label
label(["--probabilities", {str(maps)!r}, "--portion", "0.2", "--out", {str(tmp_path / "out")!r}, "--workers", "2"])
"""
    script = tmp_path / "script.py"
    script.write_text("if __name__ == '__main__':\n" + "\n".join("    " + line for line in code.splitlines()))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "kc.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("stored", ["stride-8", "full size"])
def test_the_job_takes_less_than_300_mb(tmp_path, stored, prior):
    if prior:
        np.savez(tmp_path / "prior.npz", prior=np.random.default_rng(0).random((19, 1024, 2048), dtype=np.float32))
    given = f"Path({str(tmp_path / 'prior.npz')!r})" if prior else None
    small = probabilities(8, count=3, classes=19, size=(128, 256))
    if stored == "full size":
        small = [ClassMaps(array, (1024, 2048)).rows(0, 1024) for array in small]
    folder = write_maps(tmp_path / "maps", small)
    code = f"""
from pathlib import Path
from cbst_mx.labelling import MapFolder, run

def memory(which):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(which))

base = memory("VmRSS")
folder = MapFolder.open(Path({str(folder)!r}), stride={8 if stored == "stride-8" else 1}, prior={given})
run(folder, Path({str(tmp_path / "out")!r}), policy="class-balanced", portion=0.2, portions=[0.2, 0.3, 0.5])
print(memory("VmHWM") - base)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 300, result.stdout  # MB; pages of mapped files count as well


def test_thresholds_say_what_may_not_be_kept(tmp_path):
    maps = np.zeros((2, 3, 2, 2), np.float32)
    maps[:, 0] = 1  # classes 1 and 2 are never predicted
    folder = write_maps(tmp_path / "maps", maps)
    record = run(MapFolder.open(folder), tmp_path / "out", policy="class-balanced", portion=0.5)
    assert record["threshold"] == [1.0, None, None]
    assert record["kc"] == [0.0, None, None]
    assert record["kept"] == [8, 0, 0]
    assert record["kept_portion"] == 1.0


def test_what_is_odd_about_a_result_is_said_in_it(tmp_path):
    maps = np.zeros((2, 3, 6, 8), np.float32)
    maps[:, 1] = 1
    maps[0, :, :2] = 0
    output = succeed("--probabilities", write_maps(tmp_path / "m", maps), "--portion", 0.2, "--out", tmp_path / "o")
    record = json.loads((tmp_path / "o" / "kc.json").read_text())
    sentences = (
        "all pixels are predicted as one class of 3: the network has collapsed, or the softmax was taken over",
        "100 % of the pixels are kept where 20 % were asked for: many are exactly as confident as a threshold",
        "16 of 96 pixels have no confidence (all classes are 0): they are in no pool and get no label",
    )
    assert len(record["remarks"]) == 3
    for sentence, stored in zip(sentences, record["remarks"]):
        assert stored.startswith(sentence)
        assert f"warning: {sentence}" in output


def test_an_origin_is_recorded_and_warned_of_once(tmp_path):
    maps = [np.maximum(one, other) for one, other in zip(probabilities(0), probabilities(1))]
    folder = write_maps(tmp_path / "maps", maps)
    given = ("--probabilities", folder, "--portion", 0.2, "--out", tmp_path / "out")
    assert "image-0.npy: the classes of a pixel must sum to 1 (within 0.01), got" in refused(*given)
    output = succeed(*given[:-1], tmp_path / "again", "--origin", "maximum")
    assert output.count("which origin maximum explains") == 1
    assert json.loads((tmp_path / "again" / "kc.json").read_text())["settings"]["origin"] == "maximum"
    assert "origin must be one of plain, bicubic" in refused(*given[:-1], tmp_path / "third", "--origin", "other")


def test_the_commands_for_several_machines_give_what_one_call_gives(tmp_path, monkeypatch):
    commands = re.findall(r"^    cbst-mx label (.*)", (ROOT / "docs/labels.md").read_text(), re.MULTILINE)[1:]
    assert len(commands) == 7
    monkeypatch.chdir(tmp_path)
    write_maps(tmp_path / "maps", probabilities(0, 4))
    for command in commands:
        succeed(*shlex.split(command))
    succeed("--probabilities", "maps", "--portion", 0.2, "--out", "whole")
    assert contents(tmp_path / "labels") == contents(tmp_path / "whole")


def dead_process():
    """Return the number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_temporary_files_of_killed_writers_are_removed_at_the_next_start(tmp_path):
    folder = tmp_path / "maps"
    for name, array in zip(("a", "x/b"), probabilities(0, 2)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", array)
    out, gone = tmp_path / "out", dead_process()
    given = {"policy": "class-balanced", "portion": 0.2}
    run(MapFolder.open(folder), out, **given)
    left = [
        out / f".state.npz.{gone}.part",
        *(out / f"pseudo_labels/{name}.png.{gone}.part" for name in (".a", "x/.b")),
    ]
    stay = [out / f".state.npz.{os.getpid()}.part", out / ".note", out / f"state.{gone}.part"]
    for path in (*left, *stay):
        path.write_bytes(b"x")
    run(MapFolder.open(folder), out, **given)  # a finished job
    assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in stay)
    (tmp_path / f".1.npz.{gone}.part").write_bytes(b"x")
    (tmp_path / f".2.npz.{gone}.part").write_bytes(b"x")
    succeed("count", "--probabilities", folder, "--out", tmp_path / "1.npz")
    assert not (tmp_path / f".1.npz.{gone}.part").exists()
    assert (tmp_path / f".2.npz.{gone}.part").exists()  # in a folder that is not ours other files are left alone


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"])
def test_workers_end_with_the_process_that_started_them(tmp_path, signal_name):
    # however it ends: a caller that reads their output would wait for ever
    write_maps(tmp_path / "maps", probabilities(9, count=60, size=(60, 80)))
    script = tmp_path / "job.py"
    script.write_text(
        "import signal, time\nfrom pathlib import Path\nfrom cbst_mx.labelling import MapFolder, job\n"
        "if __name__ == '__main__':\n"
        f"    if {signal_name!r} == 'SIGHUP':\n"  # which nohup lets all its children ignore
        "        signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"    folder = MapFolder.open(Path({str(tmp_path / 'maps')!r}))\n"
        "    def told(what, done, total):\n"
        "        print(done, flush=True)\n"
        "        time.sleep(60)\n"
        f"    out = Path({str(tmp_path / 'out')!r})\n"
        "    job.run(folder, out, policy='global', portion=0.2, workers=2, progress=told)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip().isdigit()
        process.send_signal(getattr(signal, signal_name))
        # ends when the last process that holds it is gone: the workers, the fork server, the resource tracker
        process.communicate(timeout=60)


def test_every_flipped_bit_of_a_header_is_a_sentence(tmp_path):
    folder = tmp_path / "maps"
    write_maps(folder, probabilities(0, count=1))
    path = folder / "image-0.npy"
    whole = path.read_bytes()
    refusals = []
    for bit in range(8 * 128):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(content))
        try:
            MapFolder.open(folder).view(0)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 300
    assert not [refusal for refusal in refusals if "\n" in refusal or "image-0.npy" not in refusal]


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", "", "{", '{"names": 1}', "[" * 100_000, '{"policy": "cbst", "portion": 1}']
)
def test_a_damaged_result_is_made_again(maps, tmp_path, content):
    out = tmp_path / "out"
    given = ("--probabilities", maps, "--portion", 0.3, "--portions", "0.2,0.3", "--out", out)
    succeed(*given)
    before = contents(out)
    for name in ("kc.json", "sweep.csv"):
        (out / name).write_text(content)
        assert "% of the pixels kept" in succeed(*given)
        assert contents(out) == before
    record = json.loads((out / "kc.json").read_text())
    for key, value in (("names", ["x"]), ("count", [None] * 13), ("kept_portion", "all"), ("kc", {})):
        (out / "kc.json").write_text(json.dumps({**record, key: value}))
        succeed(*given)
        assert contents(out) == before


@pytest.mark.parametrize("content", ["{}", "[]", "null", "", "{", "[" * 100_000])
def test_a_damaged_job_is_a_sentence(maps, tmp_path, content):
    given = ("--probabilities", maps, "--portion", 0.3, "--out", tmp_path / "out")
    succeed(*given)
    (tmp_path / "out" / "job.json").write_text(content)
    assert "job.json cannot be read" in (found := refused(*given).replace("\n", " ")) or "another job" in found


@pytest.mark.parametrize("shard", ["\N{SUPERSCRIPT TWO}/2", "1/" + "9" * 5000, "1", "/", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_wrong_usage(maps, tmp_path, shard):
    result = call("count", "--probabilities", maps, "--out", tmp_path / "s.npz", "--shard", shard)
    assert result.exit_code == 2
    assert "is not a shard such as 1/4" in result.output
    assert len(result.output) < 500


def test_more_workers_than_any_job_has_are_refused(maps, tmp_path):
    given = ("--probabilities", maps, "--portion", 0.3, "--out", tmp_path / "out")
    assert "workers must be at most 1,000, got 99999999999" in refused(*given, "--workers", 99999999999)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_are_refused_and_not_waited_for(maps, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for arguments in (
        ("merge", pipe, "--out", tmp_path / "m.npz"),
        ("--probabilities", maps, "--portion", 0.3, "--out", tmp_path / "out", "--spatial-prior", pipe),
        ("--probabilities", maps, "--portion", 0.3, "--out", tmp_path / "out", "--spatial-prior", "/dev/zero"),
    ):
        assert "it is no ordinary file" in refused(*arguments).replace("\n", " ")
    with pytest.raises(DataError, match="it is no ordinary file"):
        prior_files.read_matlab(pipe)
