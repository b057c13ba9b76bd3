"""The guard with consequences: each fault, put into the files of a run, is caught before the next round trains."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.config import load_experiment
from cbst_mx.errors import CheckpointError, RunError, TrainingError
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.evaluation.run_signs import news
from cbst_mx.networks.parameters import load_network
from cbst_mx.networks.sidecars import sidecar_path
from cbst_mx.rounds import Run, phases
from cbst_mx.rounds.health import Health, RejectedError
from cbst_mx.run_dir import RunDir, ledger, rejection, rollbacks
from cbst_mx.run_dir.ledger import Ledger
from cbst_mx.selftrain.signs import NEWS
from symbols.backend import mx
from tests import tiny
from tests.tiny import DEMO, write_scenes

# After the 12 iterations of the tiny experiment, networks lie so near to the guard's limits that the last bits of sums,
# and with them the number of threads, decide; after 30 all of 12 runs (6 seeds, 1 and 2 threads) were healthy.
SOURCE = "source_training={iterations: 30, batch_size: 4, learning_rate: 0.05, checkpoint_every: 5}"


def experiment(*changes):
    return tiny.experiment(SOURCE, *changes)


def options(*changes):
    return tiny.options(SOURCE, *changes)


NAMES = experiment().classes().names
ROUNDS = ("self_training.rounds=2",)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", target=8)


@pytest.fixture(autouse=True)
def _root(data, monkeypatch):
    monkeypatch.setenv("CBST_DATA", str(data))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The files of a whole run, and of the same run after its first round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CBST_DATA", str(data))
        folder = tmp_path_factory.mktemp("runs")
        run = Run(experiment(), folder / "whole")
        run.train_source()
        run.evaluate(0)
        run.round(1)
        shutil.copytree(run.dir.path, folder / "first")
        run.run()
    return folder


@pytest.fixture
def first(finished, tmp_path):
    """A run after its first round, to do harm to."""
    shutil.copytree(finished / "first", tmp_path / "run")
    return tmp_path / "run"


def break_network(folder, fault, stage="round-1"):
    """Write other values into the parameters of a stage, and the sidecar that belongs to them."""
    path = folder / stage / "parameters.params"
    network, _, _ = load_network(path, mx.cpu())
    arrays = {name: p.data().asnumpy() for name, p in network._collect_params_with_prefix().items()}
    FAULTS[fault](arrays)
    mx.nd.save(str(path), {name: mx.nd.array(array) for name, array in arrays.items()})
    side = json.loads(sidecar_path(path).read_text())
    side["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    sidecar_path(path).write_text(json.dumps(side))
    # else it is noticed that the parameters are not what the training wrote; so the folder is adopted as it is
    (folder / "ledger.jsonl").unlink()


def constant(arrays):
    arrays["score_fr.bias"][2] += 1000


def permuted(arrays):
    weight = arrays["upscore8.weight"]  # (input channels, classes, rows, columns)
    arrays["upscore8.weight"] = np.roll(weight, 1, axis=1)


def saturated(arrays):
    arrays["upscore8.weight"] *= 1e3


def not_finite(arrays):
    arrays["upscore8.weight"][:] = np.nan


FAULTS = {"constant": constant, "permuted": permuted, "saturated": saturated, "not finite": not_finite}
SENTENCES = {
    "constant": "100 % of the pixels are predicted as building, one class of 19",
    "permuted": r"classes took the names of others since the round before \(",
    "saturated": "of the network's outputs are a probability of exactly 1",
    "not finite": "must be finite, got NaN or infinity",
}


def opened(folder, policy, *changes):
    return Run(experiment(f"self_training.guard.policy={policy}", *changes), folder)


def content(folder):
    """Return the bytes of all files that a run makes, but those with times."""
    left_out = ("log.txt", "manifest.json", "experiment.yaml", "ledger.jsonl", "inputs.json", "lock")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in left_out
    }


def done(folder):
    """Return the steps that count as finished, with the digests of their files."""
    ledger = Ledger(RunDir(folder))
    steps = {entry.step: ledger.finished(entry.step) for entry in ledger.entries}
    return {
        name: {path: one["sha256"] for path, one in entry.outputs.items()} for name, entry in steps.items() if entry
    }


def call(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "80"}).invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def test_a_healthy_run_is_judged_before_every_round_and_at_its_end(finished):
    whole = finished / "whole"
    seen = [json.loads((whole / name / "guard.json").read_text()) for name in ("round-1", "round-2", "last")]
    assert [one["network"] for one in seen] == [0, 1, 2]
    assert [one["healthy"] for one in seen] == [True, True, True]
    assert (seen[0]["agreement"], seen[0]["drift"]) == (None, None)
    assert seen[1]["agreement"] > 0.5
    assert (seen[1]["portion"], seen[2]["portion"]) == (0.25, None)
    assert seen[0]["saturated"] == 0
    record = json.loads((whole / "round-2" / "thresholds.json").read_text())
    assert seen[1]["kept"] == pytest.approx(record["kept_portion"])
    assert seen[1]["largest"] == max(record["predicted"]) / sum(record["predicted"])
    assert not list(whole.rglob("rollback.json"))
    assert "rollbacks" not in (whole / "round-2" / "training.json").read_text()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_the_run_before_the_next_round_trains_and_the_way_out_is_open(finished, first, fault):
    break_network(first, fault)
    run = opened(first, "stop")
    with pytest.raises(RunError, match=SENTENCES[fault]) as error:
        run.run()
    assert "\n" not in str(error.value)
    assert "self_training.guard.policy=" in str(error.value)
    assert not run.dir.stage(2).training.exists()
    assert not run.dir.stage(2).checkpoint.exists()
    with pytest.raises(RunError, match=SENTENCES[fault]):  # by the single step, too, and after all was read anew
        opened(first, "stop").round(2)
    # as the sentence says: the broken network is trained anew, and the result is that of a run with half the rate
    opened(first, "rollback").run()
    assert json.loads((first / "round-2" / "guard.json").read_text())["healthy"]
    record = json.loads((first / "round-1" / "training.json").read_text())["rollbacks"]
    assert record == json.loads((first / "round-1" / "rollback.json").read_text())["rollbacks"]
    assert [one["learning_rate_factor"] for one in record] == [0.5]
    assert len(record[0]["signs"]) >= 1


@pytest.mark.parametrize("fault", ["constant", "permuted", "saturated"])
def test_a_fault_is_told_and_nothing_else_by_default(first, fault):
    break_network(first, fault)
    run = Run(experiment(), first)
    with run.dir.logging():
        run.pseudo_label(2)
    judgement = run.health.judge(2)
    assert any(sign.kind == fault.replace("permuted", "renamed") for sign in judgement.signs)
    run.run()
    assert run.dir.stage(2).training.is_file()
    assert not json.loads(run.dir.stage(2).guard.read_text())["healthy"]
    log = run.dir.log.read_text()
    assert "round 1: on the target's images, " in log
    assert any(sign.sentence in log for sign in judgement.signs)
    # the summary has what the log has
    for sign in judgement.signs:
        told = news(run.results, 1) if sign.kind in NEWS else run.results.warnings(1)
        assert any(text.endswith(sign.text) for text in told), sign
        assert sign.kind == "kept" or sign.sentence in log


def test_a_network_that_is_not_finite_never_trains(first):
    break_network(first, "not finite")
    sentence = "has diverged, no pseudo-labels come from it: .*policy=rollback to train it anew"
    with pytest.raises(RunError, match=sentence):
        Run(experiment(), first).run()


@pytest.fixture(scope="module")
def rolled_back(finished, data, tmp_path_factory):
    """A run whose first round was broken, and rolled back."""
    folder = shutil.copytree(finished / "first", tmp_path_factory.mktemp("rolled") / "run")
    break_network(folder, "permuted")
    Run(experiment("self_training.guard.policy=rollback"), folder, data_root=data).run()
    return folder


def test_a_rollback_gives_what_a_run_at_half_the_rate_gives(finished, rolled_back, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished / "first", other)
    shutil.rmtree(other / "round-1")
    half = Run(experiment(), other)
    half.health.roll_back(1, ["a test"])  # nothing is there to be removed
    half.run()
    mine, theirs = content(rolled_back), content(other)
    reasons = {"round-1/rollback.json", "round-1/training.json"}
    assert mine.keys() == theirs.keys()
    assert {name for name in mine if mine[name] != theirs[name]} == reasons
    log = (rolled_back / "log.txt").read_text()
    assert "rolled back to the network of stage 0, at 0.5 times the learning rate" in log
    assert "came out otherwise than before" not in log + (other / "log.txt").read_text()


def test_a_folder_with_a_rollback_is_one_like_others(finished, rolled_back, data, tmp_path):
    output = call("status", rolled_back)
    assert "next: nothing is left to do" in output
    assert "retraining of round 1, rolled back, to be trained at 0.5 times the learning rate: " in output
    assert call("verify", rolled_back).endswith(": 8 steps, nothing altered\n")
    output = call("diff", finished / "whole", rolled_back, code=1)
    assert output.startswith("they part at round-1/retraining\n")
    assert "  round-1/rollback.json\n" in output
    before = content(rolled_back)
    assert opened(rolled_back, "rollback").run()  # nothing is done twice
    assert content(rolled_back) == before
    # a branch that shares the round shares its rollback and what the guard said, and goes on to the same bytes
    new = tmp_path / "new"
    call("branch", rolled_back, "--from", "round-2", "--out", new)
    assert "round-2/guard.json" not in content(new)
    Run(load_experiment(new / "experiment.yaml"), new).run()
    assert content(new) == before
    assert "no difference" in call("diff", rolled_back, new)
    # one from before the training that was rolled back begins without
    call("branch", rolled_back, "--from", "round-1/retraining", "--out", tmp_path / "from-1")
    assert Health(experiment(), Ledger(RunDir(tmp_path / "from-1"))).factor(1) == 1.0


class Killed(BaseException):
    """Stands for the end of the process."""


def killing(monkeypatch, at):
    """Let the process end before the call number `at` that changes a file in a rollback."""
    left = [at]

    def counted(call):
        def wrapped(*arguments, **options):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return call(*arguments, **options)

        return wrapped

    for module, name in ((rollbacks, "write_json"), (rejection, "_remove"), (ledger, "write_text")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))


def test_a_rollback_that_is_killed_anywhere_is_finished_once(first, tmp_path, monkeypatch):
    break_network(first, "constant")
    settings = experiment("self_training.guard.policy=rollback")
    run = Run(settings, first)
    run.pseudo_label(2)
    with pytest.raises(RejectedError) as rejected:
        run.health.check(2)
    untouched = shutil.copytree(first, tmp_path / "untouched", ignore=shutil.ignore_patterns("lock"))
    Health(settings, Ledger(RunDir(untouched))).roll_back(1, rejected.value.reasons)
    assert set(done(untouched)) == {"source/training", "source/evaluation", "round-1/pseudo-labels"}
    for killed_at in range(100):
        folder = tmp_path / str(killed_at)
        shutil.copytree(first, folder, ignore=shutil.ignore_patterns("lock"))
        with monkeypatch.context() as patch:
            killing(patch, killed_at)
            try:
                Health(settings, Ledger(RunDir(folder))).roll_back(1, rejected.value.reasons)
                break
            except Killed:
                pass
        if killed_at:  # else nothing was written
            # whoever only reads sees the steps as rejected, whatever is still there
            assert "next: run does the retraining of round 1, then 4 more steps" in call("status", folder)
            assert call("verify", folder).endswith(": 3 steps, nothing altered\n")
            assert done(folder) == done(untouched), killed_at
            call("branch", folder, "--from", "round-2", "--out", tmp_path / "new", code=1)
        again = Run(settings, folder)
        if killed_at:
            assert content(folder) == content(untouched), killed_at
            assert again.health.factor(1) == 0.5  # once, not twice
        if killed_at in (0, 8):
            again.run()
            assert content(folder) == content(tmp_path / "0"), killed_at
            assert call("verify", folder).endswith(": 8 steps, nothing altered\n")
    assert killed_at >= 12  # record, ledger, and every file that is there


def test_a_second_rollback_that_is_killed_is_a_second_one(rolled_back, tmp_path, monkeypatch):
    settings = experiment("self_training.guard.policy=rollback")
    for killed_at in (1, 2):  # before and after the ledger is written
        folder = shutil.copytree(rolled_back, tmp_path / str(killed_at), ignore=shutil.ignore_patterns("lock"))
        with monkeypatch.context() as patch:
            killing(patch, killed_at)
            with pytest.raises(Killed):
                Health(settings, Ledger(RunDir(folder))).roll_back(1, ["a test"])
        assert "next: run does the retraining of round 1" in call("status", folder)
        run = Run(settings, folder)
        assert not run.dir.stage(1).training.exists()
        assert run.health.factor(1) == 0.25


def test_the_last_network_is_judged_again_when_it_is_another(finished, tmp_path):
    folder = shutil.copytree(finished / "whole", tmp_path / "run", ignore=shutil.ignore_patterns("lock"))
    run = Run(experiment(), folder)
    assert run.health.has_judged_last()
    side = sidecar_path(run.dir.stage(2).parameters)
    side.write_text(json.dumps({**json.loads(side.read_text()), "sha256": "0" * 64}))
    assert not run.health.has_judged_last()
    side.unlink()
    assert run.health.has_judged_last()


def test_there_are_only_so_many_rollbacks(first, monkeypatch):
    break_network(first, "constant")
    run = opened(first, "rollback")
    train = phases.train_phase
    rates = []

    def collapsing(*arguments, factor=1.0, **rest):
        rates.append(factor)
        record = train(*arguments, factor=factor, **rest)
        bias = arguments[1]._collect_params_with_prefix()["score_fr.bias"]
        bias.set_data(bias.data() + 1000 * (mx.nd.arange(len(NAMES)) == 2))
        return record

    monkeypatch.setattr("cbst_mx.rounds.stage_networks.train_phase", collapsing)
    with pytest.raises(RunError, match="round 1 may have collapsed after 2 rollbacks, of 2 allowed .*allow more"):
        run.run()
    assert rates == [0.5, 0.25]
    monkeypatch.undo()


def test_a_collapsed_source_network_stops_where_there_is_no_way_back(finished, tmp_path):
    shutil.copytree(finished / "first", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "round-1")
    break_network(tmp_path / "run", "constant", "source")
    with pytest.raises(RunError, match="the source network may have collapsed, so round 1 was not trained: 100 %"):
        opened(tmp_path / "run", "stop").run()
    with pytest.raises(RunError, match="the source network may have collapsed, and no healthy round is there to go"):
        opened(tmp_path / "run", "rollback").run()
    assert not (tmp_path / "run" / "round-1" / "training.json").exists()


def test_a_training_that_diverges_is_rolled_back(finished, tmp_path, monkeypatch):
    shutil.copytree(finished / "first", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "round-1")
    train = phases.train_phase

    def diverging(*arguments, factor=1.0, checkpoint=None, **rest):
        if factor == 1:
            checkpoint.write_bytes(b"not to be continued")
            raise TrainingError("training diverged: the loss is nan")
        return train(*arguments, factor=factor, checkpoint=checkpoint, **rest)

    monkeypatch.setattr("cbst_mx.rounds.stage_networks.train_phase", diverging)
    with pytest.raises(TrainingError):
        opened(tmp_path / "run", "stop").round(1)
    opened(tmp_path / "run", "rollback").round(1)
    record = json.loads((tmp_path / "run" / "round-1" / "training.json").read_text())
    assert record["rollbacks"] == [{"signs": ["training diverged: the loss is nan"], "learning_rate_factor": 0.5}]


def test_parameters_that_are_not_finite_after_the_last_iteration_are_rolled_back(finished, tmp_path, monkeypatch):
    shutil.copytree(finished / "first", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "round-1")
    train = phases.train_phase

    def diverging(*arguments, factor=1.0, **rest):
        record = train(*arguments, factor=factor, **rest)
        if factor == 1:
            bias = arguments[1]._collect_params_with_prefix()["score_fr.bias"]
            bias.set_data(bias.data() * np.nan)
        return record

    monkeypatch.setattr("cbst_mx.rounds.stage_networks.train_phase", diverging)
    with pytest.raises(CheckpointError, match="not finite"):
        opened(tmp_path / "run", "warn").round(1)
    opened(tmp_path / "run", "rollback").round(1)
    assert Health(experiment(), Ledger(RunDir(tmp_path / "run"))).factor(1) == 0.5


def test_a_damaged_record_of_rollbacks_is_one_sentence(first):
    (first / "round-1" / "rollback.json").write_text('{"rollbacks": 3}')
    with pytest.raises(RunError, match=r"rollback.json must hold a list of rollbacks, got int: put it back"):
        Run(experiment(), first).round(2)


def test_the_command_says_it_in_one_sentence(first):
    break_network(first, "constant")
    arguments = ["run", str(DEMO), "--out", str(first), *options("self_training.guard.policy=stop")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: the network of round 1 may have collapsed, so round 2 ")


def test_the_round_that_the_score_would_choose_stands_beside_the_last_and_the_best(finished):
    whole = finished / "whole"
    choice = RunResults(whole).label_free_choice()
    sentence = "highest class-balanced confidence on the target of the rounds, chosen without labels: round "
    for command in (["results", str(whole), "--samples", "1"], ["run", str(DEMO), "--out", str(whole), *options()]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        (line,) = [line for line in result.output.splitlines() if line.startswith(sentence)]
        assert line.startswith(f"{sentence}{choice.stage}, {choice.score:.3f}, mIoU ")
    assert set(RunResults(whole).label_free_scores()) == {0, 1, 2}


# ------------------------------------------------------------------------------------------------ single classes


def grown(folder, name):
    """Let the record of round 1 say that a class was hardly ever predicted then."""
    path = folder / "round-1" / "thresholds.json"
    record = json.loads(path.read_text())
    record["predicted"] = [0 if one == name else count for one, count in zip(NAMES, record["predicted"])]
    if name == "road":
        record["predicted"][0] = 100
    path.write_text(json.dumps(record))


def test_pseudo_labels_of_a_class_that_has_grown_are_held_back_or_capped(finished, first, tmp_path):
    whole = json.loads((finished / "whole" / "round-2" / "thresholds.json").read_text())
    grown(first, "road")
    shutil.copytree(first, tmp_path / "other")
    held = {}
    for key, folder in (("hold_back", first), ("cap_share", tmp_path / "other")):
        settings = experiment(f"self_training.guard={{{key}: true}}")
        guard = Health(settings, Run(experiment(), folder).record.ledger)
        limit = guard.limit(2)
        assert guard.limit(1) is None
        factors = limit(np.array(whole["predicted"]))
        held[key] = factors
        assert list(factors) == [0]
    assert held["hold_back"] == {0: 0.0}
    first_shares = json.loads((first / "round-1" / "thresholds.json").read_text())["predicted"]
    share = whole["predicted"][0] / sum(whole["predicted"])
    assert held["cap_share"][0] == pytest.approx(100 / sum(first_shares) / share)


def test_such_a_run_has_fewer_pseudo_labels_of_the_class(finished, data, tmp_path):
    counts = {}
    for key in ("warn", "hold_back", "cap_share"):
        folder = tmp_path / key
        settings = experiment(*ROUNDS) if key == "warn" else experiment(f"self_training.guard={{{key}: true}}")
        run = Run(settings, folder)
        for name in ("source", "round-1"):
            shutil.copytree(finished / "first" / name, folder / name)
        grown(folder, "road")
        run.pseudo_label(2)
        record = json.loads(run.dir.stage(2).thresholds.read_text())
        counts[key] = record["kept"][0]
        if key == "hold_back":
            assert record["threshold"][0] is None
        elif key == "cap_share":
            first = json.loads((folder / "round-1" / "thresholds.json").read_text())["predicted"]
            most = 0.25 * first[0] / sum(first) * sum(record["predicted"])
            assert 0 < record["kept"][0] <= most + 1  # ranks are rounded; there are no ties
    assert counts["warn"] > 1000
    assert counts["hold_back"] == 0


def test_the_guard_is_no_part_of_the_identity_but_for_what_changes_pseudo_labels():
    plain = experiment()
    assert "guard" not in plain.to_yaml()
    for change in ("policy=stop", "policy=rollback", "rollbacks=5"):
        other = experiment(f"self_training.guard.{change}")
        assert other.identity == plain.identity
        assert "guard" in other.to_yaml()
    held = experiment("self_training.guard.hold_back=true")
    assert held.identity != plain.identity
    assert held.identity == experiment("self_training.guard={hold_back: true, policy: stop}").identity
    with pytest.raises(Exception, match="cap_share must not be given with hold_back, which leaves no pseudo-labels"):
        load_experiment(DEMO, ("self_training.guard={hold_back: true, cap_share: true}",))
