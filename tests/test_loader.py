from __future__ import annotations

import contextlib
import itertools
import threading
import time

import numpy as np
import pytest

from cbst_mx import seeding
from cbst_mx.data.loader import BatchLoader
from cbst_mx.data.transforms import TrainTransform, normalise
from cbst_mx.errors import ConfigError, DataError

ITERATIONS = 7


def make_samples(count):
    def reader(index):
        def read():
            rng = np.random.default_rng(index)
            image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            return image, rng.integers(0, 19, (20, 30), dtype=np.uint8)

        return read

    return [reader(index) for index in range(count)]


def marked(count):
    """Return samples whose labels all hold the sample's index."""

    def reader(index):
        return lambda: (np.full((4, 4, 3), index, np.uint8), np.full((4, 4), index, np.uint8))

    return [reader(index) for index in range(count)]


def unchanged(image, label, rng):
    return image, label


def loader(samples, transform=None, **changes):
    arguments = {"batch_size": 4, "seed": 5, "round": 2, "iterations": ITERATIONS, **changes}
    return BatchLoader(samples, transform or TrainTransform(crop=(16, 24), brightness=0.2, blur=0.3), **arguments)


def indices(some_loader):
    return [labels[:, 0, 0].astype(int).tolist() for _, labels in some_loader]


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("cbst-loader")]


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for (images, labels), (other_images, other_labels) in zip(batches, expected):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


# --- what a batch is


def test_shapes_and_types():
    batches = list(loader(make_samples(10)))
    assert len(batches) == ITERATIONS
    for images, labels in batches:
        assert images.shape == (4, 3, 16, 24)
        assert images.dtype == np.float32
        assert images.flags.c_contiguous
        assert labels.shape == (4, 16, 24)
        assert labels.dtype == np.float32
        assert set(np.unique(labels)) <= {*range(19), 255}


def test_batch_is_the_transform_of_the_samples_it_plans():
    samples = make_samples(10)
    transform = TrainTransform(crop=(16, 24))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    some_loader = loader(samples, transform, mean=mean, std=std)
    for (images, labels), plan in zip(some_loader, some_loader.plans()):
        for place, (epoch, index) in enumerate(plan):
            rng = seeding.generator(5, round=2, epoch=epoch, index=index, purpose="transform")
            image, label = transform(*samples[index](), rng)
            np.testing.assert_array_equal(images[place], normalise(image, mean, std))
            np.testing.assert_array_equal(labels[place], label)


@pytest.mark.parametrize("groups", [None, [(7, 3), (3, 1)]])
def test_equal_batches_for_any_number_of_workers(groups):
    samples = make_samples(10)
    expected = list(loader(samples, workers=0, groups=groups))
    for workers in (1, 2, 5):
        assert_same(list(loader(samples, workers=workers, groups=groups)), expected)


def test_equal_batches_when_workers_finish_out_of_order():
    def delayed(read, seconds):
        def slow():
            time.sleep(seconds)
            return read()

        return slow

    samples = make_samples(8)
    late = [delayed(read, 0.02 if index % 3 == 0 else 0) for index, read in enumerate(samples)]
    assert_same(list(loader(late, workers=3, batch_size=2)), list(loader(samples, batch_size=2)))


def test_iterating_again_gives_the_same_again():
    some_loader = loader(make_samples(10), workers=2)
    assert_same(list(some_loader), list(some_loader))


@pytest.mark.parametrize("change", [{"seed": 6}, {"round": 3}])
def test_seed_and_round_change_order_and_transforms(change):
    samples = marked(40)
    assert indices(loader(samples, unchanged, **change)) != indices(loader(samples, unchanged))
    # One sample only, so that nothing but its transform can differ.
    one = make_samples(1)
    assert (next(iter(loader(one, **change)))[0] != next(iter(loader(one)))[0]).any()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 4, ITERATIONS])
def test_start_continues_without_reading_what_came_before(start, workers):
    samples = make_samples(10)
    everything = list(loader(samples))
    read = []

    def counted(index):
        def call():
            read.append(index)
            return samples[index]()

        return call

    rest = loader([counted(index) for index in range(10)], start=start, workers=workers)
    assert len(rest) == ITERATIONS - start
    assert_same(list(rest), everything[start:])
    assert len(read) == 4 * (ITERATIONS - start)


def test_more_iterations_keep_the_earlier_batches():
    samples = make_samples(10)
    assert_same(list(loader(samples, iterations=12))[:ITERATIONS], list(loader(samples)))


def test_no_iterations_no_batches():
    some_loader = loader(make_samples(3), iterations=0)
    assert len(some_loader) == 0
    assert list(some_loader) == []


# --- order


