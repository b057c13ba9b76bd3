"""Class statistics: portions, rare classes and image scores by hand; merging; files; choosing images; the commands."""

from __future__ import annotations

import csv
import json
import random
import re

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import statistics as commands
from cbst_mx.cli.base import OneSentence
from cbst_mx.data.image_files import write_label_png
from cbst_mx.data.label_counts import count_labels, count_values
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.files import write_json
from cbst_mx.label_space import NTHU_13, numbered
from cbst_mx.selftrain.class_statistics import (
    ImageStatistics,
    portions,
    priority_classes,
    select_images,
    summary,
    worst_classes,
)


def counts_of(*numbers):
    return np.array(numbers, dtype=np.int64)


def test_portions():
    np.testing.assert_array_equal(portions(counts_of(3, 0, 1)), [0.75, 0, 0.25])
    large = portions(counts_of(2**40, 2**40))  # more pixels than 32 bits count
    np.testing.assert_array_equal(large, [0.5, 0.5])
    with pytest.raises(DataError, match="^counts must hold at least one predicted pixel, got none$"):
        portions(counts_of(0, 0))


def test_the_worst_classes_are_the_least_predicted_and_equal_ones_in_order():
    counts = counts_of(900, 5, 0, 70, 5, 0, 30, 5)
    assert worst_classes(counts) == [2, 5, 1, 4, 7]
    assert worst_classes(counts, 3) == [2, 5, 1]
    assert worst_classes(counts[:3]) == [2, 1, 0]
    with pytest.raises(ConfigError, match="^worst must be at least 1 class, got 0$"):
        worst_classes(counts, 0)


def test_priority_is_strictly_below_and_takes_in_classes_never_predicted():
    counts = counts_of(9978, 10, 9, 3, 0)  # of 10000: 10 are 0.1 % exactly
    assert priority_classes(counts) == [2, 3, 4]
    assert priority_classes(counts, 0.0) == []
    assert priority_classes(counts, 0.0009) == [3, 4]
    with pytest.raises(ConfigError, match=r"^priority must be a portion in \[0, 1\], got 1.5$"):
        priority_classes(counts, 1.5)


def test_summary_is_json():
    result = json.loads(json.dumps(summary(counts_of(3, 0, 1), ["a", "b", "c"], worst=2)))
    assert result == {
        "names": ["a", "b", "c"],
        "count": [3, 0, 1],
        "portion": [0.75, 0.0, 0.25],
        "worst": [1, 2],
        "priority": [1],
    }


# ------------------------------------------------------------------------------------------------------------ images


def example(count=30, classes=5, seed=0):
    """Return statistics of random images, some of whose classes are not predicted, and their rows."""
    rng = np.random.default_rng(seed)
    rows = {}
    for index in range(count):
        counts = rng.integers(0, 40, classes) * (rng.random(classes) < 0.6)
        counts[rng.integers(classes)] += 1
        rows[f"image-{index:03d}"] = (counts, counts * rng.uniform(0.3, 1.0, classes))
    statistics = ImageStatistics(classes)
    for name, numbers in rows.items():
        statistics.add(name, *numbers)
    return statistics, rows


def test_scores_worked_by_hand():
    statistics = ImageStatistics(3)
    statistics.add("b", counts_of(8, 2, 0), [7.2, 1.0, 0.0])  # class means 0.9 and 0.5
    statistics.add("a", counts_of(0, 0, 4), [0.0, 0.0, 3.2])
    assert statistics.names == ("a", "b")
    assert len(statistics) == 2
    np.testing.assert_allclose(statistics.scores(), [0.8, 0.7], rtol=1e-15)
    np.testing.assert_allclose(statistics.scores("confidence"), [0.8, 0.82], rtol=1e-15)
    assert statistics.total().tolist() == [8, 2, 4]
    assert statistics.total().dtype == np.int64
    with pytest.raises(ConfigError, match="^method must be one of class-balanced, confidence, got 'median'$"):
        statistics.scores("median")


def test_scores_against_plain_python():
    statistics, rows = example()
    for name, score in zip(statistics.names, statistics.scores()):
        counts, sums = rows[name]
        means = [total / count for count, total in zip(counts, sums) if count > 0]
        # the order of at most five additions
        assert score == pytest.approx(sum(means) / len(means), rel=1e-14)


