from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.evaluation.confusion import confusion_matrix, iou_per_class, mean_iou, summary
from cbst_mx.evaluation.protocols import (
    LEVEL,
    THIRTEEN,
    ImageMatrices,
    evaluate,
    find_protocols,
    mean_over,
    narrow,
    widen,
    worst_images,
)
from cbst_mx.label_space import CITYSCAPES_19, NTHU_13, SYNTHIA_13, SYNTHIA_16

ALL, SIXTEEN = CITYSCAPES_19.names, SYNTHIA_16.names
OTHERS = [ALL.index(name) for name in ("terrain", "truck", "train")]
TO_19 = [ALL.index(name) for name in SIXTEEN]


def pictures(count=4, predicted=19, seed=0, shape=(20, 40)):
    """Return truths with all 19 classes and 255, and predictions of the 19 classes or of the 16 shared ones."""
    rng = np.random.default_rng(seed)
    truths = rng.integers(0, 19, (count, *shape), dtype=np.uint8)
    guesses = rng.integers(0, 19, truths.shape, dtype=np.uint8)
    predictions = np.where(rng.random(truths.shape) < 0.6, truths, guesses)
    if predicted == 16:
        other = np.isin(predictions, OTHERS)
        predictions[other] = rng.choice(TO_19, other.sum())
    truths[rng.random(truths.shape) < 0.1] = 255
    return truths, predictions


def matrices_of(truths, predictions, names=ALL):
    counts = np.stack([confusion_matrix(t, p, len(names)) for t, p in zip(truths, predictions)])
    return ImageMatrices(tuple(names), tuple(f"frame_{index}" for index in range(len(counts))), counts)


def by_name(matrices, **options):
    results, refused = evaluate(matrices, samples=10, **options)
    return {result.protocol.name: result for result in results}, refused


def sets_of_pixels(truths, predictions, train_id):
    true, predicted = (truths == train_id) & (truths != 255), (predictions == train_id) & (truths != 255)
    return np.sum(true & predicted) / np.sum(true | predicted)


# ------------------------------------------------------------------------------------------------------- the protocols


def test_nineteen_is_the_usual_evaluation():
    matrices = matrices_of(*pictures())
    result = by_name(matrices)[0]["19"]
    total = matrices.counts.sum(axis=0)
    assert result.miou == pytest.approx(mean_iou(total), rel=1e-12)
    assert result.protocol.table == "Table 3"
    assert result.iou == pytest.approx(summary(total, CITYSCAPES_19)["iou"], rel=1e-12)


@pytest.mark.parametrize("predicted", [19, 16])
def test_sixteen_ignores_the_other_truth_as_the_authors_do(predicted):
    truths, predictions = pictures(predicted=predicted)
    results, _ = by_name(matrices_of(truths, predictions))
    ignored = np.where(np.isin(truths, OTHERS), 255, truths)
    iou = {name: sets_of_pixels(ignored, predictions, ALL.index(name)) for name in SIXTEEN}
    assert results["16"].iou == pytest.approx(iou, rel=1e-12)
    assert results["16"].miou == pytest.approx(np.mean(list(iou.values())), rel=1e-12)
    assert results["13 of 16"].miou == pytest.approx(np.mean([iou[name] for name in THIRTEEN]), rel=1e-12)
    assert [results[name].protocol.table for name in ("16", "13 of 16")] == ["Table 2, mIoU", "Table 2, mIoU*"]


def test_averages_of_listed_ious():
    truths, predictions = pictures()
    results, _ = by_name(matrices_of(truths, predictions))
    iou = {name: sets_of_pixels(truths, predictions, index) for index, name in enumerate(ALL)}
    assert results["16 of 19"].miou == pytest.approx(np.mean([iou[name] for name in SIXTEEN]), rel=1e-12)
    assert results["13 of 19"].miou == pytest.approx(np.mean([iou[name] for name in THIRTEEN]), rel=1e-12)
    assert {results[name].protocol.table for name in ("16 of 19", "13 of 19")} == {""}


def test_nineteen_sixteenths_is_for_networks_of_sixteen_classes():
    truths, predictions = pictures(predicted=16)
    results, refused = by_name(matrices_of(truths, predictions))
    iou = [sets_of_pixels(truths, predictions, index) for index in range(19)]
    assert refused == {}
    assert np.count_nonzero(iou) == 16
    assert results["19 x 19/16"].miou == pytest.approx(sum(iou) / 16, rel=1e-12)
    # pixels of the other truth are false positives here, and are ignored by the authors
    assert results["19 x 19/16"].miou < results["16"].miou
    results, refused = by_name(matrices_of(*pictures(predicted=19)))
    assert "19 x 19/16" not in results
    assert refused == {"19 x 19/16": "only for networks without terrain, truck, train; predicted: terrain"}


def test_matrices_of_sixteen_classes_allow_what_their_truth_allows():
    truths, predictions = pictures(predicted=16)
    wide = matrices_of(truths, predictions)
    results, refused = by_name(narrow(wide, SIXTEEN))
    assert list(results) == ["16", "13 of 16"]
    assert refused == {"19 x 19/16": "the truth of terrain, truck, train was ignored when the labels were read"}
    same, _ = by_name(wide)
    for name, result in results.items():
        assert result == same[name]