def test_every_epoch_is_a_fresh_permutation_of_full_batches():
    batches = indices(loader(marked(10), unchanged, iterations=2 * 30))
    epochs = [batches[i] + batches[i + 1] for i in range(0, 60, 2)]
    for epoch in epochs:
        # two full batches of four; two of the ten samples are left over
        assert len(set(epoch)) == 8
    assert len({tuple(epoch) for epoch in epochs}) == 30
    # The left-over places go round: all samples are used, each 24 times of 30 on average (standard deviation 2.2).
    counts = np.bincount(np.ravel(epochs), minlength=10)
    assert counts.min() >= 15


def test_epoch_that_fits_exactly_leaves_nothing_out():
    batches = indices(loader(marked(8), unchanged, iterations=6))
    for i in range(0, 6, 2):
        assert sorted(batches[i] + batches[i + 1]) == list(range(8))


def test_fewer_samples_than_places_repeat_without_a_gap():
    some_loader = loader(marked(3), unchanged, iterations=6)
    stream = list(itertools.chain.from_iterable(indices(some_loader)))
    assert len(stream) == 24
    for i in range(0, 24, 3):
        assert sorted(stream[i : i + 3]) == [0, 1, 2]
    plans = list(itertools.chain.from_iterable(some_loader.plans()))
    # never twice with the same generator
    assert len(set(plans)) == 24
    assert [epoch for epoch, _ in plans] == [i // 3 for i in range(24)]


def test_one_sample_is_changed_differently_each_time():
    batches = list(loader(make_samples(1), iterations=2))
    pictures = [picture.tobytes() for images, _ in batches for picture in images]
    assert len(set(pictures)) == 8


# --- composition


def test_groups_fix_the_composition_of_every_batch():
    # 12 samples of the first kind, 3 of the second; the second goes through its epochs faster
    batches = indices(loader(marked(15), unchanged, groups=[(12, 3), (3, 1)], iterations=12))
    for batch in batches:
        assert all(index < 12 for index in batch[:3])
        assert batch[3] >= 12
    for i in range(0, 12, 4):
        assert sorted(itertools.chain.from_iterable(batch[:3] for batch in batches[i : i + 4])) == list(range(12))
    for i in range(0, 12, 3):
        assert sorted(batch[3] for batch in batches[i : i + 3]) == [12, 13, 14]


def test_groups_of_one_size_have_orders_of_their_own():
    batches = indices(loader(marked(40), unchanged, groups=[(20, 2), (20, 2)], iterations=10))
    assert [[index + 20 for index in batch[:2]] for batch in batches] != [batch[2:] for batch in batches]


def test_without_groups_one_common_permutation():
    samples = marked(10)
    assert indices(loader(samples, unchanged)) == indices(loader(samples, unchanged, groups=[(10, 4)]))


# --- workers


def test_threads_are_used_and_gone_afterwards():
    names = set()

    def read():
        names.add(threading.current_thread().name)
        time.sleep(0.005)
        return np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)

    list(loader([read] * 8, unchanged, workers=2))
    assert len(names) == 2
    assert all(name.startswith("cbst-loader") for name in names)
    assert not loader_threads()
    names.clear()
    list(loader([read] * 8, unchanged, workers=0))
    assert names == {threading.current_thread().name}


def test_no_more_than_two_batches_per_worker_are_ahead():
    read = []

    def call():
        read.append(1)
        return np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)

    with contextlib.closing(iter(loader([call] * 8, unchanged, workers=2, iterations=50))) as batches:
        next(batches)
        time.sleep(0.1)
        # 4 batches of 4 samples: the one handed over and those prepared meanwhile
        assert len(read) <= 4 * 4


def test_leaving_early_stops_the_threads():
    samples = make_samples(10)
    for _ in loader(samples, workers=2, iterations=1000):
        break
    assert not loader_threads()

    batches = iter(loader(samples, workers=2, iterations=1000))
    next(batches)
    batches.close()
    assert not loader_threads()

    def train():
        with contextlib.closing(iter(loader(samples, workers=2, iterations=1000))) as batches:
            next(batches)
            raise KeyError("in the training step")

    with pytest.raises(KeyError, match="in the training step"):
        train()
    assert not loader_threads()


def test_an_iterator_never_started_starts_no_thread():
    batches = iter(loader(make_samples(4), workers=2))
    assert not loader_threads()
    del batches


# --- errors


