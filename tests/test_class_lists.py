"""Lists of classes as tools write them."""

from __future__ import annotations

import pytest

from cbst_mx.data.survey.class_lists import read_class_list
from cbst_mx.errors import DataError

ROAD, SKY = (128, 64, 128), (70, 130, 180)


@pytest.mark.parametrize(
    ("name", "text", "names", "order"),
    [
        ("a.txt", "128 64 128 road\n70 130 180\tlight sky\n", {ROAD: "road", SKY: "light sky"}, []),
        ("a.csv", "name,r,g,b\nroad,128,64,128\nsky,70,130,180\n", {ROAD: "road", SKY: "sky"}, []),
        ("a.txt", "# label:color_rgb:parts:actions\nroad:128,64,128::\n", {ROAD: "road"}, []),
        ("a.csv", "id;name\r\n0;road\r\n10;sky\r\n", {0: "road", 10: "sky"}, []),
        ("a.txt", "road 7\nsky 10", {7: "road", 10: "sky"}, []),
        ("a.txt", "7 128 64 128 road", {7: "road", ROAD: "road"}, []),
        ("a.txt", "#804080 road\nsky #4682b4", {ROAD: "road", SKY: "sky"}, []),
        ("a.txt", "road\n\nlight sky\n", {}, ["road", "light sky"]),
        ("a.json", '["road", "sky"]', {}, ["road", "sky"]),
        ("a.json", '{"road": 7, "sky": [70, 130, 180], "3": "tree"}', {7: "road", SKY: "sky", 3: "tree"}, []),
        ("a.json", '{"classes": [{"title": "road", "color": "#804080", "id": 412}]}', {ROAD: "road", 412: "road"}, []),
        ("a.json", '{"labels": [{"name": "x", "readable": "Road", "color": [128, 64, 128]}]}', {ROAD: "Road"}, []),
    ],
)
def test_forms(tmp_path, name, text, names, order):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_class_list(tmp_path / name)
    assert (found.names, found.order) == (names, order)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b""), ("a.txt", b"1 2 3\n"), ("a.txt", b"\xff\xfe"), ("a.json", b"{"), ("a.json", b"[1]"),
        ("a.json", b"[" * 9000),
    ],
)  # fmt: skip
def test_what_is_no_list_is_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"list of classes .*{name}"):
        read_class_list(tmp_path / name)