def test_order_and_shards_change_nothing(tmp_path):
    statistics, rows = example()
    names = list(rows)
    random.Random(0).shuffle(names)
    shards = [ImageStatistics(5), ImageStatistics(5), ImageStatistics(5)]
    for index, name in enumerate(names):
        shards[index % 3].add(name, *rows[name])
    shards[2].merge(shards[0])
    shards[2].merge(shards[1])
    assert shards[2].names == statistics.names
    np.testing.assert_array_equal(shards[2].counts, statistics.counts)
    np.testing.assert_array_equal(shards[2].confidence_sums, statistics.confidence_sums)
    statistics.save(tmp_path / "a.npz")
    shards[2].save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_added_arrays_are_copied():
    statistics = ImageStatistics(2)
    counts, sums = counts_of(1, 2), np.array([0.5, 1.0])
    statistics.add("a", counts, sums)
    counts[:], sums[:] = 7, 7
    assert statistics.counts.tolist() == [[1, 2]]
    assert statistics.confidence_sums.tolist() == [[0.5, 1.0]]


def test_file_round_trip(tmp_path):
    path = tmp_path / "new" / "image_statistics.npz"
    for class_names in (None, ["a", "b", "c", "d", "ä"]):
        statistics, rows = example()
        statistics.class_names = None if class_names is None else tuple(class_names)
        statistics.save(path)
        again = ImageStatistics.load(path)
        assert again.names == statistics.names
        assert again.class_names == statistics.class_names
        np.testing.assert_array_equal(again.counts, statistics.counts)
        np.testing.assert_array_equal(again.confidence_sums, statistics.confidence_sums)
    with np.load(path, allow_pickle=False) as stored:  # for other programs
        assert stored["counts"].dtype == np.int64
        assert stored["confidence_sums"].dtype == np.float64
        assert stored["names"].tolist() == sorted(rows)
        assert stored["counts"].shape == (30, 5)
    ImageStatistics(5).save(path)  # a shard without images
    assert len(ImageStatistics.load(path)) == 0
    assert ImageStatistics.load(path).num_classes == 5


def test_sums_may_be_a_little_below_0_as_bicubic_maps_are():
    statistics = ImageStatistics(2)
    statistics.add("x", counts_of(10, 0), [-0.1, 0.0])
    assert statistics.scores().tolist() == [-0.01]


def test_images_are_refused():
    statistics = ImageStatistics(2, ["a", "b"])
    statistics.add("x", counts_of(1, 0), [0.5, 0.0])
    for arguments, sentence in (
        (("x", counts_of(1, 0), [0.5, 0.0]), "^the statistics of image x must be added once only, they are there"),
        (("", counts_of(1, 0), [0.5, 0.0]), "^the name of an image must be one line of text, got ''$"),
        (("a\nb", counts_of(1, 0), [0.5, 0.0]), "must be one line of text"),
        (("y", counts_of(1, 0, 0), [0.5, 0.0]), r"^counts of image y must have shape \(2,\), got \(3,\)$"),
        (("y", counts_of(1, 0), [0.5]), r"^confidence_sums of image y must have shape \(2,\), got \(1,\)$"),
        (("y", counts_of(2, -1), [0.0, 0.0]), "^counts of image y must be integers of at least 0"),
        (("y", np.array([1.5, 0]), [0.5, 0.0]), "^counts of image y must be integers of at least 0"),
        (("y", counts_of(1, 0), [np.nan, 0.0]), "^confidence_sums of image y must be finite, and 0 where"),
        (("y", counts_of(1, 0), [0.5, 0.1]), "^confidence_sums of image y must be finite, and 0 where"),
    ):
        with pytest.raises(DataError, match=sentence):
            statistics.add(*arguments)
    assert statistics.names == ("x",)
    with pytest.raises(ConfigError, match="^class_names must be 2 names, got 1$"):
        ImageStatistics(2, ["a"])


