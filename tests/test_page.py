"""The report: what it says, what it leaves out, and that it is one file in which no name becomes a part of the page."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.errors import ConfigError, DataError, RunError
from cbst_mx.evaluation.comparison import paired_gain
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.files import write_json
from cbst_mx.networks.sidecars import sidecar_path
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.report.page import build_page, write_report
from cbst_mx.report.story import points, read_story, signed
from tests.report_runs import HOSTILE, SPACE, write_data, write_run

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.S)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with data/ and runs cbst (seeds 0 and 1), st, and label-free."""
    root = tmp_path_factory.mktemp("page")
    truths = write_data(root / "data", images=6)
    for seed in range(2):
        write_run(root / "cbst" / f"seed-{seed}", root / "data", truths, seed=seed)
    write_run(root / "st", root / "data", truths, method="st", gain=-0.05)
    write_run(root / "label-free", root / "data", truths, labelled=False)
    write_run(root / "going", root / "data", truths, rounds=3, done=1)
    write_run(root / "old", root / "data", truths, shown=False)
    return root


def data_of(html):
    return json.loads(DATA.search(html).group(1))


def test_it_opens_with_the_answer(runs):
    page = build_page([runs / "cbst", runs / "st"])
    run = RunResults(runs / "st")
    expected = paired_gain([(run.matrices(0)["check"], run.matrices(2)["check"])])
    assert expected.high < 0  # this run was made to get worse
    gain, low, high = (f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}") for value in expected[1:])
    first, second = page.answers
    assert re.fullmatch(
        r"CBST gained \d+\.\d mIoU over the source network \(95 % interval \+\d+\.\d to \+\d+\.\d, paired over 6 "
        r"images, mean of 2 seeds\); 4 classes better, 0 worse\. By seed: seed 0 \+\d+\.\d, seed 1 \+\d+\.\d\.",
        first,
    )
    assert second == (
        f"ST lost {gain[1:]} mIoU over the source network (95 % interval {low} to {high}, paired over 6 images); "
        "0 classes better, 4 worse."
    )
    assert all(answer in page.html for answer in page.answers)


def test_runs_that_differ_in_seed_are_one_method(runs):
    story = read_story([runs / "cbst", runs / "st"])
    assert [(method.title, list(method.runs)) for method in story.methods] == [("CBST", [0, 1]), ("ST", [0])]
    assert [method.title for method in read_story([runs / "cbst", runs / "going"]).methods] == [
        "CBST (cbst)",
        "CBST (going)",
    ]


def test_a_run_that_goes_on_is_told_as_far_as_it_is(runs):
    (answer,) = build_page([runs / "going"]).answers
    assert " over the source network after 1 of 3 rounds (" in answer


def test_one_file_that_fetches_nothing(runs):
    html = build_page([runs / "cbst"]).html
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#|/report)""", outside)
    assert "default-src 'none'" in html
    assert len(re.findall(r"<script>", html)) == html.count("sha256-") == 2


def test_no_name_becomes_a_part_of_the_page(runs):
    html = build_page([runs / "cbst", runs / "st"]).html
    assert HOSTILE not in html
    assert "&lt;img src=x onerror=" in html
    data = data_of(html)
    assert any(HOSTILE in row["name"] for row in data["pictures"]["predictions"])
    assert any(HOSTILE in chart["traces"][0]["y"] for chart in data["charts"] if chart["key"] == "gains")


def test_pictures_of_every_round(runs):
    pictures = data_of(build_page([runs / "cbst", runs / "st"], images=4).html)["pictures"]
    assert len(pictures["predictions"]) == 4
    assert len(pictures["pseudo_labels"]) == 2
    wanted = {"name", "photo", "truth", *(f"{title}\n{stage}" for title in ("CBST", "ST") for stage in range(3))}
    assert set(pictures["predictions"][0]) == wanted
    assert set(pictures["pseudo_labels"][0]) == {"name", "photo", "CBST\n1", "CBST\n2", "ST\n1", "ST\n2"}
    kinds = {key: value[:15] for key, value in pictures["predictions"][0].items() if key != "name"}
    assert kinds.pop("photo") == "data:image/jpeg"
    assert set(kinds.values()) == {"data:image/png;"}


