"""The experiment files: each row of the paper is one of them, says where its settings come from, and runs."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import io

from cbst_mx.cli import main
from cbst_mx.config import describe_target, load_experiment, target_changes
from cbst_mx.errors import ConfigError
from cbst_mx.evaluation import paper_tables
from cbst_mx.rounds.workload import source_indices
from cbst_mx.strict_yaml import read_yaml
from tests import dataset_fixtures

FOLDER = Path(__file__).parents[1] / "experiments"
ROWS = paper_tables.experiments()
VARIANTS = ("source", "st", "cbst", "cbst-sp", "cbst-mining")  # of the ablation
RELEASED = sorted(path.stem for path in FOLDER.glob("*-released.yaml"))
# as those of Rio, but for the city and the published numbers
CITIES = [name for name in ROWS if name.startswith(("nthu-rome-", "nthu-taipei-", "nthu-tokyo-"))]
# what takes long for each is slow for those, see test_experiments_of_other_cities_are_as_those_of_rio
LONG = [pytest.param(name, marks=[pytest.mark.slow] * (name in CITIES)) for name in (*ROWS, *RELEASED)]
# A network and phases that take a second, of another width than a smoke test's.
SMALL = (
    "network.options={width: 0.0625, batch_norm: frozen}",
    "pretrained=null",
    "augmentation.crop=[64, 64]",
    "source_training={iterations: 1, batch_size: 2, learning_rate: 0.001}",
    "self_training.long_side=null",
    "evaluation.long_side=null",
    "workers=0",
)
# Not settings: what an experiment is called, what it starts from, and the numbers it is compared with.
NAMES = {"name", "paper", "origin", "extends", "seed", "smoke", "starts_from", "released_start"}


def merged(name):
    """Return the settings that the files of an experiment state, as dotted keys."""

    def read(path):
        values = read_yaml(path)
        base = read(path.parent / values.pop("extends")) if "extends" in values else {}
        return {**base, **{key: value for key, value in leaves(values)}}

    def leaves(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return read(FOLDER / f"{name}.yaml")


def test_there_is_one_file_for_every_row_of_the_authors():
    assert len(ROWS) == 27
    named = {path.stem for path in FOLDER.glob("*.yaml")}
    others = {"demo", "demo-adversarial", "camvid-data", "camvid-dusk-cbst", "nthu-source"}
    assert named == {*ROWS, *RELEASED, *others, *(f"camvid-vgg16-{variant}" for variant in VARIANTS)}


@pytest.mark.parametrize("name", ROWS)
def test_expected_numbers_are_the_tables(name):
    experiment = load_experiment(FOLDER / f"{name}.yaml")
    key = ROWS[name]
    table, row, network, city = key.table, key.row, key.network, key.city
    paper = experiment.paper
    assert (experiment.name, paper.table, paper.network, experiment.network.name) == (name, table, network, network)
    assert experiment.target.city == experiment.validation["target"].city == (city or None)
    expected = paper_tables.expected(paper.table, paper.row, network=paper.network, city=city)
    assert expected.key == row
    assert paper.expected == expected.to_json()
    assert set(paper.expected) - {"miou", "miou_star"} == set(experiment.classes().names)
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert f'Table {table}, row "{paper.row}"' in first
    assert first.endswith(f"expected mIoU {expected.miou:g}.")


@pytest.mark.parametrize("name", [*ROWS, *RELEASED])
def test_every_setting_says_where_it_comes_from(name):
    settings = merged(name)
    origin = load_experiment(FOLDER / f"{name}.yaml").origin
    assert set(origin.values()) <= {"paper", "inferred", "released", "ours"}
    stated = [key for key in settings if key.split(".")[0] not in NAMES]
    missing = [key for key in stated if not any(key == o or key.startswith(o + ".") for o in origin)]
    assert not missing
    unused = [o for o in origin if not any(key == o or key.startswith(o + ".") for key in stated)]
    assert not unused


def test_the_two_fidelities_differ_where_paper_and_program_do():
    paper, released = (load_experiment(FOLDER / f"gta5-cbst{end}.yaml").self_training for end in ("", "-released"))
    assert (paper.fidelity, paper.rounds, paper.portion.initial, paper.mining.worst) == ("paper", 7, 0.20, 5)
    assert (released.fidelity, released.rounds, released.portion.initial, released.mining.worst) == (
        "released",
        6,
        0.15,
        3,
    )
    assert load_experiment(FOLDER / "gta5-st.yaml").self_training.mining is None
    # The program's ST mines what its sort of equal values leaves first, see the file.
    for name, classes in (("gta5", [0, 16, 15]), ("synthia", [0, 1, 2])):
        st = load_experiment(FOLDER / f"{name}-st-released.yaml")
        assert st.self_training.mining.methods == ["st"]
        assert [st.classes().names.index(mined) for mined in st.self_training.mining.classes] == classes
    assert load_experiment(FOLDER / "synthia-cbst.yaml").self_training.mining is None
    assert load_experiment(FOLDER / "synthia-cbst-released.yaml").self_training.mining.worst == 3


def test_the_papers_experiments_adapt_on_val_and_the_programs_on_505_of_train():
    for name in (*ROWS, *RELEASED):
        target = load_experiment(FOLDER / f"{name}.yaml").target
        if name in RELEASED:
            assert (target.split, target.list) == ("train", "train-505.txt")
        else:
            assert (target.split, target.list) == ("rest" if name.startswith("nthu") else "val", None)


@pytest.mark.parametrize("name", ["val", "train", "train-505"])
@pytest.mark.parametrize("experiment", ["gta5-cbst", "gta5-cbst-released"])
def test_other_target_images_by_name(name, experiment):
    file = FOLDER / f"{experiment}.yaml"
    loaded = load_experiment(file, target_changes(load_experiment(file), name))
    split, _, number = name.partition("-")
    assert (loaded.target.split, loaded.target.list) == (split, "train-505.txt" if number else None)
    assert loaded.origin["target"] == {"val": "paper", "train": "ours", "train-505": "released"}[name]
    text = describe_target(loaded, 500)
    assert text.startswith(f"adapted on cityscapes {split}")
    assert ("transductive: validation set target has the same images" in text) == (name == "val")


def test_nthu_adapts_on_labelled_images_of_other_folds_or_on_all_that_have_no_label():
    file = FOLDER / "nthu-rio-cbst.yaml"
    folds = load_experiment(file, target_changes(load_experiment(file), "folds"))
    assert folds == load_experiment(file)
    # as many source crops as target crops, within a factor of 1.5: 90 target images
    assert [round(len(source_indices(folds, index, 2975)) / 90, 1) for index in (1, 7)] == [1.0, 1.5]
    train = load_experiment(file, target_changes(folds, "train"))
    assert (train.target.split, train.target.city, train.target.fold) == ("train", "Rio", None)
    assert (train.validation["target"].split, train.validation["target"].fold) == ("test", None)
    assert len(source_indices(train, 1, 2975)) == 2975  # to 3,200
    assert "fold 0 of 10 left out" in describe_target(folds)
    assert "fold" not in describe_target(train)


def test_a_target_that_is_none_is_refused():
    gta5, demo = (load_experiment(FOLDER / f"{name}.yaml") for name in ("gta5-cbst", "camvid-dusk-cbst"))
    with pytest.raises(
        ConfigError, match="^target must be one of val, train, train-505 for images of cityscapes, got 'x'$"
    ):
        target_changes(gta5, "x")
    with pytest.raises(ConfigError, match="where the target's format is not cityscapes or nthu, got 'val'"):
        target_changes(demo, "val")


@pytest.mark.parametrize("name", RELEASED)
def test_released_experiments_resize_as_the_program_does(name):
    experiment = load_experiment(FOLDER / f"{name}.yaml")
    assert experiment.self_training.fidelity == "released"
    assert experiment.self_training.upsampling == experiment.evaluation.upsampling == "pillow"
    assert experiment.resampling == load_experiment(FOLDER / f"{experiment.starts_from}.yaml").resampling == "program"
    assert (experiment.evaluation.long_side, experiment.evaluation.flip) == (2048, True)


def test_every_row_resizes_sharply_and_measured_experiments_as_they_were():
    assert {merged(name)["resampling"] for name in (*ROWS, *RELEASED)} == {"program"}
    measured = ("demo", "demo-adversarial", "camvid-dusk-cbst", *(f"camvid-vgg16-{variant}" for variant in VARIANTS))
    assert {merged(name)["resampling"] for name in measured} == {"linear"}


def test_the_priors_of_paper_and_program():
    def prior(name, *changes):
        return load_experiment(FOLDER / f"{name}.yaml", changes).self_training.spatial_prior.model_dump()

    common = {"kernel": 70.0, "normalisation": "sum"}
    assert prior("gta5-cbst-sp") == prior("gta5-fcn8s-cbst-sp") == {**common, "grid": [512, 1024]}
    assert prior("gta5-cbst-sp-released") == {**common, "grid": [1024, 2048]}
    file = {"file": "weights/prior_array.mat"}
    assert prior("gta5-cbst-sp-prior-released") == file
    change = "self_training.spatial_prior.file=weights/prior_array.mat"
    assert prior("gta5-cbst-sp-released", change) == prior("gta5-cbst-sp", change) == file
    # the numbers of the README were measured with it
    assert prior("demo")["normalisation"] == "maximum"


def test_the_authors_prior_is_missed_before_any_training(tmp_path):
    dataset_fixtures.write_gta5(tmp_path / "gta5")
    dataset_fixtures.write_cityscapes(tmp_path / "cityscapes")
    names = sorted(path.name for path in (tmp_path / "cityscapes/leftImg8bit/train").rglob("*.png"))
    (tmp_path / "cityscapes" / "train-505.txt").write_text(names[0] + "\n")
    file = FOLDER / "gta5-cbst-sp-prior-released.yaml"
    output = call(tmp_path, "run", file, "--out", tmp_path / "run", "--smoke", code=1)
    assert "weights/prior_array.mat does not exist: put the file there, or name another" in " ".join(output.split())
    assert not (tmp_path / "run").exists()


def make_steps(*arguments, folder=FOLDER.parent):
    """Return the calls of cbst-mx that make would do in `folder`, each as its arguments."""
    steps = subprocess.run(
        ["make", "-n", *arguments], cwd=str(folder), capture_output=True, text=True, check=True
    ).stdout
    lines = steps.replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition("cbst-mx ")[2]) for line in lines if "cbst-mx " in line]


def test_make_names_the_steps_of_an_experiment():
    words = [step[0] for step in make_steps("gta5-cbst")]
    assert words == ["check-inputs", "source", *["pseudo-label", "retrain"] * 7, "run", "check-paper"]


def steps_of(name):
    """Return the steps of an experiment as load_experiment understands its file, with the folder each works in."""
    experiment = load_experiment(FOLDER / f"{name}.yaml")
    rounds = range(1, experiment.self_training.rounds + 1)
    start = experiment.starts_from
    looked = ("check-inputs", f"experiments/{name}.yaml")  # before a training that may take weeks
    if start is None:
        before = [("source", f"runs/{name}")]
    elif load_experiment(FOLDER / f"{start}.yaml").starts_from is None:
        before = [looked, ("source", f"runs/{start}")]
    else:
        before = [looked, *steps_of(start)]
    folds = experiment.target.folds
    folders = [f"runs/{name}/fold-{fold}" for fold in range(folds)] if folds else [f"runs/{name}"]
    steps = [(verb, folder) for folder in folders for verb in [*["pseudo-label", "retrain"] * len(rounds), "run"]]
    return [*before, *steps, ("check-paper", f"runs/{name}")]


@pytest.mark.parametrize("name", LONG)
def test_make_reads_rounds_folds_and_start_as_the_program_does(name):
    steps = make_steps(name)
    assert [(step[0], step[step.index("--out") + 1] if "--out" in step else step[1]) for step in steps] == steps_of(
        name
    )
    start = load_experiment(FOLDER / f"{name}.yaml").starts_from
    if start is not None:
        rounds = load_experiment(FOLDER / f"{start}.yaml").self_training.rounds
        stage = f"round-{rounds}" if rounds else "source"
        own = [step for step in steps if f"experiments/{name}.yaml" in step and step[0] != "check-inputs"]
        assert {step[step.index("--init") + 1] for step in own} == {f"runs/{start}/{stage}/parameters.params"}


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile and the experiments, whose files may be changed."""
    for name in ("Makefile", "setup.py"):
        shutil.copy(str(FOLDER.parent / name), str(tmp_path))
    shutil.copytree(str(FOLDER), str(tmp_path / "experiments"))
    return tmp_path