def test_merges_are_refused_as_a_whole():
    statistics, _ = example()
    for other, sentence in (
        (ImageStatistics(4), "^statistics to merge must be of 5 classes, got 4$"),
        (example(2)[0], "^statistics to merge must be of different images, got image-000 in both$"),
    ):
        other.add("new", np.ones(other.num_classes, np.int64), np.ones(other.num_classes))
        with pytest.raises(DataError, match=sentence):
            statistics.merge(other)
    named, renamed = ImageStatistics(1, ["a"]), ImageStatistics(1, ["b"])
    with pytest.raises(DataError, match="^statistics to merge must be of the same classes, got other class names$"):
        named.merge(renamed)
    assert len(statistics) == 30


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "s.npz"
    statistics, _ = example()
    statistics.save(path)
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[:100], whole[:-30], whole[:300] + bytes(60) + whole[360:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="s.npz is not a readable file of image statistics: "):
            ImageStatistics.load(path)
    good = {"names": np.array(["a", "b"]), "counts": np.ones((2, 3), np.int64), "confidence_sums": np.ones((2, 3))}
    for change, sentence in (
        ({"names": np.array(["a", None])}, "is not a readable file .* holds Python objects"),
        ({"names": np.array([1, 2])}, r"must hold N names and counts of shape \(N, C\), got int64 of shape \(2,\)"),
        ({"names": np.array(["a"])}, r"must hold N names and counts of shape \(N, C\)"),
        ({"names": np.array(["a", "a"])}, "s.npz: the statistics of image a must be added once only"),
        ({"counts": np.ones((2, 3))}, "s.npz: counts of image a must be integers"),
        ({"confidence_sums": np.ones((2, 4))}, r"must hold confidence_sums as numbers of shape \(2, 3\), got float64"),
        ({"confidence_sums": np.full((2, 3), np.inf)}, "s.npz: confidence_sums of image a must be finite"),
        ({"class_names": np.array(["x"])}, r"must hold class_names as 3 texts, got <U1 of shape \(1,\)"),
    ):
        np.savez(path, **{**good, **change})
        with pytest.raises(DataError, match=sentence):
            ImageStatistics.load(path)
    with open(path, "wb") as stream:
        np.save(stream, good["counts"])
    with pytest.raises(DataError, match="it holds one array without a name"):
        ImageStatistics.load(path)
    with pytest.raises(DataError, match="image statistics: No such file or directory$"):
        ImageStatistics.load(tmp_path / "none.npz")


# -------------------------------------------------------------------------------------------------- choosing images


@pytest.mark.parametrize("method", ["class-balanced", "confidence"])
def test_the_best_images_are_kept(method):
    statistics, _ = example()
    selection = select_images(statistics, 12, method)
    scores = dict(zip(statistics.names, statistics.scores(method)))
    assert len(selection.names) == 12
    assert list(selection.names) == sorted(selection.names)
    assert selection.scores == scores
    assert min(scores[name] for name in selection.names) == selection.threshold
    assert all(scores[name] < selection.threshold for name in set(scores) - set(selection.names))
    rows = [statistics.names.index(name) for name in selection.names]
    np.testing.assert_array_equal(selection.counts, statistics.counts[rows].sum(axis=0))


def test_all_images_may_be_kept_and_the_bounds_are_refused():
    statistics, _ = example(4)
    selection = select_images(statistics, 4)
    assert selection.names == statistics.names
    assert np.array_equal(selection.counts, statistics.total())
    for keep in (0, 5):
        with pytest.raises(ConfigError, match=f"^keep must be from 1 to the 4 images there are, got {keep}$"):
            select_images(statistics, keep)


def test_ties_are_broken_by_name():
    statistics = ImageStatistics(2)
    for name in ("d", "b", "e", "a", "c"):
        statistics.add(name, counts_of(2, 2), [1.0, 1.0 if name != "e" else 2.0])
    selection = select_images(statistics, 3)
    assert selection.names == ("a", "b", "e")
    assert selection.threshold == 0.5


def test_a_rare_confident_class_counts_as_much_as_a_large_one():
    statistics = ImageStatistics(2)
    statistics.add("large and sure", counts_of(1000, 10), [950.0, 3.0])
    statistics.add("balanced", counts_of(1000, 10), [800.0, 8.0])
    assert select_images(statistics, 1).names == ("balanced",)
    assert select_images(statistics, 1, "confidence").names == ("large and sure",)


# -------------------------------------------------------------------------------------------------------- commands


