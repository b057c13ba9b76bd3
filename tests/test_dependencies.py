"""Which setting can change which step."""

from __future__ import annotations

import pytest

from cbst_mx.config import Experiment, load_experiment
from cbst_mx.rounds.dependencies import DEPENDENCIES, FREE, _flat, changed_keys, step_keys
from cbst_mx.run_dir.steps import KINDS
from tests.tiny import experiment


def is_below(key, parents):
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def test_every_setting_is_assigned_to_steps_or_free():
    keys = _flat(experiment("warm_up={optimiser: {iterations: 1, batch_size: 1, learning_rate: 1}}").model_dump())
    assert len(keys) > 80
    assert [key for key in keys if not is_below(key, [*DEPENDENCIES, *FREE])] == []
    assert {kind for kinds in DEPENDENCIES.values() for kind in kinds} == set(KINDS)
    names = {key.partition(".")[0] for key in (*DEPENDENCIES, *FREE)}
    assert names == set(Experiment.model_fields)  # and none is named that there is not


def test_schedules_count_by_what_the_round_has():
    more = experiment("self_training.portion.step=0.1", "self_training.learning_rate_factor=0.5")
    for kind, key in (("labels", "portion"), ("retraining", "learning_rate_factor")):
        one, two = (changed_keys(step_keys(experiment(), kind, r), step_keys(more, kind, r)) for r in (1, 2))
        assert one == {}
        assert list(two) == [f"self_training.{key}"]


def test_a_key_that_came_later_had_its_default():
    now = step_keys(experiment(), "labels", 1)
    before = {key: value for key, value in now.items() if key != "self_training.upsampling"}
    assert changed_keys(before, now) == {}
    other = {**now, "self_training.upsampling": "pillow"}
    assert changed_keys(before, other) == {"self_training.upsampling": ("bilinear", "pillow")}


@pytest.mark.parametrize("kind", ["source", "retraining"])
def test_a_part_that_is_gone_is_told_once(kind):
    with_it = experiment(
        "warm_up={optimiser: {iterations: 1, batch_size: 1, learning_rate: 1}}", "self_training.mining={}"
    )
    pairs = changed_keys(step_keys(experiment("self_training.mining=null"), kind, 1), step_keys(with_it, kind, 1))
    assert list(pairs) == ["warm_up" if kind == "source" else "self_training.mining"]
    ((old, new),) = pairs.values()
    assert old is None
    assert len(new) > 3


def test_a_run_from_before_sizes_decided_how_many_images_pass_at_once_goes_on(tmp_path):
    base, before, other = experiment(), experiment("inference_batch=8"), experiment("inference_batch=4")
    assert (base.inference_batch, before.inference_batch) == (None, 8)
    assert base.identity == before.identity != other.identity
    assert step_keys(base, "evaluation", 0) == step_keys(before, "evaluation", 0) != step_keys(other, "evaluation", 0)
    (tmp_path / "again.yaml").write_text(base.to_yaml())
    assert load_experiment(tmp_path / "again.yaml").inference_batch is None
