"""Experiment files: defaults, strictness, changes, opening data."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from cbst_mx.config import below_data_root, load_experiment
from cbst_mx.errors import CBSTError, ConfigError, DataError
from cbst_mx.networks.spec import NETWORK_NAMES
from tests.tiny import DEMO, write_scenes

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.mark.parametrize(
    "path", sorted(p for p in EXPERIMENTS.glob("*.yaml") if not p.stem.endswith("-data")), ids=lambda p: p.stem
)
def test_every_experiment_file_loads_and_is_named_as_its_file(path):
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    assert experiment.network_spec().num_classes == experiment.classes().num_classes


def test_an_experiment_written_out_is_the_same_experiment(tmp_path):
    experiment = load_experiment(DEMO)
    (tmp_path / "again.yaml").write_text(experiment.to_yaml())
    assert load_experiment(tmp_path / "again.yaml") == experiment


def test_changes():
    changed = load_experiment(
        DEMO, ("self_training.rounds=2", "self_training.method=st", "source_training.learning_rate=1e-3", "seed=7")
    )
    assert (changed.self_training.rounds, changed.self_training.policy, changed.seed) == (2, "global", 7)
    assert changed.source_training.learning_rate == 1e-3
    assert load_experiment(DEMO).self_training.policy == "class-balanced"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("evaluation.scales=[0]", "key 'evaluation.scales[0]' must be in [0.05, 16.0], got 0"),
        ("self_training.scales=[-1.0]", "key 'self_training.scales[0]' must be in [0.05, 16.0], got -1.0"),
        ("self_training.learning_rate_factor=.inf", "learning_rate_factor' must be a finite number, got inf"),
        ("source_training.learning_rate=.nan", "learning_rate' must be a finite number, got nan"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(change, sentence):
    if change.startswith("self_training={"):
        base = yaml.safe_load(DEMO.read_text())["self_training"]
        change = "self_training=" + json.dumps({**base, **yaml.safe_load(change.partition("=")[2])})
    with pytest.raises(ConfigError) as caught:
        load_experiment(DEMO, (change,))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_workers_and_device_do_not_make_another_run():
    base, other = load_experiment(DEMO), load_experiment(DEMO, ("workers=0", "ctx=gpu:0,1"))
    assert other.ctx == "gpu:0,1"
    assert base.identity == other.identity != load_experiment(DEMO, ("seed=1",)).identity


@pytest.mark.parametrize("change", ["amp=bfloat16", "gradient_checkpointing=true", "source_training.bias_lr_mult=2.0"])
def test_what_changes_numbers_makes_another_run(change):
    assert load_experiment(DEMO).identity != load_experiment(DEMO, (change,)).identity


@pytest.mark.parametrize("change", ["evaluation.upsampling=pillow"])
def test_keys_that_came_later_leave_other_runs_as_they_were(tmp_path, change):
    base, given = load_experiment(DEMO), load_experiment(DEMO, (change,))
    name = change.partition("=")[0].split(".")[-1]
    assert base.to_yaml().count(f"{name}:") == given.to_yaml().count(f"{name}:") - 1
    assert name not in base.identity["evaluation"]
    assert base.identity != given.identity
    (tmp_path / "again.yaml").write_text(given.to_yaml())
    assert load_experiment(tmp_path / "again.yaml") == given
    assert load_experiment(DEMO, ("evaluation.upsampling=bilinear",)).identity == base.identity


def test_images_are_resized_as_by_the_program_unless_a_run_began_before_there_was_a_choice(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(DEMO.read_text().replace("resampling: linear", "# resampling: linear"))
    default, linear = load_experiment(own), load_experiment(DEMO)
    assert (default.resampling, linear.resampling) == ("program", "linear")
    assert "resampling: program\n" in default.to_yaml()
    assert default.identity["resampling"] == "program"
    assert "resampling" not in linear.identity  # as in the manifests of before
    assert load_experiment(own, ("resampling=draft",)).identity["resampling"] == "draft"
    begun = tmp_path / "experiment.yaml"
    assert default.as_begun(begun) is default
    begun.write_text(linear.to_yaml().replace("resampling: linear\n", ""))
    assert default.as_begun(begun).identity == linear.identity
    assert load_experiment(begun).as_begun(begun).resampling == "linear"
    stated = load_experiment(own, ("resampling=program",))
    assert stated.as_begun(begun) is stated
    begun.write_text(default.to_yaml())
    assert default.as_begun(begun) is default


def test_the_experiment_that_rounds_start_from_is_a_name_and_no_setting(tmp_path):
    base, named = load_experiment(DEMO), load_experiment(DEMO, ("starts_from=gta5-source",))
    assert (base.starts_from, named.starts_from) == (None, "gta5-source")
    assert base.identity == named.identity
    assert "starts_from" not in base.to_yaml()
    (tmp_path / "again.yaml").write_text(named.to_yaml())
    assert load_experiment(tmp_path / "again.yaml") == named
    for wrong in ("../gta5-source", "'a b'", "''", "[gta5-source]"):
        with pytest.raises(ConfigError, match="key 'starts_from' must "):
            load_experiment(DEMO, (f"starts_from={wrong}",))


def test_a_data_root_may_be_given(tmp_path, monkeypatch):
    monkeypatch.delenv("CBST_DATA", raising=False)
    assert below_data_root("gta5", tmp_path) == tmp_path / "gta5"
    assert below_data_root(str(tmp_path / "gta5"), tmp_path / "other") == tmp_path / "gta5"
    with pytest.raises(DataError, match=f"{tmp_path}/gta5"):
        load_experiment(DEMO).open_source(tmp_path)


def test_multipliers_are_the_released_programs_unless_stated():
    phase = "source_training={iterations: 1, batch_size: 1, learning_rate: 0.1}"
    optimiser = load_experiment(DEMO, (phase,)).source_training
    assert (optimiser.bias_lr_mult, optimiser.bias_wd_mult) == (2.0, 0.0)
    for path in (DEMO, EXPERIMENTS / "camvid-dusk-cbst.yaml"):  # measured without
        experiment = load_experiment(path)
        for optimiser in (experiment.source_training, experiment.self_training.retraining):
            assert (optimiser.bias_lr_mult, optimiser.bias_wd_mult) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("self_training.portions=3", "unknown key 'self_training.portions' (allowed: method, rounds, portion"),
        ("self_training.rounds=two", "key 'self_training.rounds' must be an integer, got 'two'"),
        ("self_training.portion.initial=1.5", "key 'self_training.portion.initial' must be in [1e-06, 1], got 1.5"),
        ("self_training.portion.initial=0", "key 'self_training.portion.initial' must be in [1e-06, 1], got 0"),
        ("self_training.method=mst", "key 'self_training.method' must be 'st', 'cbst' or 'cbst-sp', got 'mst'"),
        ("self_training.target_per_batch=8", "target_per_batch must be smaller than the batch_size 8, got 8"),
        ("amp=int8", "key 'amp' must be 'none', 'bfloat16' or 'float16', got 'int8'"),
        ("source_training.bias_lr_mult=-1", "key 'source_training.bias_lr_mult' must be"),
        ("source_training=null", "exactly one of source_training and initial_parameters must be given"),
        ("augmentation.scale=[2.0, 1.0]", "scale must be two numbers with 0 < low <= high"),
        ("nonsense", "a change must have the form key=value, got 'nonsense'"),
        ("source.root.x=1", "root is not a mapping"),
    ],
)
def test_refusals(change, sentence):
    with pytest.raises(ConfigError) as error:
        load_experiment(DEMO, (change,))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("self_training.spatial_prior.grid=[0, 8]", "grid[0]' must be in [1, 8192], got 0"),
        ("self_training.spatial_prior.grid=[1000000, 1]", "grid[0]' must be in [1, 8192], got 1000000"),
        ("self_training.spatial_prior.kernel=1e300", "kernel' must be in [0, 2048], got 1e+300"),
        ("self_training.portion.initial=1e-300", "initial' must be in [1e-06, 1], got 1e-300"),
        ("self_training.source_portion={initial: 1e-300}", "initial' must be in [1e-06, 1], got 1e-300"),
        ("self_training.long_side=1000000", "long_side' must be in [32, 16384], got 1000000"),
        ("evaluation.long_side=1000000", "long_side' must be in [32, 16384], got 1000000"),
        ("evaluation.scales=[99]", "scales[0]' must be in [0.05, 16.0], got 99"),
        ("self_training.scales=[1e-9]", "scales[0]' must be in [0.05, 16.0], got 1e-09"),
        ("augmentation.scale=[0.5, 1e300]", "scale[1]' must be in [0.05, 16.0], got 1e+300"),
        ("augmentation.crop=[32000, 64]", "crop[0]' must be in [1, 8192], got 32000"),
        ("augmentation.crop=[0, 64]", "crop[0]' must be in [1, 8192], got 0"),
        ("source_training.batch_size=100000", "batch_size' must be in [1, 4096], got 100000"),
        ("self_training.retraining.batch_size=100000", "batch_size' must be in [1, 4096], got 100000"),
        ("inference_batch=100000", "inference_batch' must be in [1, 4096], got 100000"),
        ("self_training.rounds=100000", "rounds' must be in [0, 1000], got 100000"),
        ("network.std=[1.0, 0.0, 1.0]", "std[1]' must be in [1e-06, 1000000.0], got 0.0"),
        ("seed=18446744073709551616", "seed' must be in [0, 18446744073709551616), got 18446744073709551616"),
        ("workers=100000", "workers' must be in [0, 256], got 100000"),
        ("name=' '", "key 'name': must have 1 to 100 printable characters, got ' '"),
        ('name="a\\nb"', "key 'name': must have 1 to 100 printable characters"),
        ('validation={"a\\nb": {format: gta5, root: x}}', "must have 1 to 100 printable characters, got 'a\\nb'"),
        ("validation={a.npy: {format: gta5, root: x}}", "must not end with .npy, .classes or .images, got 'a.npy'"),
        ("validation={a.images: {format: gta5, root: x}}", "or .images, got 'a.images'"),
        ('source.root=""', "key 'source.root': must be a path, got ''"),
        ('target.root="a\\0b"', "key 'target.root': must be a path, got 'a\\x00b'"),
        ("network.name=fcn9s", "network must be one of fcn8s, resnet38, got 'fcn9s'"),
        ("label_space=mine", "label_space must be one of cityscapes-19, synthia-16, nthu-13, folder (with"),
        ("label_space=folder", "label_space must be one of cityscapes-19"),
    ],
)
def test_what_no_run_can_have_is_refused_when_the_experiment_is_read(change, sentence):
    with pytest.raises(ConfigError) as error:
        load_experiment(DEMO, (change,))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_networks_that_are_known_without_mxnet_are_those_there_are(monkeypatch):
    symbols = pytest.importorskip("symbols")
    assert sorted(NETWORK_NAMES) == sorted(symbols.NETWORKS)
    monkeypatch.setitem(symbols.NETWORKS, "own", symbols.NETWORKS["fcn8s"])
    assert load_experiment(DEMO, ("network={name: own}",)).network.name == "own"
    monkeypatch.setitem(sys.modules, "symbols", None)  # as where mxnet cannot be imported
    assert load_experiment(DEMO, ("network={name: another}",)).network.name == "another"


def test_all_problems_of_a_file_and_its_changes_are_in_one_answer():
    changes = (
        "self_training.rounds=two", "source_training.learning_rate=-1", "source_training.epochs=3", "batch=3",
        "augmentation.scale=[2.0, 1.0]", "target.root=''", "nonsense", "seed=0x_",
        "self_training.target_per_batch=64", "validation={1: 2}", "evaluation.combine=min", "source.root.x=1",
        "network.name=fcn9s",
    )  # fmt: skip
    with pytest.raises(ConfigError) as error:
        load_experiment(DEMO, changes)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{DEMO} has {len(changes)} problems:"
    assert [line.split(". ")[0].strip() for line in lines[1:]] == [str(n + 1) for n in range(len(changes))]
    for change in changes:
        assert any(change.partition("=")[0].split(".")[-1] in line for line in lines[1:]), change


BOMB = "&a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("bcdefghij", "cdefghijk")
)


@pytest.mark.parametrize(
    "text",
    [
        f"name: {BOMB}", f"network: {{options: {{a: 1}}}}\nname: {BOMB}", "name: 2020-13-45", "seed: 0x_",
        "name: &a [*a]", "network: &n {options: {a: *n}}", f"seed: {'9' * 5000}", "name: !!int ''",
        "name: " + "[" * 2000,
        'extends: "a\\0b"', "extends: loop.yaml", "extends: [1]", "extends: .", "extends: e.yaml", "extends: none.yaml",
        "extends: ~nouser/x", 'source: {description: "a\\0b"}', "source: {description: loop.yaml}",
        "smoke: true\nself_training: {rounds: x}", "smoke: true\nself_training: {retraining: [1]}", "smoke: true",
        "smoke: true\nwarm_up: [1]", "smoke: true\nself_training: 3\nsource_training: [x]", "validation: {1: 2}",
        "validation: [1]", "source: 1\ntarget: []", "origin: {a: [b]}", "- 1", "", "\0",
        "name: !!python/name:os.system",
    ],
    ids=range(31),
)  # fmt: skip
def test_whatever_the_text_the_answer_is_one_of_ours(tmp_path, text):
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(CBSTError) as error:
        load_experiment(tmp_path / "e.yaml")
    assert len(str(error.value)) < 4000


def test_a_change_that_is_no_yaml_names_its_key():
    with pytest.raises(
        ConfigError, match="demo.yaml: change of 'seed': '0x_' is not a YAML value, line 1: '0x_' is no in"
    ):
        load_experiment(DEMO, ("seed=0x_",))


def test_a_home_folder_of_nobody_is_one_sentence(monkeypatch):
    experiment = load_experiment(DEMO, ("source.root=~nouser/x",))
    with pytest.raises(ConfigError, match="names the home folder of a user there is not"):
        experiment.open_source()


def test_aliases_share_nothing(tmp_path):
    values = yaml.safe_load(DEMO.read_text())
    values["self_training"]["retraining"] = values["source_training"]  # dumped as an alias
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(values))
    assert "*id001" in (tmp_path / "e.yaml").read_text()
    changed = load_experiment(tmp_path / "e.yaml", ("source_training.batch_size=9",))
    assert (changed.source_training.batch_size, changed.self_training.retraining.batch_size) != (9, 9)


def test_label_space_is_refused_when_unknown():
    with pytest.raises(ConfigError, match="label_space must be one of .*cityscapes-19.*, got 'mine'"):
        load_experiment(DEMO, ("label_space=mine",)).classes()


def test_an_experiment_without_validation_is_read():
    values = yaml.safe_load(DEMO.read_text())
    assert load_experiment(DEMO, ("validation={}",)).validation == {}
    del values["validation"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.yaml"
        path.write_text(yaml.safe_dump(values))
        assert load_experiment(path).open_validation() == {}


def test_data_roots_are_below_the_variable(tmp_path, monkeypatch):
    experiment = load_experiment(DEMO)
    monkeypatch.delenv("CBST_DATA", raising=False)
    with pytest.raises(ConfigError, match="path gta5 is relative: set the environment variable CBST_DATA"):
        experiment.open_source()
    monkeypatch.setenv("CBST_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match=f"{tmp_path}/none/gta5"):
        experiment.open_source()
    write_scenes(tmp_path / "d", source=2, source_val=1, target=3, target_val=1)
    monkeypatch.setenv("CBST_DATA", str(tmp_path / "d"))
    assert len(experiment.open_source()) == 2
    assert list(experiment.open_validation()) == ["target", "source"]
    target = experiment.open_target()
    assert len(target) == 3
    assert not [name for name in dir(target) if "label" in name]


def test_a_description_is_found_beside_the_experiment(tmp_path):
    values = yaml.safe_load(DEMO.read_text())
    values["source"] = {"format": "folder", "root": "x", "split": "day", "description": "own-data.yaml"}
    values["label_space"] = "folder"
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(CBSTError, match=f"{tmp_path}/own-data.yaml"):
        load_experiment(tmp_path / "e.yaml").classes()
    (tmp_path / "own-data.yaml").write_text(
        "label_space: {name: own, names: [a, b], palette: [[0, 0, 0], [9, 9, 9]], ids: {0: 0, 1: 1}}\n"
        "splits: {day: {images: ['*.png']}}\n"
    )
    assert load_experiment(tmp_path / "e.yaml").classes().names == ("a", "b")
