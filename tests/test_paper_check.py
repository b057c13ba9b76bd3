"""A run against a row of the paper: tolerances, folds, and runs that cannot be compared."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from cbst_mx.errors import ConfigError, RunError
from cbst_mx.evaluation.paper_check import TOLERANCE, check, class_tolerance, find_run_row
from cbst_mx.evaluation.paper_tables import TABLES, expected, experiments, find_row
from cbst_mx.evaluation.run_experiment import find_runs
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.label_space import CITYSCAPES_19

# -------------------------------------------------------------------------------------------------------------- a check


def exact(row):
    """Return the summary of a run that has the very numbers of a row's classes, and their mean."""
    iou = {name: value / 100 for name, value in row.iou.items()}
    return {"iou": iou, "miou": math.fsum(iou.values()) / len(iou)}


def mean_of(result):
    there = [value for value in result["iou"].values() if value is not None]
    return math.fsum(there) / len(there)


def make_run(folder, name, result, *, rounds=7, smoke=False, images=None, fold=None, changes=(), other=None):
    """Write what `check` reads of a run of the experiment `name` whose result is `result`."""
    key = find_row(name)
    table = TABLES[key.table]
    method = key.row.replace("-mst", "")
    target = {"format": table.target, "root": table.target, "split": table.split}
    if key.city:
        target.update({"city": key.city, "fold": fold})
    settings = {
        "name": name,
        "label_space": table.label_space,
        "source": {"format": table.source, "root": table.source},
        "target": {"format": table.target, "root": table.target},
        "validation": {"target": target, "source": {"format": table.source, "root": table.source}},
        "network": {"name": key.network},
        "initial_parameters": "source.params",
        "self_training": {
            "method": "cbst" if method == "source" else method,
            "rounds": rounds,
            "retraining": {"iterations": 1, "batch_size": 1, "learning_rate": 0.1},
        },
        "evaluation": {"scales": [0.5, 0.75, 1.0] if key.row.endswith("mst") else [1.0]},
        "smoke": smoke,
    }
    for path, value in changes:
        *parents, last = path.split(".")
        level = settings
        for parent in parents:
            level = level[parent]
        level[last] = value
    images = (10 if fold is not None else table.images) if images is None else images
    other = {"iou": {}, "miou": 0.99} if other is None else other  # the rounds that must not be looked at
    wanted = 0 if method == "source" else rounds
    stages = [
        {"round": index, "evaluation": {"target": result if index == wanted else other, "source": other}}
        for index in range(rounds + 1)
    ]
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    (folder / "manifest.json").write_text(json.dumps({"inputs": {"images": {"validation target": images}}}))
    (folder / "summary.json").write_text(json.dumps({"leading": "target", "stages": stages}))
    return folder


def checked(tmp_path, name, result=None, tolerance=TOLERANCE, **options):
    key = find_row(name)
    row = expected(key.table, key.row, network=key.network, city=key.city)
    return check(row, [make_run(tmp_path / "run", name, result or exact(row), **options)], tolerance=tolerance)


def verdicts(result):
    return {line.name: line.verdict for line in result.lines}


ADAPTED = "adapted on cityscapes without labels"
SOUND = [
    name for name in experiments() if name not in ("gta5-st", "synthia-fcn8s-cbst") and not name.startswith("nthu")
]


@pytest.mark.parametrize("name", SOUND)
def test_the_papers_own_numbers_are_within(tmp_path, name):
    result = checked(tmp_path, name, tolerance=0.11)  # means of rounded cells are up to 0.1 off
    assert result.verdict == "within tolerance"
    assert not result.missed
    assert result.notes == (ADAPTED,)
    assert set(verdicts(result).values()) == {"within"}
    means = ["mIoU", "mIoU*"] if name.startswith("synthia") else ["mIoU"]
    assert [line.name for line in result.lines] == [*TABLES[find_row(name).table].names, *means]


@pytest.mark.parametrize(("shift", "verdict"), [(2.0, "within"), (-2.0, "within"), (2.01, "off"), (-2.01, "off")])
def test_the_tolerance_of_means_has_two_sides(tmp_path, shift, verdict):
    row = expected(3, "CBST-SP")
    values = exact(row)
    shift += row.miou - 100 * values["miou"]  # from the mean of rounded cells to the one stated
    values = {"iou": {name: value + shift / 100 for name, value in values["iou"].items()}}
    result = checked(tmp_path, "gta5-cbst-sp", {**values, "miou": sum(values["iou"].values()) / 19})
    assert verdicts(result)["mIoU"] == verdict
    assert result.missed == (verdict == "off")