def call(*arguments, code=0):
    main = OneSentence("cbst-mx", commands={command.name: command for command in commands.COMMANDS})
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


@pytest.fixture
def file(tmp_path):
    """Write the statistics of four images; class c is only in the worst of them, class d in none."""
    statistics = ImageStatistics(4, ["a", "b", "c", "d"])
    statistics.add("one", counts_of(6000, 3996, 0, 0), [5400.0, 3600.0, 0, 0])
    statistics.add("two", counts_of(6000, 3996, 0, 0), [5400.0, 3900.0, 0, 0])
    statistics.add("three", counts_of(2000, 7996, 0, 0), [1900.0, 7900.0, 0, 0])
    statistics.add("four", counts_of(6000, 3980, 16, 0), [5400.0, 3600.0, 3.0, 0])
    path = tmp_path / "image_statistics.npz"
    statistics.save(path)
    return path


def test_select_images_writes_list_threshold_and_table(file, tmp_path):
    out, table = tmp_path / "list.txt", tmp_path / "scores.csv"
    text = call("select-images", "--statistics", file, "--keep", 2, "--out", out, "--table", table)
    assert out.read_text() == "three\ntwo\n"
    record = json.loads((tmp_path / "list.txt.json").read_text())
    threshold = (5400 / 6000 + 3900 / 3996) / 2
    assert record["threshold"] == pytest.approx(threshold, rel=1e-15)
    assert (record["method"], record["images"], record["keep"]) == ("class-balanced", 4, 2)
    assert record["names"] == ["a", "b", "c", "d"]
    np.testing.assert_allclose(record["portion_before"], np.array([20000, 19968, 16, 0]) / 39984, rtol=1e-15)
    np.testing.assert_allclose(record["portion_after"], np.array([8000, 11992, 0, 0]) / 19992, rtol=1e-15)
    assert f"2 of 4 images kept, those with a class-balanced score of {threshold:.6f} up" in text
    assert "2 of the 3 predicted classes covered, without c" in text
    assert "50.020" in text
    assert "40.016" in text
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["name"] for row in rows] == ["three", "two", "one", "four"]
    assert [row["kept"] for row in rows] == ["1", "1", "0", "0"]
    assert [row["predicted classes"] for row in rows] == ["2", "2", "2", "3"]
    assert float(rows[1]["score"]) == record["threshold"]


def test_select_images_refuses_and_leaves_nothing(file, tmp_path):
    out = tmp_path / "list.txt"
    text = call("select-images", "--statistics", file, "--keep", 5, "--out", out, code=1)
    assert text == "Error: keep must be from 1 to the 4 images there are, got 5\n"
    assert "'--keep'" in call("select-images", "--statistics", file, "--keep", 0, "--out", out, code=2)
    text = call("select-images", "--statistics", tmp_path / "none.npz", "--keep", 1, "--out", out, code=1)
    assert "none.npz is not a readable file of image statistics: No such file or directory" in text
    assert [path.name for path in tmp_path.iterdir()] == ["image_statistics.npz"]


def marks(text):
    """Return the last column by class name."""
    lines = text.splitlines()
    below = next(number for number, line in enumerate(lines) if line.startswith("─")) + 1
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[below:]]
    return {row[0]: row[3] if len(row) > 3 else "" for row in rows if len(row) > 2}


def test_class_statistics_marks_rare_classes(file, tmp_path):
    out = tmp_path / "classes.json"
    text = call("class-statistics", file, "--worst", 3, "--out", out)
    assert marks(text) == {"a": "", "b": "worst 3", "c": "worst 2, priority", "d": "worst 1, priority"}
    assert json.loads(out.read_text()) == summary(
        ImageStatistics.load(file).total(), ["a", "b", "c", "d"], worst=3, priority=0.001
    )
    assert marks(call("class-statistics", file, "--worst", 1, "--priority", 0)) == {
        **dict.fromkeys("abc", ""),
        "d": "worst 1",
    }