def test_thirteen_of_nthu_and_classes_of_no_table():
    counts = np.arange(2 * 13 * 13).reshape(2, 13, 13)
    results, _ = by_name(ImageMatrices(NTHU_13.names, ("a", "b"), counts))
    assert results["13"].miou == pytest.approx(mean_iou(counts.sum(axis=0)))
    assert list(results) == ["13"]
    assert results["13"].protocol.table == "Table 1"
    (own,) = find_protocols(["tree", "house"])
    assert (own.name, own.table, own.averaged) == ("all", "", ("tree", "house"))


def test_the_mean_over_listed_ious_needs_all_of_them():
    assert tuple(SIXTEEN[index] for index in SYNTHIA_13) == THIRTEEN == NTHU_13.names
    iou = {name: index / 10 for index, name in enumerate(SIXTEEN)}
    # all but wall, fence and pole, which stand at 3, 4 and 5 of 0 to 15
    assert mean_over(iou, THIRTEEN) == pytest.approx((120 - 12) / 10 / 13, rel=1e-12)
    assert mean_over({**iou, "sky": None}, THIRTEEN) is None
    assert mean_over({"road": 0.5}, THIRTEEN) is None
    assert mean_over({}, ()) is None


def test_matrices_are_equal_only_if_they_are_the_same():
    matrices = matrices_of(*pictures(count=2))
    other = ImageMatrices(matrices.classes, matrices.images, matrices.counts.copy())
    assert matrices == matrices
    assert matrices != other
    assert len({matrices, other}) == 2


def test_an_absent_class_has_no_iou_and_no_part_in_the_mean():
    truth, prediction = np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 0]])
    results, _ = by_name(matrices_of(truth, prediction))
    assert results["19"].iou["train"] is None
    assert results["19"].miou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert json.loads(json.dumps(results["19"].to_json(), allow_nan=False))["iou"]["road"] == pytest.approx(2 / 3)


# ------------------------------------------------------------------------------------------------------- the interval


def test_the_interval_is_that_of_resampled_images():
    matrices = matrices_of(*pictures(count=6, shape=(4, 8)))
    result = evaluate(matrices, samples=200, seed=3)[0][0]
    # the same draws, resampled image by image
    from cbst_mx.seeding import generator

    draws = generator(3, purpose="bootstrap").multinomial(6, np.full(6, 1 / 6), size=200)
    means = [mean_iou(np.repeat(matrices.counts, draw, axis=0).sum(axis=0)) for draw in draws]
    assert (result.low, result.high) == pytest.approx(
        np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]), rel=1e-12
    )
    assert LEVEL == 0.95
    assert result.low < result.miou < result.high


def test_the_interval_is_seeded_and_shrinks_with_more_images():
    matrices = matrices_of(*pictures(count=8, shape=(4, 8)))
    assert evaluate(matrices, seed=1)[0] == evaluate(matrices, seed=1)[0]
    assert evaluate(matrices, seed=1)[0][0].low != evaluate(matrices, seed=2)[0][0].low
    often = ImageMatrices(ALL, tuple(map(str, range(80))), np.tile(matrices.counts, (10, 1, 1)))
    spread = [result.high - result.low for result in (evaluate(matrices)[0][0], evaluate(often)[0][0])]
    # a tenth of the variance: sqrt(10) = 3.2 times narrower, up to the chance of the samples
    assert 2.5 < spread[0] / spread[1] < 4


