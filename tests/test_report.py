from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from rich.console import Console

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.evaluation.protocols import ImageMatrices
from cbst_mx.label_space import CITYSCAPES_19, SYNTHIA_16
from cbst_mx.report.figures import comparison_sheet, heat_map_sheet, overlay
from cbst_mx.report.tables import as_markdown, class_table, iou_table, mean_std_table

SPACE = CITYSCAPES_19


def result(base, absent=()):
    iou = {name: None if name in absent else base + index / 100 for index, name in enumerate(SPACE.names)}
    values = [value for value in iou.values() if value is not None]
    return {"iou": iou, "miou": sum(values) / len(values)}


def shown(table, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def line_of(text, name):
    return next(line.split() for line in text.splitlines() if line.strip().startswith(name))


# --- tables


def test_iou_table_has_methods_classes_and_the_mean_last():
    text = shown(iou_table({"source-only": result(0.1), "CBST": result(0.2, absent=["train"])}, SPACE))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert lines[0].split() == ["class", "(IoU", "in", "%)", "source-only", "CBST"]
    assert line_of(text, "road") == ["road", "10.0", "20.0"]
    assert line_of(text, "bicycle") == ["bicycle", "28.0", "38.0"]
    assert line_of(text, "train") == ["train", "26.0", "\N{EN DASH}"]
    assert lines[-1].split() == ["mIoU", "19.0", "28.6"]
    assert len(lines) == 1 + 1 + 19 + 1


def test_four_methods_with_spread_fit_eighty_columns():
    runs = {name: [result(0.1), result(0.5)] for name in ("source-only", "ST", "CBST", "CBST-SP")}
    text = shown(mean_std_table(runs, SPACE), width=80)
    assert "…" not in text
    assert text.count("±") == 4 * 20
    assert all(len(line) <= 80 for line in text.splitlines())


def test_mean_and_sample_standard_deviation():
    runs = {
        "one seed": [result(0.25)],
        "three": [result(0.10), result(0.20), result(0.60, absent=["road", "fence"])],
        "never": [result(0.2, absent=["road"])] * 2,
    }
    text = shown(mean_std_table(runs, SPACE))
    # sidewalk, index 1: 11, 21, 61 -> mean 31, deviations -20 -10 30 -> sqrt(1400 / 2) = 26.46
    assert line_of(text, "sidewalk")[1:5] == ["26.0", "31.0", "±", "26.5"]
    # fence: over the two seeds that have it, 14 and 24
    assert line_of(text, "fence")[1:5] == ["29.0", "19.0", "±", "7.1"]
    # road: 10 and 20; never for the last method
    assert line_of(text, "road") == ["road", "25.0", "15.0", "±", "7.1", "\N{EN DASH}"]


def test_one_remaining_value_has_no_spread():
    text = shown(mean_std_table({"ST": [result(0.1), result(0.2, absent=["road"])]}, SPACE))
    assert line_of(text, "road") == ["road", "10.0"]


def test_one_seed_is_the_plain_table():
    rows = {"ST": result(0.1), "CBST": result(0.2)}
    assert shown(mean_std_table({name: [row] for name, row in rows.items()}, SPACE)) == shown(iou_table(rows, SPACE))


def test_narrow_terminal_breaks_between_words_and_never_inside_a_number():
    runs = {f"method {i}": [result(0.1), result(0.5)] for i in range(4)}
    text = shown(mean_std_table(runs, SPACE), width=60)
    assert text.count("28.3") == 4 * 20
    assert text.count("30.0") == 4 * 1
    assert "…" not in text


def test_method_names_are_not_markup():
    text = shown(iou_table({"[red]CBST[/red]": result(0.2)}, SPACE))
    assert "[red]CBST[/red]" in text


def test_markdown():
    rows = {"ST": [result(0.1)], "CBST|x": [result(0.2, absent=["train"])]}
    lines = as_markdown(rows, SPACE).splitlines()
    assert lines[:3] == ["| class (IoU in %) | ST | CBST\\|x |", "| --- | ---: | ---: |", "| road | 10.0 | 20.0 |"]
    assert lines[-1] == "| mIoU | 19.0 | 28.6 |"
    assert len(lines) == 2 + 20
    assert "| train | 26.0 | \N{EN DASH} |" in lines


def test_markdown_of_several_seeds():
    lines = as_markdown({"ST": [result(0.1), result(0.2)], "CBST": [result(0.3)]}, SPACE).splitlines()
    assert lines[2] == "| road | 15.0 ± 7.1 | 30.0 |"


def test_other_label_spaces():
    iou = dict.fromkeys(SYNTHIA_16.names, 0.5)
    assert len(as_markdown({"ST": [{"iou": iou, "miou": 0.5}]}, SYNTHIA_16).splitlines()) == 2 + 17


def test_a_class_has_its_iou_and_its_accuracy():
    counts = np.zeros((2, 3, 3), np.int64)
    # road: 3 of 4 pixels, and 1 pixel of sidewalk is taken for it; sky is nowhere
    counts[0, 0], counts[1, 1] = (3, 1, 0), (1, 2, 0)
    text = shown(class_table(ImageMatrices(("road", "sidewalk", "sky"), ("a", "b"), counts)))
    assert line_of(text, "road") == ["road", "60.0", "75.0"]
    assert line_of(text, "sidewalk") == ["sidewalk", "50.0", "66.7"]
    assert line_of(text, "sky") == ["sky", "\N{EN DASH}", "\N{EN DASH}"]


def test_tables_refuse():
    with pytest.raises(DataError, match=r"^a table needs at least one method, got none$"):
        iou_table({}, SPACE)
    with pytest.raises(DataError, match=r"^method ST needs at least one result, got none$"):
        mean_std_table({"ST": []}, SPACE)
    with pytest.raises(DataError, match=r"^a result of method ST has no entry for class sidewalk$"):
        iou_table({"ST": {"iou": {"road": 0.5}, "miou": 0.5}}, SPACE)


# --- figures


def photo(height=24, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels(height=24, width=60, seed=0, void=False):
    ids = np.random.default_rng(seed).integers(0, 19, (height // 4, width // 4), dtype=np.uint8)
    ids = np.kron(ids, np.ones((4, 4), np.uint8))
    if void:
        ids[-4:] = 255
    return ids


def colours(picture):
    return {tuple(int(n) for n in colour) for colour in picture.reshape(-1, 3)}


def test_overlay_mixes_and_leaves_ignored_pixels():
    image, ids = photo(), labels(void=True)
    before = image.copy()
    out = overlay(image, ids, SPACE)
    np.testing.assert_array_equal(out[-4:], image[-4:])
    expected = 0.5 * image[:-4] + 0.5 * SPACE.colorize(ids)[:-4]
    # rounded to whole grey levels
    assert np.abs(out[:-4] - expected).max() <= 0.5
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


def test_overlay_refuses():
    image, ids = photo(), labels()
    with pytest.raises(DataError, match=r"^train_ids must have the image's size \(24, 60\), got \(20, 60\)$"):
        overlay(image, ids[:20], SPACE)
    with pytest.raises(DataError, match=r"^image must be uint8 of shape \(H, W, 3\), got uint8 of shape \(24, 60\)$"):
        overlay(ids, ids, SPACE)


def find(sheet, picture):
    """Return the corners of all places where `picture` stands in `sheet`, pixel for pixel."""
    height, width = picture.shape[:2]
    found = []
    for y, x in zip(*np.nonzero((sheet == picture[0, 0]).all(axis=2))):
        if np.array_equal(sheet[y : y + height, x : x + width], picture):
            found.append((int(y), int(x)))
    return found


def test_sheet_holds_every_picture_in_its_place():
    rows = [
        [photo(width=320, seed=r), *(SPACE.colorize(labels(width=320, seed=2 * r + i)) for i in range(2))]
        for r in range(2)
    ]
    sheet = comparison_sheet(rows, ["image", "truth", "CBST"], legend=SPACE)  # 320 pixels: shown as they are
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    assert sheet.flags.writeable
    places = [[find(sheet, cell) for cell in row] for row in rows]
    assert all(len(place) == 1 for row in places for place in row)
    tops = [[place[0][0] for place in row] for row in places]
    lefts = [[place[0][1] for place in row] for row in places]
    assert tops[0] == [tops[0][0]] * 3
    assert tops[1][0] >= tops[0][0] + 24
    assert lefts[0] == lefts[1]
    assert lefts[0][1] >= lefts[0][0] + 320
    assert lefts[0][2] >= lefts[0][1] + 320


def test_labels_are_enlarged_without_new_colours_and_photographs_smoothly():
    ids = labels(width=64)
    truth = SPACE.colorize(ids)
    sheet = comparison_sheet([[photo(width=64), truth]], ["image", "truth"], legend=SPACE)  # 5 times 64 pixels
    assert len(find(sheet, SPACE.colorize(np.kron(ids, np.ones((5, 5), np.uint8))))) == 1
    blocky = np.kron(photo(width=64), np.ones((5, 5, 1), np.uint8))
    assert find(sheet, blocky) == []
    # Odd factors do not bring new colours either: nothing in the sheet but palette, black, and the drawing's greys.
    alone = comparison_sheet([[SPACE.colorize(labels(width=460))]], ["truth"], legend=SPACE)
    unknown = colours(alone) - set(SPACE.palette)
    assert all(max(colour) - min(colour) <= 4 for colour in unknown)


def test_default_scale_makes_columns_of_about_320_pixels():
    for width, column in ((60, 300), (160, 320), (320, 320), (640, 320), (2048, 320)):
        picture = SPACE.colorize(np.zeros((width // 2, width), np.uint8))
        sheet = comparison_sheet([[picture]], ["truth"])
        road = (sheet == SPACE.palette[0]).all(axis=2)
        assert road.any(axis=0).sum() == column
        assert road.any(axis=1).sum() == column // 2


def test_pictures_of_different_sizes_share_the_column_width():
    small, large = SPACE.colorize(np.zeros((20, 40), np.uint8)), SPACE.colorize(np.ones((20, 80), np.uint8))
    sheet = comparison_sheet([[small], [large]], ["truth"])
    for colour, height in ((SPACE.palette[0], 160), (SPACE.palette[1], 80)):
        area = (sheet == colour).all(axis=2)
        assert area.any(axis=0).sum() == 320
        assert area.any(axis=1).sum() == height


def test_legend_shows_every_class_and_names_black_only_when_seen():
    cell = np.zeros((20, 400, 3), np.uint8) + np.uint8(128)
    plain = comparison_sheet([[cell]], ["image"])
    with_legend = comparison_sheet([[cell]], ["image"], legend=SPACE)
    assert with_legend.shape[0] > plain.shape[0]
    assert with_legend.shape[1] == plain.shape[1]
    assert set(SPACE.palette) <= colours(with_legend)
    assert not set(SPACE.palette) & colours(plain)

    def black(void):
        sheet = comparison_sheet([[SPACE.colorize(labels(width=80, void=void))]], ["truth"], legend=SPACE)
        return ((sheet == 0).all(axis=2)).sum()

    # four rows of 80 pixels, 4 times as large, and a swatch of its own
    assert black(False) == 0
    assert black(True) > 16 * 320


def test_titles_are_drawn_and_long_ones_stay_in_their_column():
    cell = np.full((20, 100, 3), 128, np.uint8)
    none = comparison_sheet([[cell, cell]], ["", ""])
    some = comparison_sheet([[cell, cell]], ["image", "CBST"])
    long = comparison_sheet([[cell, cell]], ["image", "a very long name " * 20])
    assert none.shape == some.shape == long.shape
    left = slice(0, none.shape[1] // 2 - 4)
    assert (some != none).any()
    assert (long != some).any()
    assert (long[:, -20:] == 255).all()
    # the first column's title is there in both
    assert (long[:, left] != none[:, left]).any()
    assert (some[:, left] != none[:, left]).any()


def test_empty_cells():
    cell = photo(width=320)
    sheet = comparison_sheet([[cell, None], [None, None]], ["image", "truth"])
    assert len(find(sheet, cell)) == 1
    assert sheet.shape == comparison_sheet([[cell, cell], [None, None]], ["image", "truth"]).shape


def test_inputs_are_left_alone():
    cell = photo()
    before = cell.copy()
    comparison_sheet([[cell]], ["image"], legend=SPACE)[:] = 0
    np.testing.assert_array_equal(cell, before)


def test_sheets_refuse():
    cell = photo()
    with pytest.raises(DataError, match=r"^rows must hold at least one picture, got none$"):
        comparison_sheet([], [])
    with pytest.raises(ConfigError, match=r"^row 1 must have 2 cells, one per title, got 1$"):
        comparison_sheet([[cell, cell], [cell]], ["a", "b"])
    with pytest.raises(DataError, match=r"^every cell of row 0 must be uint8 of shape \(H, W, 3\), got uint8 of shape"):
        comparison_sheet([[labels()]], ["a"])


def heat(share):
    """Return the colour of a value in [0, 1]: black, red, yellow and white in this order."""
    colour = cv2.applyColorMap(np.full((1, 1), round(255 * share), np.uint8), cv2.COLORMAP_INFERNO)[0, 0, ::-1]
    return tuple(int(n) for n in colour)


def test_heat_maps_stand_in_reading_order_on_their_own_scales():
    maps = np.zeros((5, 10, 20), np.float32)
    maps[0, :, :10], maps[1, :, 10:], maps[3, :5], maps[4] = 1, 1e-7, 300, 0.5  # halves, and one full map
    sheet = heat_map_sheet(maps, ["left", "right", "none", "top", "full"])
    assert sheet.dtype == np.uint8
    assert sheet.flags.writeable
    # three columns of 320 x 160 pixels, 16 between them, 26 for each title
    cells = [sheet[46 + 202 * (i // 3) :, 20 + 336 * (i % 3) :][:160, :320] for i in range(5)]
    dark, light = heat(0), heat(1)
    for cell, high, low in (
        (cells[0], (80, 20), (80, 300)),
        (cells[1], (80, 300), (80, 20)),
        (cells[3], (20, 160), (140, 160)),
    ):
        assert tuple(cell[high]) == light
        assert tuple(cell[low]) == dark
    assert colours(cells[4]) == {light}
    # a class that never occurs is neither low nor high
    assert len(colours(cells[2])) == 1
    assert not colours(cells[2]) & {dark, light}
    # and what the colours mean is drawn once, all of them, below
    legend = sheet[46 + 202 * 2 - 16 :]
    assert {heat(n / 255) for n in range(256)} <= colours(legend)


def test_heat_maps_interpolate_values_and_not_colours():
    maps = np.random.default_rng(0).random((1, 7, 9))
    ramp = {heat(n / 255) for n in range(256)}
    cell = heat_map_sheet(maps, ["a"])[46:, 20:340][: round(320 * 7 / 9)]
    assert colours(cell) <= ramp
    large = heat_map_sheet(np.random.default_rng(0).random((1, 350, 450)), ["a"])[46:, 20:340][: round(320 * 7 / 9)]
    assert colours(large) <= ramp


def test_heat_map_titles_and_caption_are_drawn():
    maps = np.ones((2, 8, 16))
    plain, titled = heat_map_sheet(maps, ["", ""]), heat_map_sheet(maps, ["road", "sky"])
    assert plain.shape == titled.shape
    assert (plain[20:46] != titled[20:46]).any()
    assert (plain[46:] == titled[46:]).all()
    long = heat_map_sheet(maps, ["a very long class name " * 5, ""])
    assert (long[:, 340:] == plain[:, 340:]).all()  # stays in its column, clear of the largest value
    other_scale = heat_map_sheet(2 * maps, ["", ""])
    assert (other_scale[20:46] != plain[20:46]).any()
    assert (other_scale[46:] == plain[46:]).all()
    captioned = heat_map_sheet(maps, ["", ""], "70 pixels " * 50)
    assert captioned.shape[0] > plain.shape[0]
    assert captioned.shape[1] == plain.shape[1]
    assert (captioned[:, -20:] == 255).all()


def test_one_heat_map_leaves_room_for_its_legend():
    sheet = heat_map_sheet(np.ones((1, 8, 16)), ["road"])
    assert sheet.shape[1] == 360
    assert (sheet[:, -20:] == 255).all()
    assert {heat(0), heat(1)} <= colours(sheet[46 + 160 :])


def test_heat_maps_refuse():
    with pytest.raises(ConfigError, match=r"^titles must have one entry for each of the 2 maps, got 1$"):
        heat_map_sheet(np.ones((2, 4, 4)), ["a"])
    for maps in (np.ones((4, 4)), np.ones((0, 4, 4)), -np.ones((1, 4, 4)), np.full((1, 4, 4), np.nan)):
        with pytest.raises(DataError, match=r"^maps must be finite values of at least 0 of shape \(C, H, W\), got"):
            heat_map_sheet(maps, ["a"])
