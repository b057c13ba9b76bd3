"""Experiments, descriptions and lists: whatever the text, it is read or refused in our words."""

from __future__ import annotations

from pathlib import Path

from cbst_mx.config import load_experiment
from cbst_mx.data import open_images, open_labelled
from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.description import label_space, read_description
from cbst_mx.data.lists import EXACT, select_listed
from cbst_mx.strict_yaml import parse_value
from tests.fuzz.harness import fuzz

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
YAML_WORDS = [
    b"!!int ", b"!!bool ", b"!!float ", b"!!timestamp ", b"!!binary ", b"!!python/object:os.system ", b"!!set ", b"&a ",
    b"*a", b"<<: *a", b"<<: ", b"? ", b": ", b"- ", b"{", b"}", b"[", b"]", b"|\n", b">\n", b"--- ", b"%YAML 1.1\n",
    b"~", b"2020-13-45", b"0x_", b"0b_", b"1e999", b".nan", b".inf", b"1_0", b"190:20:30", b'"\\0"', b'"\\ud800"',
    b"'", b'"', b"9" * 5000, b"-1", b"0", b"1e-300", b"null", b"true", b"\t", b"\r", b"\xef\xbb\xbf", b"\n",
    b"extends: ", b"smoke: true\n",
]  # fmt: skip
LIST_WORDS = [
    b"\xef\xbb\xbf", b"\xff\xfe", b"#", b" # ", b"\t", b"\r\n", b"\n", b".png", b"_leftImg8bit.png", b"/", b"\\", b"..",
    b"9" * 5000, b"\xc2\x85", b"\xe2\x80\xa8", b"e\xcc\x81", b"\xc3\xa9", b"\xb2", b"[", b"(2)", b" ", b"\0",
    EXACT.encode() + b"\n",
]  # fmt: skip
OWN = b"""\
label_space:
  name: own
  names: [a, b]
  palette: [[0, 0, 0], [9, 9, 9]]
  ids: {0: a, 1: 1, 255: ignore}
splits:
  all:
    images: ["img/*.png"]
    labels: {replace: [["^img/", "gt/"], ["[.]png$", "_gt.png"]]}
    unlabelled: skip
"""
KNOWN = b"""\
label_space: cityscapes-19
ids: colours
ignore_colours: [[1, 2, 3]]
splits: {all: {images: ["**/*.png", "img/*"], labels: "gt/{stem}_gt.png", unlabelled: skip}}
"""


def test_experiments(tmp_path):
    path = tmp_path / "e.yaml"
    (tmp_path / "demo.yaml").write_bytes((EXPERIMENTS / "demo.yaml").read_bytes())  # what the other extends

    def read(content: bytes) -> None:
        path.write_bytes(content)
        experiment = load_experiment(path)
        experiment.to_yaml()
        assert experiment.identity

    fuzz(
        "experiments",
        read,
        [(EXPERIMENTS / name).read_bytes() for name in ("demo.yaml", "demo-adversarial.yaml")],
        YAML_WORDS,
    )


def test_changes_of_experiments():
    def read(content: bytes) -> None:
        load_experiment(EXPERIMENTS / "demo.yaml", (content.decode("utf-8", "replace"),))

    good = [b"self_training.rounds=2", b"augmentation={crop: [64, 64], scale: [0.5, 2.0]}", b"evaluation.scales=[1.0]"]
    fuzz("changes of experiments", read, good, YAML_WORDS)
    fuzz(
        "changes of experiments",
        lambda content: parse_value(content.decode("latin-1")),
        [b"[1, {a: b}, 1e-4]"],
        YAML_WORDS,
    )


def test_descriptions(tmp_path):
    root = tmp_path / "data"
    for name in ("img/a.png", "img/b.png", "gt/a_gt.png", "gt/b_gt.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    path = tmp_path / "d.yaml"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        described = read_description(path)
        for split in described.splits:
            open_images("folder", root, split=split, description=described)
            open_labelled("folder", root, split=split, description=described, label_space=label_space(described))

    fuzz("descriptions", read, [OWN, KNOWN], YAML_WORDS)


def test_lists(tmp_path):
    names = ["00001", "00017", "road", "road (2)", "a #1", "Köln", "a.b", "x", "frankfurt_000000_000294"]
    images = ImageSet(names, [tmp_path / "img" / f"{name}.png" for name in names])
    path = tmp_path / "list.txt"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        select_listed(images, path, tmp_path)

    good = [
        b"# all\n00001.png\n17\nimg/x.png  lab/x.png\n",
        "road (2).png\r\nroad\r\na #1  # one\r\nKöln.png\r\n".encode(),
        b"\xef\xbb\xbfa.b\nfrankfurt/frankfurt_000000_000294_leftImg8bit.png\n",
    ]
    fuzz("lists", read, good, LIST_WORDS)
