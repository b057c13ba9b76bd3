"""Checkpoints: what is damaged, altered or of another phase is found, and the one before it is used."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from cbst_mx.errors import CheckpointError, StoppedError
from cbst_mx.networks.parameters import load_arrays
from cbst_mx.training import checkpoints
from cbst_mx.training.checkpoints import Checkpoints, previous_path, remove_checkpoints
from symbols.backend import mx
from tests.test_training import run_training

IDENTITY = {"stage": 1, "settings": "a"}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"parameter:a": (3, 4), "parameter:b": (5,), "momentum:0:0": (3, 4)}
    return {name: mx.nd.array(rng.normal(size=shape)) for name, shape in shapes.items()}


def two_generations(path):
    kept = Checkpoints(path, IDENTITY)
    for iterations in (5, 10):
        assert kept.save(arrays(iterations), iterations, {"losses": [0.5] * (iterations // 5)})
    return kept


def loaded(path, identity=IDENTITY):
    state = Checkpoints(path, identity).load()
    if state is not None:
        for name, array in arrays(state.iterations).items():
            np.testing.assert_array_equal(state.arrays[name].asnumpy(), array.asnumpy())
        assert state.record == {"losses": [0.5] * (state.iterations // 5)}
    return state


def test_two_generations_are_kept(tmp_path):
    path = tmp_path / "c.params"
    assert Checkpoints(path, IDENTITY).load() is None
    two_generations(path)
    assert loaded(path).iterations == 10
    path.unlink()  # as after a kill between the two renames
    assert loaded(path).iterations == 5
    remove_checkpoints(path)
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path, caplog):
    path = tmp_path / "c.params"
    two_generations(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    positions = sorted({*range(0, 200), *rng.integers(0, len(whole), 200).tolist()})
    before = 0
    for position in positions:
        content = bytearray(whole)
        content[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(content))
        caplog.clear()
        state = loaded(path)  # compares all numbers
        if state.iterations == 5:
            before += 1
            assert "is used" in caplog.text
    assert before > 0.9 * len(positions)  # the others are bytes that nothing depends on, as the device's number


@pytest.mark.parametrize("length", [0, 1, 0.5, 0.99])
def test_a_cut_checkpoint_is_found(tmp_path, length):
    path = tmp_path / "c.params"
    two_generations(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length * len(whole)) if length != 1 else 1])
    assert loaded(path).iterations == 5


def without(stored, name):
    return {key: array for key, array in stored.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: without(stored, "momentum:0:0"),
        lambda stored: without(stored, "about"),
        lambda stored: {**stored, "momentum:1:0": mx.nd.zeros(3)},
        lambda stored: {**stored, "parameter:a": stored["parameter:a"] + 1},
        lambda stored: {**stored, "parameter:a": stored["momentum:0:0"], "momentum:0:0": stored["parameter:a"]},
        lambda stored: {**stored, "parameter:a": stored["parameter:a"].reshape((4, 3))},
        lambda stored: {**stored, "about": mx.nd.array([1, 2], dtype=np.uint8)},
        lambda stored: {**stored, "about": mx.nd.array(np.frombuffer(b"[]", dtype=np.uint8), dtype=np.uint8)},
    ],
)
def test_an_altered_checkpoint_is_found(tmp_path, caplog, change):
    path = tmp_path / "c.params"
    two_generations(path)
    mx.nd.save(str(path), change(load_arrays(path)))
    assert loaded(path).iterations == 5
    assert f"the checkpoint before it, {previous_path(path)} of iteration 5, is used" in caplog.text


def test_a_foreign_checkpoint_is_not_used(tmp_path, caplog):
    path = tmp_path / "c.params"
    two_generations(path)
    assert loaded(path, {"stage": 2, "settings": "a"}) is None
    assert f"checkpoint {path} is of another phase (other stage): it is not used" in caplog.text
    assert "there is no good checkpoint of this phase: it starts anew" in caplog.text


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(tmp_path):
    path = tmp_path / "c.params"
    two_generations(path)
    path.write_bytes(b"damaged")
    kept = Checkpoints(path, IDENTITY)
    assert kept.load().iterations == 5
    kept.save(arrays(10), 10, {"losses": [0.5, 0.5]})
    path.write_bytes(b"damaged again")
    assert loaded(path).iterations == 5


def test_when_they_are_due(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    kept = Checkpoints(tmp_path / "c.params", IDENTITY, every=10, minutes=5)
    assert [i for i in range(1, 31) if kept.due(i)] == [10, 20, 30]
    now[0] = 300
    assert kept.due(3)
    kept.save(arrays(), 3, {})
    assert not kept.due(4)
    now[0] = 599
    assert not kept.due(5)
    now[0] = 600
    assert kept.due(6)
    assert not Checkpoints(None, IDENTITY, every=1).due(1)
    assert not Checkpoints(tmp_path / "d.params", IDENTITY).due(1)


@pytest.mark.parametrize("damage", ["flip", "momentum", "cut"])
def test_training_goes_on_from_the_one_before_to_the_same_bytes(tmp_path, caplog, damage):
    caplog.set_level(logging.INFO)
    _, whole = run_training(12)
    path = tmp_path / "c.params"
    run_training(12, path, every=4, stop=9)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content[: len(content) // 2] if damage == "cut" else content))
    if damage == "momentum":
        stored = load_arrays(path)
        mx.nd.save(str(path), {key: array for key, array in stored.items() if not key.startswith("momentum")})
    _, values = run_training(12, path, every=4)
    assert "continuing at iteration 4 of 12" in caplog.text
    for name in whole:
        np.testing.assert_array_equal(values[name], whole[name], err_msg=name)


def test_training_starts_anew_without_a_good_one(tmp_path, caplog):
    _, whole = run_training(6)
    path = tmp_path / "c.params"
    path.write_bytes(b"cut")
    _, values = run_training(6, path, every=1)
    assert "it starts anew" in caplog.text
    for name in whole:
        np.testing.assert_array_equal(values[name], whole[name])
    run_training(6, path, every=1, seed=4)  # another phase's, with the same network
    assert "is of another phase (other seed)" in caplog.text


def test_checkpoints_by_time_change_no_number(tmp_path):
    _, whole = run_training(6)
    _, values = run_training(6, tmp_path / "c.params", checkpoint_minutes=1e-9)
    assert previous_path(tmp_path / "c.params").is_file()
    for name in whole:
        np.testing.assert_array_equal(values[name], whole[name])


def test_a_stop_saves_first(tmp_path):
    path = tmp_path / "c.params"

    def stop(done):
        if done == 3:
            raise StoppedError("training", done, 6, signal=15)

    with pytest.raises(StoppedError, match="^training: stopped at 3 of 6; the same command continues$"):
        run_training(6, path, told=stop)
    _, whole = run_training(6)
    _, values = run_training(6, path)
    for name in whole:
        np.testing.assert_array_equal(values[name], whole[name])
    with pytest.raises(StoppedError, match="nothing of it is kept"):
        run_training(6, told=stop)


def test_other_threads_are_told(tmp_path, caplog, monkeypatch):
    path = tmp_path / "c.params"
    first, _ = run_training(6, path, every=2, stop=4, told=lambda done: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    record, _ = run_training(6, path)
    assert "continuing with 77 threads (OMP_NUM_THREADS), before with " in caplog.text
    assert record.to_json()["threads"][1] == 77


def forged(path, change):
    """Change the arrays or the text of a checkpoint, and let its digest fit."""
    stored = load_arrays(path)
    about = json.loads(stored.pop(checkpoints._ABOUT).asnumpy().tobytes())
    del about["sha256"]
    change(stored, about)
    about["sha256"] = checkpoints._digest(stored, about)
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    mx.nd.save(str(path), {**stored, checkpoints._ABOUT: mx.nd.array(text, dtype=np.uint8)})


@pytest.mark.parametrize(
    "change",
    [
        lambda stored, about: stored.pop(next(name for name in stored if "momentum" not in name)),
        lambda stored, about: stored.update({next(iter(stored)): mx.nd.ones((7, 7))}),
        lambda stored, about: about["record"].update(other=1),
    ],
)
def test_what_is_of_this_phase_and_does_not_fit_it_is_one_sentence(tmp_path, change):
    path = tmp_path / "c.params"
    run_training(6, path, every=4, stop=5)
    forged(path, change)
    with pytest.raises(CheckpointError, match="holds other arrays than this phase has, remove it to begin"):
        run_training(6, path)


@pytest.mark.parametrize(("key", "value"), [("iterations", -1), ("iterations", "5"), ("record", []), ("threads", None)])
def test_texts_of_another_kind_are_damage(tmp_path, caplog, key, value):
    path = tmp_path / "c.params"
    Checkpoints(path, IDENTITY).save(arrays(5), 5, {"losses": []})
    forged(path, lambda stored, about: about.update({key: value}))
    assert Checkpoints(path, IDENTITY).load() is None
    assert "it is not used" in caplog.text