def change(file, old, new):
    text = file.read_text("utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), "utf-8")


def test_the_rounds_of_a_base_file_are_the_steps_of_make(checkout):
    change(checkout / "experiments/base/gta5-resnet38.yaml", "  rounds: 7\n", "  rounds: 3  # not 7\n")
    words = [step[0] for step in make_steps("gta5-cbst", folder=checkout)]
    assert words == ["check-inputs", "source", *["pseudo-label", "retrain"] * 3, "run", "check-paper"]
    assert len(make_steps("gta5-cbst-released", folder=checkout)) == 2 + 2 * 6 + 2  # it says 6 itself
    last = make_steps("gta5-cbst-sp-mst", folder=checkout)[-2]
    assert last[last.index("--init") + 1] == "runs/gta5-cbst-sp/round-3/parameters.params"


def test_make_reads_settings_wherever_a_line_has_them(checkout):
    file = checkout / "experiments/gta5-cbst.yaml"
    change(
        file, "self_training:\n  method: cbst\n", "# rounds: 9\nself_training: {method: cbst, rounds: 2}  # rounds: 8\n"
    )
    words = [step[0] for step in make_steps("gta5-cbst", folder=checkout)]
    assert words == ["check-inputs", "source", *["pseudo-label", "retrain"] * 2, "run", "check-paper"]


def test_the_folds_of_a_base_file_are_the_steps_of_make(checkout):
    file = checkout / "experiments/base/nthu-resnet38.yaml"
    file.write_text(file.read_text("utf-8").replace("folds: 10", "folds: 4"), "utf-8")
    runs = [step for step in make_steps("nthu-rio-st", folder=checkout) if step[0] == "run"]
    assert [step[step.index("--fold") + 1] for step in runs] == list("0123")


def test_a_network_to_start_from_is_named_in_the_experiment(checkout):
    change(checkout / "experiments/base/gta5-resnet38.yaml", "starts_from: gta5-source", "starts_from: synthia-source")
    _, *steps = make_steps("gta5-st", folder=checkout)
    assert steps[0][:4] == ["source", "experiments/synthia-source.yaml", "--out", "runs/synthia-source"]
    assert steps[1][-1] == "runs/synthia-source/source/parameters.params"


def test_make_adapts_on_other_images_in_folders_of_their_own():
    steps = make_steps("gta5-cbst-sp-mst", "TARGET=train", "ROUNDS=2")
    words = [(step[0], step[step.index("--out") + 1] if "--out" in step else step[1]) for step in steps]
    adapted, tested = "runs/gta5-cbst-sp-train-2-rounds", "runs/gta5-cbst-sp-mst-train-2-rounds"
    assert words == [
        ("check-inputs", "experiments/gta5-cbst-sp-mst.yaml"),
        ("check-inputs", "experiments/gta5-cbst-sp.yaml"),
        ("source", "runs/gta5-source"),
        *[("pseudo-label", adapted), ("retrain", adapted)] * 2,
        ("run", adapted),
        ("check-paper", adapted),
        # it has no round itself, but stands for the images and rounds that its network comes from
        ("run", tested),
        ("check-paper", tested),
    ]
    assert all(("--target" in step) == ("experiments/gta5-cbst-sp.yaml" in step) for step in steps)
    assert all("--rounds" in step for step in steps if "--target" in step)
    assert steps[-2][-1] == f"{adapted}/round-2/parameters.params"
    assert "--target" not in make_steps("gta5-cbst")[1]


def test_make_runs_a_city_once_where_its_unlabelled_images_are_the_target():
    folders = {step[step.index("--out") + 1] for step in make_steps("nthu-rio-st", "TARGET=train") if "--out" in step}
    assert folders == {"runs/nthu-source", "runs/nthu-rio-st-train"}
    assert len([step for step in make_steps("nthu-rio-st", "TARGET=folds") if step[0] == "run"]) == 10


def test_the_programs_experiments_start_from_its_released_source_network(data, tmp_path, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    file = FOLDER / "gta5-cbst-released.yaml"
    options = [part for change in SMALL for part in ("--set", change)]
    weights = tmp_path / "data" / "weights"
    weights.mkdir(parents=True)
    for name in ("gta5", "cityscapes"):
        (tmp_path / "data" / name).symlink_to(data / name)
    monkeypatch.setenv("CBST_DATA", str(tmp_path / "data"))
    assert make_steps("gta5-cbst-released")[1][:2] == ["source", "experiments/gta5-source.yaml"]
    first = call(tmp_path / "data", "source", file, "--out", tmp_path / "run", *options)
    released = weights / "gta5-source-released.params"
    missing = f"does not start from the authors' released source network: {released} is not there\n"
    assert first.startswith(missing)
    assert missing in (tmp_path / "run/log.txt").read_text()
    for suffix in ("", ".json"):
        shutil.copy(str(tmp_path / f"run/source/parameters.params{suffix}"), f"{released}{suffix}")
    steps = make_steps("gta5-cbst-released")
    assert steps[0][:2] == ["source", "experiments/gta5-cbst-released.yaml"]
    varied = make_steps("gta5-cbst-released", "TARGET=val", "ROUNDS=1")
    assert {step[step.index("--out") + 1] for step in varied[:-1]} == {"runs/gta5-cbst-released-val-1-rounds"}
    assert all("--target" in step and "--rounds" in step for step in varied[:-1])
    assert not any("--init" in step for step in steps)
    then = call(tmp_path / "data", "source", file, "--out", tmp_path / "then", *options)
    assert then.startswith(f"starts from the authors' released source network, {released}\n")
    record = json.loads((tmp_path / "then/source/training.json").read_text())
    assert record == {"taken from": str(released)}
    assert "starts from the authors' released source network" in (tmp_path / "then/log.txt").read_text()
    again = call(tmp_path / "data", "check-inputs", file, *options, "--init", released)
    assert again.startswith(f"starts from the authors' released source network, {released}\n")
    own = tmp_path / "run/source/parameters.params"
    other = call(tmp_path / "data", "check-inputs", file, *options, "--init", own)
    assert other.startswith(f"starts from {own}, not from the authors' released source network\n")
    # a smoke test is of another size
    assert make_steps("gta5-cbst-released", "SMOKE=1")[1][:2] == ["source", "experiments/gta5-source.yaml"]
    smoke = call(tmp_path / "data", "source", file, "--out", tmp_path / "smoke", "--smoke")
    assert smoke.startswith("does not start from the authors' released source network: the network of a smoke test has")
    assert json.loads((tmp_path / "smoke/source/training.json").read_text())["iterations"] == 1


def test_make_refuses_an_experiment_without_rounds(checkout):
    change(checkout / "experiments/base/gta5-resnet38.yaml", "  rounds: 7\n", "")
    result = subprocess.run(["make", "-n", "gta5-st"], cwd=str(checkout), capture_output=True, text=True)
    assert result.returncode
    assert "experiments/gta5-st.yaml or the file that it extends must say rounds" in result.stderr


def test_an_experiment_that_is_no_row_of_the_paper_is_one_run():
    assert make_steps("camvid-dusk-cbst", "INIT=own.params") == [
        ["run", "experiments/camvid-dusk-cbst.yaml", "--out", "runs/camvid-dusk-cbst", "--init", "own.params"]
    ]


def test_the_ablation_makes_every_variant_from_the_source_network_of_its_seed():
    *steps, last = make_steps("camvid-ablation", "SEEDS=0,2", "RUNS=r")
    assert [(step[0], step[1], step[step.index("--set") + 1], step[step.index("--out") + 1]) for step in steps] == [
        ("run", f"experiments/camvid-vgg16-{variant}.yaml", f"seed={seed}", f"r/camvid-ablation/{variant}/seed-{seed}")
        for seed in (0, 2)
        for variant in VARIANTS
    ]
    starts = [step[step.index("--init") + 1] if "--init" in step else None for step in steps]
    made = [f"r/camvid-ablation/source/seed-{seed}/source/parameters.params" for seed in (0, 2)]
    assert starts == [None, *made[:1] * 4, None, *made[1:] * 4]
    assert last[:2] == ["compare", "r/camvid-ablation/source"]
    assert last[2:6] == [f"r/camvid-ablation/{variant}" for variant in VARIANTS[1:]]
    assert len(make_steps("camvid-ablation")) == 3 * 5 + 1


def test_the_variants_of_the_ablation_differ_in_one_thing_each():
    settings = {variant: merged(f"camvid-vgg16-{variant}") for variant in VARIANTS}
    base = settings["cbst"]
    differing = {
        variant: {key for key in {*base, *other} if base.get(key) != other.get(key)} - {"name", "starts_from"}
        for variant, other in settings.items()
    }
    assert differing == {
        "source": {"self_training.rounds"},
        "st": {"self_training.method"},
        "cbst": set(),
        "cbst-sp": {"self_training.method"},
        "cbst-mining": {f"self_training.mining.{key}" for key in ("worst", "priority", "probability")},
    }


def test_the_name_of_the_start_is_kept_and_makes_no_other_run():
    experiment = load_experiment(FOLDER / "gta5-st.yaml")
    assert "starts_from: gta5-source\n" in experiment.to_yaml()
    alone = load_experiment(FOLDER / "gta5-st.yaml", ("starts_from=null",))
    assert "starts_from" not in alone.to_yaml()
    assert alone.identity == experiment.identity


def test_a_given_start_takes_the_place_of_the_source_training():
    _, *steps = make_steps("gta5-cbst", "INIT=own.params")
    assert [step for step in steps if "own.params" in step] == steps[:1]
    assert steps[0][0] == "source"
    assert all("own.params" in step for step in make_steps("gta5-source", "INIT=own.params")[:2])


def test_make_help_lists_every_experiment_in_one_line():
    lines = subprocess.run(
        ["make", "help"], cwd=str(FOLDER.parent), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in [*ROWS, *RELEASED]:
        assert len([line for line in lines if line.startswith(f"{name} - ")]) == 1
    assert max(map(len, lines)) <= 140  # a name of up to 21 characters and a line of up to 116


# ------------------------------------------------------------------------------------------------- smoke tests


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The four data sets, a few images each, in the publishers' formats."""
    root = tmp_path_factory.mktemp("data")
    dataset_fixtures.write_gta5(root / "gta5")
    dataset_fixtures.write_synthia(root / "synthia")
    dataset_fixtures.write_cityscapes(root / "cityscapes")
    dataset_fixtures.write_nthu(root / "nthu", train=2, test=10)
    names = sorted(path.name for path in (root / "cityscapes/leftImg8bit/train").rglob("*.png"))
    (root / "cityscapes" / "train-505.txt").write_text("\n".join(names[:2]) + "\n")
    (root / "weights").mkdir()
    io.savemat(
        str(root / "weights" / "prior_array.mat"), {"prior_array": np.random.default_rng(0).random((19, 16, 32))}
    )
    return root


def call(data, *arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"CBST_DATA": str(data)})
    assert result.exit_code == code, result.output
    return result.output


def test_experiments_of_other_cities_are_as_those_of_rio():
    for name in CITIES:
        city, method = name.split("-")[1:]
        own, rio = (read_yaml(FOLDER / f"nthu-{one}-{method}.yaml") for one in (city, "rio"))
        assert own.pop("paper")["row"] == rio.pop("paper")["row"]
        assert json.loads(json.dumps(own).replace(city, "rio").replace(city.title(), "Rio")) == rio


@pytest.mark.parametrize("name", LONG)
def test_the_chain_runs_from_source_to_verdict(name, data, tmp_path):
    file = FOLDER / f"{name}.yaml"
    options = ["--smoke", "--set", "seed=1"]
    if name == "gta5-cbst-sp-mst":
        source = file.with_name("gta5-cbst-sp.yaml")
        call(data, "run", source, "--out", tmp_path / "cbst-sp", *options)
        options += ["--init", tmp_path / "cbst-sp/round-2/parameters.params"]
    output = call(data, "run", file, "--out", tmp_path / "run", *options)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    rounds = 0 if name.endswith(("-source", "-mst")) else 2
    assert [stage["round"] for stage in summary["stages"]] == list(range(rounds + 1))
    assert "not comparable (smoke)" in call(data, "check-paper", tmp_path / "run")
    best = [line for line in output.splitlines() if line.startswith("best of the rounds, chosen with target labels")]
    assert len(best) == (rounds > 0)
    # a fold is not what a row is a mean of
    assert all("not comparable (smoke) (last: " in line for line in best)
    if name in RELEASED:
        thresholds = json.loads((tmp_path / "run/round-1/thresholds.json").read_text())
        assert thresholds["fidelity"] == "released"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, ()) for name in ("gta5-cbst", "gta5-cbst-sp-mst", "gta5-st-released", "nthu-rio-st")],
        ("synthia-st", ("TARGET=train-505",)),
        ("nthu-rome-st", ("TARGET=train",)),
    ],
)
def test_the_steps_of_make_lead_to_a_verdict(name, options, data, tmp_path, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    output = ""
    for step in make_steps(name, "SMOKE=1", f"RUNS={tmp_path}", *options):
        output = call(data, *step)
    assert step[0] == "check-paper"
    assert "not comparable (smoke)" in output


REPRODUCING = (FOLDER.parent / "docs" / "reproducing.md").read_text("utf-8")


def documented(*words):
    """Return the command of docs/reproducing.md that has all `words`, as its arguments without the program."""
    lines = [line.strip().partition("  #")[0] for line in REPRODUCING.splitlines() if line.startswith("    ")]
    (found,) = [line for line in lines if all(word in line.split() for word in words)]
    return shlex.split(found)[1:]


@pytest.fixture
def beside(data, tmp_path, monkeypatch):
    """A working folder with the experiments, as the documented commands want it, and data that may be added to."""
    monkeypatch.chdir(tmp_path)
    for name in ("experiments", "Makefile", "setup.py"):
        (tmp_path / name).symlink_to(FOLDER.parent / name)
    (tmp_path / "data").mkdir()
    for path in data.iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    return tmp_path


def test_the_documented_list_is_one_of_train(beside):
    call(beside / "data", "source", "experiments/gta5-source.yaml", "--out", "runs/gta5-source", "--smoke")
    call(beside / "data", *documented("cbst-mx", "pseudo-label", "runs/choose"), "--smoke")
    select = documented("cbst-mx", "select-images")
    assert [select[-1], select[select.index("--keep") + 1]] == ["$CBST_DATA/cityscapes/train-505.txt", "505"]
    select[-1], select[select.index("--keep") + 1] = "list.txt", "2"
    call(beside / "data", *select)
    images = (beside / "data/cityscapes/leftImg8bit/train").resolve().rglob("*_leftImg8bit.png")
    train = {path.stem[: -len("_leftImg8bit")] for path in images}
    chosen = {Path(line).stem for line in Path("list.txt").read_text().split()}
    assert len(chosen) == 2
    assert chosen <= train


def test_make_misses_an_experiments_own_files_before_the_source_training(data, beside):
    (beside / "data/weights").unlink()
    step = make_steps("gta5-cbst-sp-prior-released", "SMOKE=1", folder=beside)[0]
    output = call(beside / "data", *step, code=1)
    assert "weights/prior_array.mat does not exist" in " ".join(output.split())
    (beside / "data/cityscapes").unlink()
    (beside / "data/cityscapes").mkdir()
    (beside / "data/cityscapes/leftImg8bit").symlink_to(data / "cityscapes/leftImg8bit")
    step = make_steps("gta5-cbst", "TARGET=train-505", folder=beside)[0]
    assert "train-505.txt does not exist" in " ".join(call(beside / "data", *step, code=1).split())
    assert not (beside / "runs").exists()


def test_the_documented_start_from_a_snapshot(beside):
    call(beside / "data", *documented("cbst-mx", "source_training.snapshots=5"), "--smoke")
    shown = call(beside / "data", *documented("cbst-mx", "results", "--snapshots"))
    assert "source network after 1 epochs\n" in shown  # a smoke test ends in the first
    make = documented("make", "RUNS=runs/epoch-10")
    assert make[1] == "INIT=runs/gta5-source/source/snapshots/epoch-10/parameters.params"
    snapshot = make[1].replace("epoch-10", "epoch-1")
    steps = make_steps(make[0], snapshot, make[2], "SMOKE=1", folder=beside)
    for step in [*steps[:3], make_steps("gta5-cbst", "SMOKE=1", folder=beside)[1]]:
        call(beside / "data", *step)
    record = json.loads((beside / "runs/epoch-10/gta5-source/source/training.json").read_text())
    assert record == {"taken from": snapshot.partition("=")[2]}
    assert (beside / "runs/epoch-10/gta5-cbst/round-1/thresholds.json").is_file()