def test_without_the_images_it_says_so(runs, tmp_path):
    truths = write_data(tmp_path / "data", images=3)
    write_run(tmp_path / "run", tmp_path / "data", truths)
    spec = NetworkSpec("fcn8s", len(SPACE.names), {"width": 1 / 32})
    sidecar = {"format": 1, "network": spec.to_json(), "sha256": "0" * 64}
    sidecar["label_space"] = {"name": SPACE.name, "names": SPACE.names, "palette": SPACE.palette}
    parameters = tmp_path / "run" / "source" / "parameters.params"
    parameters.write_bytes(b"")
    write_json(sidecar_path(parameters), sidecar)  # which knows the classes, too
    shutil.rmtree(tmp_path / "data")
    page = build_page([tmp_path / "run"])
    assert [sentence.split(":")[0] for sentence in page.missing] == [
        "Pictures of validation set check are left out",
        "Pictures of pseudo-labels are left out",
    ]
    assert all(sentence[:40] in page.html for sentence in page.missing)


def test_runs_of_earlier_versions_have_no_predictions(runs):
    page = build_page([runs / "old"])
    assert "--predict makes them" in page.missing[0]
    assert data_of(page.html)["pictures"]["predictions"] == []


def test_a_run_without_labels_has_the_label_free_part(runs):
    page = build_page([runs / "label-free"])
    assert page.answers == [
        "CBST, round 2: mean confidence 0.800, 10.0 % of the target's pixels moved to another class since the source "
        "network. There are no labels to tell whether that is for the better."
    ]
    pictures = data_of(page.html)["pictures"]["predictions"]
    assert len(pictures) == 6
    assert set(pictures[0]) == {"name", "photo", "CBST\n0", "CBST\n1", "CBST\n2"}  # no truth
    assert 'id="label-free"' in page.html
    assert 'id="classes"' not in page.html


def test_twenty_images_and_seven_rounds_are_at_most_ten_megabytes(tmp_path):
    truths = write_data(tmp_path / "data", images=20, size=(256, 512))
    for method in ("cbst", "st"):
        write_run(tmp_path / method, tmp_path / "data", truths, rounds=7, method=method)
    page = build_page([tmp_path / "cbst", tmp_path / "st"], images=20)
    pictures = data_of(page.html)["pictures"]
    assert len(pictures["predictions"]) == 20
    assert "CBST\n7" in pictures["predictions"][19]
    assert len(page.html.encode()) <= 10_000_000
    assert pictures["side"] >= 96


def test_kinds_of_runs_do_not_mix(runs):
    with pytest.raises(DataError, match="has no validation set, .* has: give one kind of runs"):
        build_page([runs / "label-free", runs / "cbst"])
    with pytest.raises(ConfigError, match="set must be one of check, got 'other'"):
        build_page([runs / "cbst"], name="other")
    with pytest.raises(RunError, match="is no run folder and holds none"):
        build_page([runs / "data"])
    with pytest.raises(ConfigError, match="images must be from 0 to 20, got 21"):
        build_page([runs / "cbst"], images=21)