@pytest.mark.parametrize(("shift", "verdict"), [(8.7, "within"), (-8.7, "within"), (8.75, "off"), (-8.75, "off")])
def test_the_tolerance_of_classes_has_two_sides(tmp_path, shift, verdict):
    # 2 points times the square root of 19 classes: 8.72
    assert class_tolerance(2.0, 19) == pytest.approx(8.718, abs=1e-3)
    row = expected(3, "CBST-SP")
    values = exact(row)
    values["iou"]["sky"] += shift / 100
    values["miou"] += shift / 100 / 19
    result = checked(tmp_path, "gta5-cbst-sp", values)
    assert verdicts(result)["sky"] == verdict
    assert verdicts(result)["road"] == "within"
    assert result.verdict == ("off" if verdict == "off" else "within tolerance")


def test_the_last_round_is_the_result_and_the_best_is_not(tmp_path):
    row = expected(3, "CBST")
    bad = {"iou": {name: 0.1 for name in row.iou}, "miou": 0.1}
    result = checked(tmp_path, "gta5-cbst", bad, other=exact(row))
    assert result.missed
    assert result.stage == "round 7, the last"
    assert (result.best.round, result.best.verdict) == (1, "within tolerance")
    assert result.best.miou == pytest.approx(100 * exact(row)["miou"])
    assert {round(line.ours, 9) for line in result.lines} == {10.0}


def test_the_round_that_a_score_without_labels_would_choose_is_compared_too(tmp_path, monkeypatch):
    row = expected(3, "CBST")
    bad = {"iou": {name: 0.1 for name in row.iou}, "miou": 0.1}
    assert checked(tmp_path / "none", "gta5-cbst", bad, other=exact(row)).chosen is None
    scores = {stage: 0.6 if stage in (3, 5) else 0.5 for stage in range(8)}
    monkeypatch.setattr(RunResults, "label_free_scores", lambda run: scores)
    result = checked(tmp_path / "all", "gta5-cbst", bad, other=exact(row))
    assert (result.chosen.round, result.chosen.verdict) == (5, "within tolerance")  # of equal ones the last
    assert result.missed


def test_a_mean_that_is_not_that_of_its_classes_is_refused(tmp_path):
    # all classes 8 points lower, with the mean of the paper
    row = expected(3, "CBST")
    values = {**shifted(row, -8), "miou": row.miou / 100}
    with pytest.raises(RunError, match=r"contradicts itself: round 7 states mIoU 45.20 %, its classes give 37.17 %"):
        checked(tmp_path, "gta5-cbst", values)
    # so is one of a round that only the line of the best round shows
    with pytest.raises(RunError, match=r"contradicts itself: round 1 states mIoU 99.00 %"):
        checked(tmp_path / "best", "gta5-cbst", other={**exact(row), "miou": 0.99})


def test_a_source_row_is_of_the_source_network(tmp_path):
    result = checked(tmp_path, "gta5-source")
    assert result.stage == "source network"
    assert not result.missed


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -0.1, 45.1, "0.5", True])
@pytest.mark.parametrize("where", ["class", "mean"])
def test_missing_and_broken_numbers_are_off(tmp_path, value, where):
    result = exact(expected(2, "CBST"))
    if where == "class":
        result["iou"]["sky"] = value
    else:
        result["miou"] = value
    outcome = checked(tmp_path, "synthia-cbst", result)
    # without one class there is no mean over all of them
    wanted = {"sky", "mIoU", "mIoU*"} if where == "class" else {"mIoU"}
    assert {name for name, verdict in verdicts(outcome).items() if verdict == "missing"} == wanted
    assert outcome.missed


def test_a_class_or_everything_left_out_is_off(tmp_path):
    result = exact(expected(2, "CBST"))
    del result["iou"]["wall"]
    outcome = checked(tmp_path, "synthia-cbst", result)
    assert {name for name, verdict in verdicts(outcome).items() if verdict == "missing"} == {"wall", "mIoU"}
    outcome = checked(tmp_path / "empty", "synthia-cbst", {"pixels": 3})
    assert set(verdicts(outcome).values()) == {"missing"}
    assert outcome.missed