def test_class_statistics_of_a_record_of_thresholds(tmp_path):
    record = tmp_path / "kc.json"
    write_json(record, {"count": list(range(13)), "threshold": [None] * 13})
    found = marks(call("class-statistics", record, "--label-space", "nthu-13"))
    assert list(found) == list(NTHU_13.names)
    assert [found[name] for name in NTHU_13.names[:6]] == [
        "worst 1, priority",
        *(f"worst {i}" for i in (2, 3, 4, 5)),
        "",
    ]
    assert "class 12" in marks(call("class-statistics", record))
    write_json(record, {"count": [5, 7], "names": ["x", "y"]})
    assert list(marks(call("class-statistics", record))) == ["x", "y"]
    # with the released rules count is of every 4th pixel, predicted of all: the mining goes by that
    write_json(record, {"count": [5, 0], "predicted": [20, 3], "names": ["x", "y"], "fidelity": "released"})
    assert " 20 " in call("class-statistics", record)
    write_json(record, {"count": [5, 0], "names": ["x", "y"], "fidelity": "released"})
    text = " ".join(call("class-statistics", record, code=1).split())
    assert f"{record} counts every 4th pixel only (rules of the released program): give" in text
    assert "image_statistics.npz" in text
    for content, sentence in (
        ({}, "must hold 'count', a list of the pixels predicted as each class, got None"),
        ({"count": [1, -2]}, "must hold 'count', a list of the pixels"),
        ({"count": [1.5]}, "must hold 'count', a list of the pixels"),
        ([], "must hold 'count', a list of the pixels"),
        ({"count": [1, 2], "names": ["x"]}, "must hold 'names', a list of 2 texts, got ['x']"),
        ({"count": [0, 0]}, "counts must hold at least one predicted pixel, got none"),
    ):
        write_json(record, content)
        assert sentence in call("class-statistics", record, code=1)
    write_json(record, {"count": [1, 2]})
    text = call("class-statistics", record, "--label-space", "nthu-13", code=1)
    assert "Error: label space nthu-13 has 13 classes, but" in text


def write_labels(folder, count=5):
    """Write label maps of three classes, of which a pixel in ten has none; return the pixels of each."""
    rng = np.random.default_rng(0)
    total = np.zeros(3, np.int64)
    for index in range(count):
        label = rng.choice(np.uint8([0, 1, 2, 255]), (6, 8), p=[0.5, 0.3, 0.1, 0.1])
        place = folder / ("day" if index % 2 else "night")
        place.mkdir(parents=True, exist_ok=True)
        write_label_png(place / f"{index}.png", label, numbered(3))
        total += np.bincount(label.reshape(-1), minlength=256)[:3]
    return total


def test_a_folder_of_label_maps_is_counted(tmp_path):
    total = write_labels(tmp_path / "labels")
    out = tmp_path / "result.json"
    call("class-statistics", tmp_path / "labels", "--label-space", "3", "--out", out)
    assert json.loads(out.read_text())["count"] == total.tolist()
    text = " ".join(call("class-statistics", tmp_path / "labels", "--label-space", "2", code=1).split())
    assert "must hold trainIds below 2 or 255, got 2" in text
    assert "needs --label-space" in call("class-statistics", tmp_path / "labels", code=2)
    (tmp_path / "none").mkdir()
    text = " ".join(call("class-statistics", tmp_path / "none", "--label-space", "2", code=1).split())
    assert "must hold label maps (.png of trainIds), it has none" in text


def test_the_label_maps_of_a_folder_are_counted_on_a_cluster(tmp_path):
    class Cluster:
        """Two blocks at a time, the last first."""

        size = 2

        def each(self, function, shares, *, waiting_for, ahead=2):
            for index in reversed(range(len(shares))):
                waiting_for()
                yield index, function(*shares[index].arguments)

    total = write_labels(tmp_path / "labels", 150)
    done = []
    counts = count_labels(tmp_path / "labels", 3, cluster=Cluster(), progress=lambda *now: done.append(now))
    np.testing.assert_array_equal(counts, total)
    assert done[-1] == (150, 150)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("shape", [(1, 1), (37, 41), (3000, 1500)])  # the last one in two parts
def test_values_are_counted_whatever_their_type(dtype, shape):
    label = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)[:, ::-1]
    counts = count_values(label)
    np.testing.assert_array_equal(counts, np.bincount(label.ravel(), minlength=256))
    assert counts.dtype == np.int64
    if dtype != np.uint8:
        label[0, 0] = 300
        assert len(count_values(label)) == 301