def test_csv_has_the_numbers(runs, tmp_path):
    result = CliRunner().invoke(
        main, ["report", str(runs / "st"), "--out", str(tmp_path / "r.html"), "--csv", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    with open(tmp_path / "iou.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    run = RunResults(runs / "st")
    found = {(int(row["round"]), row["class"]): float(row["iou"]) for row in rows}
    for stage in range(3):
        assert found[stage, "mIoU"] == run.miou(stage)
        assert found[stage, HOSTILE] == run.iou(stage)[HOSTILE]
    with open(tmp_path / "thresholds.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8
    assert float(rows[0]["threshold"]) == pytest.approx(0.85)
    assert float(rows[0]["k_c"]) == pytest.approx(-np.log(0.85))
    with open(tmp_path / "images.csv", newline="") as stream:
        pixels = sum(int(row["pixels"]) for row in csv.DictReader(stream) if row["round"] == "0")
    assert pixels == run.confusion(0).sum()


def test_csv_of_moves(runs, tmp_path):
    command = ["report", str(runs / "st"), "--out", str(tmp_path / "r.html"), "--csv", str(tmp_path)]
    result = CliRunner().invoke(main, [*command, "--data", str(runs / "data")])
    assert result.exit_code == 0, result.output
    with open(tmp_path / "moves.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["before"], row["round"]) for row in rows} == {("0", "1"), ("1", "2"), ("0", "2")}
    # what became right less what became wrong adds up over the rounds
    for name in {row["class"] for row in rows}:
        net = {
            (row["before"], row["round"]): int(row["gained"]) - int(row["lost"]) for row in rows if row["class"] == name
        }
        assert net["0", "1"] + net["1", "2"] == net["0", "2"]
    assert any(int(row["gained"]) for row in rows)


def test_tensorboard_events(runs, tmp_path):
    pytest.importorskip("tensorboardX")
    command = ["report", str(runs / "cbst"), "--out", str(tmp_path / "r.html"), "--tensorboard", str(tmp_path / "tb")]
    for _ in range(2):  # the second call takes the place of the first
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "tb").rglob("events.*"))
    assert [file.parent.relative_to(tmp_path / "tb").as_posix() for file in files] == ["CBST/seed-0", "CBST/seed-1"]
    content = files[0].read_bytes()
    assert all(tag.encode() in content for tag in ("check/mIoU", "thresholds/road", "pseudo-labels/"))


def test_an_interrupted_report_leaves_the_old_one(runs, tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("before")
    monkeypatch.setattr("cbst_mx.report.page.plotly_script", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report([runs / "st"], out)
    assert out.read_text() == "before"


def test_seeds_that_disagree_are_told(runs, tmp_path):
    truths = write_data(tmp_path / "data", images=6)
    for seed, gain in enumerate((0.06, -0.08)):
        write_run(tmp_path / "runs" / f"seed-{seed}", tmp_path / "data", truths, seed=seed, gain=gain)
    (answer,) = build_page([tmp_path / "runs"], images=0).answers
    assert re.search(r" The seeds disagree: seed 0 \+\d+\.\d, seed 1 \N{MINUS SIGN}\d+\.\d\.$", answer)


def test_a_folder_stands_for_all_runs_below_it(runs, tmp_path):
    truths = write_data(tmp_path / "data", images=2)
    for seed in range(2):
        for method in ("cbst", "st"):
            write_run(tmp_path / "demo" / f"seed-{seed}" / method, tmp_path / "data", truths, seed=seed, method=method)
    story = read_story([tmp_path / "demo"])
    assert [(method.title, list(method.runs)) for method in story.methods] == [("CBST", [0, 1]), ("ST", [0, 1])]
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "st").symlink_to(runs / "st")
    assert len(read_story([tmp_path / "links"]).methods) == 1  # a link that is given by its folder


def test_csv_of_another_state_does_not_stay(runs, tmp_path):
    command = ["report", str(runs / "cbst"), "--out", str(tmp_path / "r.html"), "--csv", str(tmp_path)]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert (tmp_path / "iou.csv").is_file()
    command[1] = str(runs / "label-free")
    assert CliRunner().invoke(main, command).exit_code == 0
    assert not (tmp_path / "iou.csv").is_file()
    with open(tmp_path / "label_free.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3 * 4
    assert not (tmp_path / "reliability.csv").is_file()


def test_before_the_first_evaluation_it_says_so(tmp_path):
    truths = write_data(tmp_path / "data", images=2)
    run = write_run(tmp_path / "run", tmp_path / "data", truths, done=0)
    run.stage(0).evaluation.unlink()
    page = build_page([tmp_path / "run"])
    assert page.missing == []
    assert "no network has been evaluated yet" in page.html


def test_numbers_have_no_sign_where_they_are_zero():
    dash = "\N{EN DASH}"
    assert [signed(value) for value in (0.04, -0.04, 0.06, None, float("nan"))] == ["0.0", "0.0", "+0.1", dash, dash]
    assert [points(value) for value in (-0.04, -0.06)] == ["0.0", "\N{MINUS SIGN}0.1"]


def test_the_command_that_makes_a_run_again_can_be_given(tmp_path):
    truths = write_data(tmp_path / "data", images=2)
    write_run(tmp_path / "my run", tmp_path / "data", truths)
    assert f"cbst-mx run &#39;{tmp_path}/my run/experiment.yaml&#39; --out" in build_page([tmp_path / "my run"]).html