def failing(error, name=None):
    def read():
        raise error

    if name:
        read.name = name
    return read


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_unreadable_sample_is_named(workers):
    samples = make_samples(10)
    samples[3] = failing(DataError("image town_3.png is truncated"), "town_3")
    expected = r"^training sample 3 \(town_3\) cannot be used: image town_3\.png is truncated$"
    with pytest.raises(DataError, match=expected) as caught:
        list(loader(samples, workers=workers, iterations=20))
    assert isinstance(caught.value.__cause__, DataError)
    del caught
    assert not loader_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_before_the_error_arrive(workers):
    samples = marked(10)
    good = indices(loader(samples, unchanged))
    bad = good[1][0]
    samples[bad] = failing(OSError("disk gone"))
    got = []
    batches = loader(samples, unchanged, workers=workers)
    with pytest.raises(DataError, match=rf"^training sample {bad} cannot be used: disk gone$"):
        got.extend(labels[:, 0, 0].astype(int).tolist() for _, labels in batches)
    assert got == good[:1]


def test_transform_refusal_is_named():
    samples = [lambda: (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8))]
    with pytest.raises(DataError, match=r"^training sample 0 cannot be used: image and label must have the same size"):
        next(iter(loader(samples)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_defect_keeps_its_traceback(workers):
    samples = [failing(ZeroDivisionError("oops"), "street")] * 4
    expected = r"^training sample \d \(street\) failed with ZeroDivisionError: oops$"
    with pytest.raises(RuntimeError, match=expected) as caught:
        next(iter(loader(samples, workers=workers)))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_results_of_different_sizes_are_refused():
    def uneven(image, label, rng):
        size = int(rng.integers(2, 5))
        return image[:size], label[:size]

    with pytest.raises(ConfigError, match=r"^transform must give every sample the same size, got \(\d, 4\) and"):
        list(loader(marked(8), uneven))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, r"^batch_size must be an integer of at least 1, got 0$"),
        ({"batch_size": 2.0}, r"^batch_size must be an integer of at least 1, got 2\.0$"),
        ({"iterations": -1}, r"^iterations must be an integer of at least 0, got -1$"),
        ({"workers": True}, r"^workers must be an integer of at least 0, got True$"),
        ({"start": 8}, r"^start must be at most iterations \(7\), got 8$"),
        ({"seed": -1}, r"^seed must be an integer in \[0, 2\^64\), got -1$"),
        ({"round": -1}, r"^round must be an integer in \[0, 2\^32\), got -1$"),
        ({"std": (0, 1, 1)}, r"^std must hold numbers above 0, got \(0, 1, 1\)$"),
        ({"groups": []}, r"^groups must be pairs \(samples, places in a batch\) of integers above 0, got \[\]$"),
        ({"groups": [(6, 4), (0, 0)]}, r"^groups must be pairs .* of integers above 0, got \[\(6, 4\), \(0, 0\)\]$"),
        ({"groups": [6, 4]}, r"^groups must be pairs .*, got \[6, 4\]$"),
        ({"groups": [(3, 2), (4, 2)]}, r"^groups must cover all 6 samples, got 7$"),
        ({"groups": [(3, 2), (3, 1)]}, r"^groups must fill the 4 places of a batch, got 3$"),
    ],
)
def test_refused_arguments(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        loader(marked(6), **arguments)


def test_no_samples_refused():
    with pytest.raises(ConfigError, match=r"^samples must hold at least one training sample, got none$"):
        loader([])


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("places", [0, 4, 100])
def test_a_cache_changes_no_batch_and_reads_what_fits_once(workers, places):
    samples, reads = make_samples(10), []

    def counted(index):
        def read():
            reads.append(index)
            return samples[index]()

        return read

    image, label = samples[0]()
    each = image.nbytes + label.nbytes
    cached = loader([counted(index) for index in range(10)], workers=workers, iterations=20, cache=places * each)
    expected = list(loader(samples, iterations=20))
    assert_same(list(cached), expected)
    planned = [index for plan in cached.plans() for _, index in plan]
    seen = set(planned)
    if not places:
        assert sorted(reads) == sorted(planned)
    elif places >= len(seen):
        assert len(seen) <= len(reads) <= len(seen) + (len(planned) if workers else 0)
    else:
        assert len(seen) < len(reads) < len(planned)
    reads.clear()
    assert_same(list(cached), expected)  # what was kept stays for the next iteration
    assert len(set(reads)) == (len(seen) - min(places, len(seen)) if places else len(seen))


def test_what_the_cache_keeps_cannot_be_changed_by_a_transform():
    images = [(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8))]

    def scribbles(image, label, rng):
        image += 1
        return image, label

    with pytest.raises(RuntimeError, match="failed with ValueError: output array is read-only"):
        list(loader([lambda: images[0]], scribbles, batch_size=1, iterations=2, cache=1000))
    images[0][0][:] = 1  # the reader's own arrays stay as they were


def test_a_cache_of_less_than_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"^cache must be an integer of at least 0, got -1$"):
        loader(make_samples(2), cache=-1)