def test_of_the_st_row_only_the_stated_mean_is_judged(tmp_path):
    values = {"iou": {name: 0.415 for name in CITYSCAPES_19.names}, "miou": 0.415}
    result = checked(tmp_path, "gta5-st", values)
    assert not result.missed
    assert verdicts(result).pop("mIoU") == "within"
    assert {line.verdict for line in result.lines if line.name != "mIoU"} == {"not judged"}
    assert result.notes[:2] == (
        "mIoU is stated as 41.5, but the row's cells average 40.00",
        "so classes are not judged, only mIoU",
    )
    assert "published in 2 versions" in result.notes[2]
    # the cells' own mean is not the target
    other = {"iou": {name: 0.391 for name in CITYSCAPES_19.names}, "miou": 0.391}
    assert checked(tmp_path / "2", "gta5-st", other).missed
    values["iou"]["road"] = None
    assert verdicts(checked(tmp_path / "3", "gta5-st", values))["mIoU"] == "missing"


def test_of_the_fcn8s_row_with_a_wrong_mean_the_right_mean_is_judged(tmp_path):
    row = expected(2, "CBST", network="fcn8s")
    result = checked(tmp_path, "synthia-fcn8s-cbst", exact(row))
    assert verdicts(result)["mIoU"] == "within"
    assert not result.missed
    assert {verdict for name, verdict in verdicts(result).items() if name != "mIoU"} == {"not judged"}
    assert "so classes are not judged, only mIoU" in result.notes
    line = result.lines[-1]
    assert (line.name, line.paper, line.ours) == ("mIoU*", 36.1, pytest.approx(40.73, abs=0.005))


def test_a_smoke_test_is_not_judged(tmp_path):
    result = checked(tmp_path, "gta5-cbst", {"iou": {"road": 0.1}, "miou": 0.1}, smoke=True, images=2, rounds=2)
    assert result.verdict == "not comparable (smoke)"
    assert not result.missed
    assert set(verdicts(result).values()) == {"not judged"}


REFUSED = [
    ("label_space", "synthia-16", "its label space must be cityscapes-19, got synthia-16"),
    ("source.format", "synthia", "its source must be gta5, got synthia"),
    ("target.format", "folder", "its target must be cityscapes, got folder"),
    ("validation.target.format", "gta5", "its validation set target must be cityscapes, got gta5"),
    ("validation.target.split", "train", "its split of validation set target must be val, got train"),
    ("network.name", "fcn8s", "its network must be resnet38, got fcn8s"),
    ("self_training.method", "st", "its method must be cbst, got st"),
    ("evaluation.scales", [1.0, 0.5], r"its evaluation scales must be \[1.0\], got \[0.5, 1.0\]"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), REFUSED)
@pytest.mark.parametrize("smoke", [False, True])
def test_runs_of_something_else_are_refused(tmp_path, path, value, sentence, smoke):
    with pytest.raises(RunError, match=rf"^.*run cannot be compared with table 3, CBST: {sentence}$"):
        checked(tmp_path, "gta5-cbst", changes=[(path, value)], smoke=smoke)


def test_the_city_must_be_the_rows(tmp_path):
    with pytest.raises(RunError, match=r"its city must be Rome, got Rio$"):
        checked(tmp_path, "nthu-rome-cbst", changes=[("validation.target.city", "Rio")])


def test_multi_scale_testing_is_asked_for_its_row_only(tmp_path):
    with pytest.raises(RunError, match=r"evaluation scales must be \[0.5, 0.75, 1.0\], got \[1.0\]$"):
        checked(tmp_path, "gta5-cbst-sp-mst", changes=[("evaluation.scales", [1.0])])


def test_runs_on_other_images_are_refused(tmp_path):
    # generated scenes come in the formats of GTA5 and Cityscapes as well
    with pytest.raises(RunError, match=r"must have been evaluated on the 500 images of Cityscapes val, got 12 images$"):
        checked(tmp_path, "gta5-cbst", images=12)


def test_unfinished_runs_are_refused(tmp_path):
    run = make_run(tmp_path / "run", "gta5-cbst", {}, rounds=3)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "stages": summary["stages"][:3]}))
    with pytest.raises(RunError, match=r"run is not finished: round 3 is its result, it has 2$"):
        check(expected(3, "CBST"), [run])
    (run / "summary.json").write_text(json.dumps({**summary, "stages": [{}]}))
    with pytest.raises(RunError, match=r"summary.json is no summary of a run: KeyError"):
        check(expected(3, "CBST"), [run])
    (run / "summary.json").write_text(json.dumps({**summary, "leading": "other"}))
    with pytest.raises(RunError, match=r"experiment.yaml has no validation set 'other', which the summary leads with$"):
        check(expected(3, "CBST"), [run])
    (run / "summary.json").unlink()
    with pytest.raises(RunError, match=r"summary.json does not exist"):
        check(expected(3, "CBST"), [run])