def test_one_image_has_no_spread():
    result = evaluate(matrices_of(*pictures(count=1)))[0][0]
    assert result.low == result.high == pytest.approx(result.miou, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"samples": 0}, r"^samples must be at least 1, got 0$"),
        ({"samples": -3}, r"^samples must be at least 1, got -3$"),
    ],
)
def test_refused_arguments(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        evaluate(matrices_of(*pictures(count=1)), **options)


def test_nothing_to_score_is_refused():
    with pytest.raises(DataError, match=r"^matrices must be of at least one image, got none$"):
        evaluate(ImageMatrices(ALL, (), np.zeros((0, 19, 19), np.int64)))
    with pytest.raises(DataError, match=r"^protocol 19 needs at least one of its classes in the images, got none$"):
        evaluate(ImageMatrices(ALL, ("a",), np.zeros((1, 19, 19), np.int64)))


@pytest.mark.parametrize("counts", [np.zeros((1, 19, 18), int), np.zeros((2, 19, 19), int), -np.ones((1, 19, 19), int)])
def test_matrices_that_do_not_fit_are_refused(counts):
    with pytest.raises(DataError, match=r"^counts must be pixel counts of shape \(1, 19, 19\), got int64 of shape"):
        ImageMatrices(ALL, ("a",), counts)


# -------------------------------------------------------------------------------------------------------- worst images


def test_worst_images_come_first():
    # by hand: image a has road 1/2 and sky 0 in its truth; b is right; c has no truth
    a = confusion_matrix(np.array([0, 0, 10]), np.array([0, 1, 1]), 19)
    b = confusion_matrix(np.array([0, 2]), np.array([0, 2]), 19)
    matrices = ImageMatrices(ALL, ("b", "a", "c"), np.stack([b, a, np.zeros_like(a)]))
    first, second = worst_images(matrices, 10)
    # sidewalk, only predicted, has no part in it
    assert vars(first) == {"name": "a", "miou": 0.25, "classes": 2, "worst_class": "sky", "worst_iou": 0.0}
    assert (second.name, second.miou, second.classes) == ("b", 1.0, 2)
    assert worst_images(matrices, 1) == [first]
    assert worst_images(matrices, 0) == []


# ----------------------------------------------------------------------------------------------- other sets of classes


def test_widen_and_narrow():
    truths, predictions = pictures(predicted=16)
    table = np.full(256, 255, np.uint8)
    table[TO_19] = range(16)
    small = matrices_of(table[truths], table[predictions], SIXTEEN)
    np.testing.assert_array_equal(widen(table[predictions], SIXTEEN, ALL), predictions)
    wide = matrices_of(truths, widen(table[predictions], SIXTEEN, ALL))
    np.testing.assert_array_equal(narrow(wide, SIXTEEN).counts, small.counts)
    assert widen(np.array([255, 9], np.uint8), SIXTEEN, ALL).tolist() == [255, 10]


def test_widen_and_narrow_refuse():
    with pytest.raises(ConfigError, match=r"^wider must have all of the classes, 'terrain' is missing$"):
        widen(np.zeros(1, np.uint8), ALL, SIXTEEN)
    with pytest.raises(DataError, match=r"^train_ids must be from 0 to 15 or 255, got 16$"):
        widen(np.array([[3, 16]], np.uint8), SIXTEEN, ALL)
    with pytest.raises(DataError, match=r"^pixels of the 16 classes were predicted as other classes$"):
        narrow(matrices_of(*pictures()), SIXTEEN)
    with pytest.raises(ConfigError, match=r"^classes must be among those of the matrices, got 'tree'$"):
        narrow(matrices_of(*pictures(count=1)), ["tree"])


# ------------------------------------------------------------------------------------------- the data set's own program


@pytest.fixture(scope="module")
def scripts():
    """Give the evaluation of the data set's own package."""
    return pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="cityscapesscripts is not installed (extra dev)",
    )


def scored_by_scripts(scripts, folder, truths, predictions):
    """Write label ids as the data set has them and score them with the package; return IoU and mean."""
    ids = np.zeros(256, np.uint8)
    ids[:19] = CITYSCAPES_19.decode(np.arange(19, dtype=np.uint8)[None], "cityscapes")[0]
    void = np.array([0, 1, 4, 5, 9, 29, 30], np.uint8)  # all kinds of ignored truth
    files = []
    for index, (truth, prediction) in enumerate(zip(truths, predictions)):
        frame = folder / f"bonn_{index:06d}_000019"
        labels = np.where(truth == 255, void[np.indices(truth.shape).sum(axis=0) % len(void)], ids[truth])
        files.append([f"{frame}_pred.png", f"{frame}_gtFine_labelIds.png"])
        for file, values in zip(files[-1], (ids[prediction], labels)):
            Image.fromarray(values).save(file)
    scripts.args.quiet, scripts.args.JSONOutput, scripts.args.evalInstLevelScore = True, False, False
    result = scripts.evaluateImgLists(*map(list, zip(*files)), scripts.args)
    return {name: result["classScores"][name] for name in ALL}, result["averageScoreClasses"]


@pytest.mark.parametrize("predicted", [19, 16])
def test_against_the_cityscapes_scripts(scripts, tmp_path, predicted):
    truths, predictions = pictures(predicted=predicted)
    iou, mean = scored_by_scripts(scripts, tmp_path, truths, predictions)
    results, _ = by_name(matrices_of(truths, predictions))
    # both divide the same integers
    assert results["19"].iou == pytest.approx(iou, rel=1e-12)
    assert results["19"].miou == pytest.approx(mean, rel=1e-12)
    if predicted == 16:
        assert results["19 x 19/16"].miou == pytest.approx(mean * 19 / 16, rel=1e-12)


def test_against_the_cityscapes_scripts_with_absent_classes(scripts, tmp_path):
    truths, predictions = pictures()
    truths[np.isin(truths, [5, 16])] = 255  # train and pole are not in the truth
    predictions[predictions == 16] = 0  # nor is train predicted
    iou, mean = scored_by_scripts(scripts, tmp_path, truths, predictions)
    result = by_name(matrices_of(truths, predictions))[0]["19"]
    assert result.iou["train"] is None
    assert np.isnan(iou["train"])
    assert result.iou["pole"] == iou["pole"] == 0
    assert result.miou == pytest.approx(mean, rel=1e-12)
    total = matrices_of(truths, predictions).counts.sum(axis=0)
    np.testing.assert_allclose(iou_per_class(total), list(iou.values()), rtol=1e-12)
