"""The pass: passes that are needed, progress, the record, parts of a set added up."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.errors import DataError
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.kc import ConfidencePool
from cbst_mx.selftrain.selection import Kept, label, label_set, limited, passes
from cbst_mx.selftrain.views import HostMap
from tests.maps import random_maps

CLASSES = 4


class Views(list):
    """Images of a set, which notes how often it is read."""

    read = 0

    def __iter__(self):
        self.read += 1
        return super().__iter__()


def views(count=3, dtype=np.float32):
    return Views(
        (str(seed), HostMap(ClassMaps(random_maps(seed, (CLASSES, 9, 11)).astype(dtype)))) for seed in range(count)
    )


def everything(collector, images, **options):
    labels, told = {}, []
    options.setdefault("statistics", ImageStatistics(CLASSES))
    found = label_set(
        images,
        collector,
        policy="class-balanced",
        portion=0.3,
        write=labels.__setitem__,
        progress=lambda *state: told.append(state),
        **options,
    )
    return found, labels, told


@pytest.mark.parametrize(
    ("kind", "dtype", "read"),
    [(ConfidencePool, np.float32, 2), (StreamingThresholds, np.float32, 3), (StreamingThresholds, np.float16, 2)],
)
def test_a_set_is_read_as_often_as_its_thresholds_need(kind, dtype, read):
    images = views(dtype=dtype)
    found, labels, told = everything(kind(CLASSES), images, what="labels")
    assert images.read == read
    assert list(labels) == ["0", "1", "2"]
    # as many steps are told as the shortest way has, whatever comes
    assert [what for what, _, _ in told] == ["labels"] * (3 * read)
    assert {total for _, _, total in told} == {6}
    assert [done for _, done, _ in told[-3:]] == [4, 5, 6]
    assert all(done < 6 for _, done, _ in told[:-1])


def test_sorted_and_counted_confidences_give_the_same_record():
    statistics = [ImageStatistics(CLASSES) for _ in range(2)]
    (one, labels, _), (other, others, _) = (
        everything(kind(CLASSES), views(), statistics=own)
        for kind, own in zip((ConfidencePool, StreamingThresholds), statistics)
    )
    names = ["a", "b", "c", "d"]
    assert one.to_json(names) == other.to_json(names)
    for name in labels:
        np.testing.assert_array_equal(labels[name], others[name])
    kept = sum(np.bincount(chosen.ravel(), minlength=256)[:CLASSES] for chosen in labels.values())
    np.testing.assert_array_equal(one.kept, kept)
    assert one.kept_portion == kept.sum() / (3 * 9 * 11)
    np.testing.assert_array_equal(statistics[0].total(), one.thresholds.counts)
    np.testing.assert_array_equal(statistics[0].confidence_sums, statistics[1].confidence_sums)


def test_the_record_has_what_is_known_of_the_pass():
    found, _, _ = everything(StreamingThresholds(CLASSES), views())
    plain = found.to_json("abcd")
    assert list(plain)[-4:] == ["names", "kept", "pixels", "kept_portion"]
    full = found.to_json("abcd", method="cbst", predicted=np.array([1, 2, 3, 4]))
    assert full == {**plain, "method": "cbst", "predicted": [1, 2, 3, 4]}


def test_parts_of_a_set_are_added():
    found, labels, _ = everything(StreamingThresholds(CLASSES), views())
    parts = [label([pair], [found.thresholds, found.thresholds], None) for pair in views()]
    total = sum(parts, Kept.none(2, CLASSES))
    np.testing.assert_array_equal(total.kept, [found.kept, found.kept])
    assert total.pixels == found.pixels


def test_passes_come_one_by_one():
    state = StreamingThresholds(CLASSES)
    images = views()
    seen = 0
    for _ in passes(state, ["global"], [0.2]):
        seen += 1
        for name, view in images:
            state.collect(name, view)
    assert seen == 2
    assert state.thresholds("global", 0.2).portion == 0.2


def test_errors_name_the_image():
    broken = random_maps(0, (CLASSES, 9, 11))
    broken[0, 0, 0] = np.nan
    images = Views([("a.png", HostMap(ClassMaps(broken), origin="a.png"))])
    with pytest.raises(DataError, match="^a.png: probabilities must be finite, got NaN or infinity$"):
        everything(StreamingThresholds(CLASSES), images)


@pytest.mark.parametrize("policy", ["class-balanced", "global"])
@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_classes_may_get_fewer_pseudo_labels_or_none(policy, fidelity):
    found = []
    for kind in (ConfidencePool, StreamingThresholds):
        seen, labels = [], {}
        images, statistics = views(), ImageStatistics(CLASSES)

        def limit(predicted, seen=seen):
            seen.append(predicted)
            return {0: 0.0, 2: 0.1}

        options = {"policy": policy, "portion": 0.5, "write": labels.__setitem__, "statistics": statistics}
        collector = kind(CLASSES, fidelity=fidelity)
        result = label_set(images, collector, limit=limit, **options)
        np.testing.assert_array_equal(seen, [statistics.total()])  # asked once, after the first pass
        assert result.kept[0] == 0
        assert result.thresholds.values[0] == np.inf
        plain = collector.thresholds(policy, 0.5)
        own = collector.thresholds("class-balanced", 0.05).values[2]
        assert result.thresholds.values[2] == max(own, plain.values[2])
        np.testing.assert_array_equal(result.thresholds.values[[1, 3]], plain.values[[1, 3]])
        if fidelity == "paper":  # at most the portion of the pixels, but for rounding; ties there are none
            assert 0 < result.kept[2] <= 0.05 * statistics.total()[2] + 1
        found.append((result.to_json("abcd"), {name: one.tobytes() for name, one in labels.items()}))
    assert found[0] == found[1]
    none = collector.thresholds(policy, 0.5)
    assert limited(collector, policy, 0.5, {}).to_json() == none.to_json()