@pytest.mark.parametrize("tolerance", [0, -1.0, math.nan, math.inf])
def test_the_tolerance_must_be_a_positive_number(tmp_path, tolerance):
    with pytest.raises(ConfigError, match=r"^tolerance must be a positive number of points, got "):
        checked(tmp_path, "gta5-cbst", tolerance=tolerance)


# ---------------------------------------------------------------------------------------------------------------- folds


def folds_of(tmp_path, results, name="nthu-rome-cbst"):
    return [make_run(tmp_path / f"fold-{k}", name, result, fold=k) for k, result in enumerate(results)]


def shifted(row, points):
    values = exact(row)
    return {
        "iou": {name: value + points / 100 for name, value in values["iou"].items()},
        "miou": values["miou"] + points / 100,
    }


def test_the_mean_over_folds_counts(tmp_path):
    row = expected(1, "CBST", city="Rome")
    # one by one most would be off; together they are 0.5 above
    folders = folds_of(tmp_path, [shifted(row, points) for points in (-9, 9.5, -9, 9, -8, 8, -7, 7, -4, 8.5)])
    result = check(row, folders)
    assert not result.missed
    assert "mean over 10 folds" in result.notes
    for line in result.lines[:-1]:
        assert line.ours - line.paper == pytest.approx(0.5)
    assert result.lines[-1].ours == pytest.approx(100 * exact(row)["miou"] + 0.5)
    assert find_runs(tmp_path) == folders
    assert find_runs(folders[0]) == folders[:1]


def test_a_class_may_be_absent_from_a_fold_but_not_from_all(tmp_path):
    row = expected(1, "CBST", city="Rome")
    results = [exact(row) for _ in range(10)]
    for result in results[:9]:
        result["iou"]["motorcycle"] = None
        result["miou"] = mean_of(result)
    assert check(row, folds_of(tmp_path / "a", results)).lines[11].ours == pytest.approx(49.8)
    results[9]["iou"]["motorcycle"] = None
    results[9]["miou"] = mean_of(results[9])
    assert verdicts(check(row, folds_of(tmp_path / "b", results)))["motorcycle"] == "missing"
    results[9], results[0]["iou"]["motorcycle"] = exact(row), math.nan
    assert check(row, folds_of(tmp_path / "c", results)).missed


def test_every_fold_must_be_there_once(tmp_path):
    row = expected(1, "CBST", city="Rome")
    folders = folds_of(tmp_path, [exact(row)] * 10)
    with pytest.raises(RunError, match=r"^table 1 needs one run of each fold, 0 to 9, .*, got folds 0, 1, 2$"):
        check(row, folders[:3])
    with pytest.raises(RunError, match=r"got folds 0, 1, 2, 3, 4, 5, 6, 7, 8, 0$"):
        check(row, folders[:9] + folders[:1])
    other = make_run(tmp_path / "x", "nthu-rome-cbst", exact(row), fold=9, changes=[("validation.target.fold_seed", 1)])
    with pytest.raises(RunError, match=r"all of one fold_seed"):
        check(row, folders[:9] + [other])
    run = make_run(tmp_path / "y", "gta5-cbst", exact(expected(3, "CBST")))
    with pytest.raises(RunError, match=r"^table 3 needs one run folder, got 2$"):
        check(expected(3, "CBST"), [run, run])


def test_a_city_without_folds_is_compared_with_a_note(tmp_path):
    result = checked(tmp_path, "nthu-rio-st")
    assert not result.missed
    assert result.notes == (
        "one run on all 100 images; the paper's is the mean over 10 folds",
        "adapted on nthu without labels",
    )


# ----------------------------------------------------------------------------------------------------------------- runs


def test_a_run_knows_its_row(tmp_path):
    run = make_run(tmp_path / "a", "nthu-tokyo-st", {})
    assert find_run_row(run) == expected(1, "ST", city="Tokyo")
    assert find_run_row(run, row="Source") == expected(1, "Source", city="Tokyo")
    paper = {"table": 3, "row": "CBST-SP+MST", "network": "resnet38", "expected": {}}
    run = make_run(tmp_path / "b", "gta5-cbst-sp-mst", {}, changes=[("paper", paper), ("name", "mine")])
    assert find_run_row(run) == expected(3, "CBST-SP+MST")
    assert find_run_row(run, table=3, row="ST", network="fcn8s") == expected(3, "ST", network="fcn8s")
    run = make_run(tmp_path / "c", "gta5-st", {}, changes=[("name", "mine")])
    with pytest.raises(ConfigError, match=r"^experiment 'mine' is of no row of the paper"):
        find_run_row(run)


def test_folders_without_runs_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError, match=r"is no run folder and holds none"):
            find_runs(path)
