"""What a user can be sent writes nowhere else, shows nothing else, and is not waited for."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import shutil
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.table import Table

from cbst_mx.cli import base, main
from cbst_mx.data.image_files import read_label, read_rgb, write_rgb_png
from cbst_mx.data.image_headers import check_whole, read_header
from cbst_mx.data.lists import find_listed, read_list
from cbst_mx.errors import CBSTError, DamagedError, DataError, RunError
from cbst_mx.files import check_archive, digest_of, open_file, parse_json, read_json
from cbst_mx.labelling import MapFolder
from cbst_mx.labelling import run as run_job
from cbst_mx.messages import printable
from cbst_mx.rounds.branching import branch
from cbst_mx.run_dir import RunDir, lock_folder
from cbst_mx.run_dir.ledger import Ledger
from cbst_mx.run_dir.links import below, check_links
from tests.fake_run import write_ledger, write_run
from tests.maps import random_maps, write_maps

CLEAR = "\x1b[2J\x1b]0;title\x07"


def call(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "80"}).invoke(main, [str(one) for one in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "work" / "run", rounds=2, done=2)
    write_ledger(folder)
    return folder


@pytest.fixture
def outside(tmp_path):
    """Return a folder with a file that must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("kept\n")
    yield tmp_path / "outside"
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["kept"]
    assert (tmp_path / "outside" / "kept").read_text() == "kept\n"


def change_ledger(run, change):
    """Change every line of a ledger, with digests that fit."""
    lines = []
    for line in run.ledger.read_text().splitlines():
        record = json.loads(line)
        record.pop("line_sha256", None)
        change(record)
        lines.append(json.dumps({**record, "keys_sha256": digest_of(record["keys"])}))
    run.ledger.write_text("\n".join(lines) + "\n")


# ------------------------------------------------------------------------------------------------ names and links


@pytest.mark.parametrize("name", ["../../outside/x", "/etc/passwd", "a/../../b", "..", ".", "", "a//b", "a\\b", "\x1b"])
def test_names_in_a_ledger_stay_below_its_folder(run, outside, name):
    with pytest.raises(ValueError, match="is no path below the folder"):
        below(run.path, name)
    change_ledger(run, lambda record: record["outputs"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    for command in (("status",), ("verify",), ("branch", "--from", "round-2", "--out", run.path.parent / "new")):
        output = " ".join(call(command[0], run.path, *command[1:], code=1).split())
        assert "ledger.jsonl is damaged (line 1: " in output
    assert [path.name for path in run.path.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["log.txt", "lock", "manifest.json", "round-1", "round-3", ".ledger.jsonl.1.part"])
def test_nothing_is_written_through_a_link(run, outside, name):
    path = run.path / name
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    path.symlink_to(outside if name.startswith("round") else outside / ("kept" if name != "log.txt" else "new"))
    with pytest.raises(RunError, match=f"{name} is a link that leads out of .*run: put the file itself in its place"):
        RunDir.open(run.path, "name: x\n", identity={}, inputs={})
    with pytest.raises(RunError, match="is a link that leads out of"):
        branch(run.path, "round-2", run.path.parent / "new")


def test_a_lock_is_no_link(tmp_path, outside):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(outside / "kept")
    with pytest.raises(RunError, match="cannot lock the run folder"):
        lock_folder(tmp_path / "run")


def test_a_labelling_job_writes_through_no_link(tmp_path, outside):
    maps = MapFolder.open(write_maps(tmp_path / "maps", random_maps(0, (2, 3, 4, 5))))
    run_job(maps, tmp_path / "out", policy="class-balanced", portion=0.5)
    shutil.rmtree(tmp_path / "out" / "pseudo_labels")
    (tmp_path / "out" / "pseudo_labels").symlink_to(outside)
    with pytest.raises(RunError, match="pseudo_labels is a link that leads out of"):
        run_job(maps, tmp_path / "out", policy="class-balanced", portion=0.5)


def test_links_within_a_folder_and_to_it_are_followed(run, tmp_path):
    (run.path / "moved").mkdir()
    shutil.move(run.path / "round-1" / "pseudo_labels", run.path / "moved")
    (run.path / "round-1" / "pseudo_labels").symlink_to(Path("..", "moved", "pseudo_labels"))
    (tmp_path / "link").symlink_to(run.path)
    check_links(tmp_path / "link")
    assert "nothing altered" in call("verify", tmp_path / "link")


def test_verify_reads_nothing_behind_a_link(run, outside):
    path = run.path / "round-1" / "evaluation.json"
    path.unlink()
    path.symlink_to(outside / "kept")
    output = call("verify", run.path, code=1)
    assert "round-1/evaluation.json is a link that leads out of the run folder" in output


# ----------------------------------------------------------------------------------------------------- the terminal


def test_what_a_terminal_obeys_is_written_out():
    assert printable("a\tb\nKöln ✓") == "a\tb\nKöln ✓"
    assert printable(CLEAR) == "\\x1b[2J\\x1b]0;title\\x07"
    assert printable("\x9b1m \u202egnp \ud800") == "\\x9b1m \\u202egnp \\ud800"


def test_a_console_takes_no_text_for_instructions(capsys):
    table = Table("[red]a[/red]", title="[/nowhere]")
    table.add_row(f"[/bold]:smile: {CLEAR}")  # what is written out may be cut at the column's end
    for coloured in (True, False):
        terminal = base.Terminal(width=80, force_terminal=coloured)
        terminal.print(table)
        terminal.print(f"[link=x]{CLEAR}")
        shown = capsys.readouterr().out
        assert "\x1b[2J" not in shown
        assert "\x07" not in shown
    for text in ("[red]a[/red]", "[/nowhere]", ":smile:", "\\x1b[2J", "[/bold]", "[link=x]"):
        assert text in shown


def test_bars_show_names_as_they_are(capsys):
    with base.Bars(base.Terminal(width=120, force_terminal=True)) as bars:
        bars(f"[/x] {CLEAR}", 1, 2)
    assert "\x1b[2J" not in capsys.readouterr().out


def test_every_command_prints_through_them():
    for path in sorted(Path(base.__file__).parent.glob("*.py")):
        names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        if path.name != "base.py":
            assert not names & {"click.echo", "click.Choice", "Console"}, path.name


def test_log_files_hold_no_instructions(run):
    with run.logging():
        logging.getLogger("cbst_mx").info("name %s", CLEAR)
    assert "\\x1b[2J" in run.log.read_text()
    assert "\x1b" not in run.log.read_text()


@pytest.mark.parametrize("text", [CLEAR, "[/bold]", "\u202ex"])
def test_names_in_a_run_folder_reach_the_terminal_written_out(run, text):
    settings = run.experiment.read_text().replace("name: gta5-cbst", f"name: {json.dumps(text)}")
    run.experiment.write_text(settings)
    change_ledger(run, lambda record: record["keys"].update({text: 1}))
    other = shutil.copytree(run.path, run.path.parent / "other")
    evaluation = json.loads((other / "round-1" / "evaluation.json").read_text())
    evaluation["target"]["iou"][text] = 0.5
    (other / "round-1" / "evaluation.json").write_text(json.dumps(evaluation))
    for command in (("status", run.path), ("status", other), ("diff", run.path, other), ("results", run.path)):
        output = CliRunner().invoke(main, list(map(str, command))).output
        assert output
        assert not set(output) & {"\x1b", "\x07", "\u202e"}, command


# ----------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("text", ["NaN", "[1e999]", "[-Infinity]", "9" * 30, '{"a": 18446744073709551616}', "[" * 9999])
def test_numbers_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RunError, match=r"a\.json cannot be read: "):
        read_json(tmp_path / "a.json")
    assert parse_json('{"a": [1, -2.5e3, 18446744073709551615]}') == {"a": [1, -2500.0, 18446744073709551615]}


def test_records_are_bounded(tmp_path):
    (tmp_path / "a.json").write_text("[" + "1," * 100 + "1]")
    with pytest.raises(RunError, match="it is larger than 100 bytes"):
        read_json(tmp_path / "a.json", 100)


def test_a_ledger_of_many_lines_is_refused(run):
    run.ledger.write_text("{}\n" * 100_001)
    with pytest.raises(RunError, match="it has 100,001 lines, at most 100,000 are read"):
        Ledger(run)


@pytest.mark.parametrize("time", ["2020-13-45", "now", "2024-01-01T00:00:00", "[/x]", 3])
def test_times_in_a_ledger_are_times(run, time):
    change_ledger(run, lambda record: record.update(begun=time))
    assert "ledger.jsonl is damaged (line 1: " in " ".join(call("status", run.path, code=1).split())


def bomb(path, size):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * size)


def test_archives_hold_no_more_than_their_bytes_can(tmp_path):
    path = tmp_path / "a.zip"
    bomb(path, 1 << 20)
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size)
        with pytest.raises(ValueError, match="larger than the file"):  # members that share their data
            check_archive(archive, 100)
    content = path.read_bytes()
    place = content.rindex(b"PK\x01\x02")
    path.write_bytes(content[: place + 24] + struct.pack("<I", 1 << 31) + content[place + 28 :])
    with zipfile.ZipFile(path) as archive, pytest.raises(ValueError, match="which it cannot hold"):
        check_archive(archive, path.stat().st_size)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", b"\0" * (1 << 20))
    with zipfile.ZipFile(path) as archive, pytest.raises(ValueError, match="otherwise than by deflate"):
        check_archive(archive, path.stat().st_size)


# -------------------------------------------------------------------------------------------- what has no end


def fifo(path):
    os.mkfifo(path)


def local_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


@pytest.mark.parametrize("make", [fifo, local_socket, lambda path: path.symlink_to("/dev/zero")])
def test_no_input_is_waited_for(tmp_path, monkeypatch, make):
    monkeypatch.setenv("CBST_DATA", str(tmp_path))
    odd, out = tmp_path / "odd", tmp_path / "out"
    make(odd)
    (tmp_path / "p.params").symlink_to(odd)
    (tmp_path / "p.params.json").symlink_to(odd)
    (tmp_path / "images").mkdir()
    write_rgb_png(tmp_path / "images" / "00001.png", np.zeros((8, 8, 3), np.uint8))
    for name in ("a.npy", "a.npz", "a.pt"):
        (tmp_path / name[2:]).mkdir()
        (tmp_path / name[2:] / name).symlink_to(odd)
    run = write_run(tmp_path / "run", done=1)
    for path in (run.stage(1).evaluation, run.stage(1).confusion, run.ledger):
        path.unlink(missing_ok=True)
        path.symlink_to(odd)
    (tmp_path / "e.yaml").write_text("extends: odd\n")
    commands = [
        ("run", odd, "--out", out),
        ("plan", tmp_path / "e.yaml"),
        ("status", run.path),
        ("verify", run.path),
        ("diff", run.path, run.path),
        ("results", "--round", "1", run.path),
        ("branch", run.path, "--from", "round-1", "--out", out),
        ("doctor", "folder", tmp_path, "--description", odd),
        ("doctor", "gta5", tmp_path, "--list", odd),
        ("import-weights", odd, "--network", "fcn8s", "--num-classes", "19", "--out", tmp_path / "w.params"),
        ("predict", "--parameters", odd, tmp_path / "images", "--out", out),
        ("predict", "--parameters", tmp_path / "p.params", odd, "--out", out),
        ("label", "--probabilities", tmp_path / "npy", "--portion", "0.2", "--out", out),
        ("label", "--probabilities", tmp_path / "npz", "--portion", "0.2", "--out", out),
        ("label", "--probabilities", tmp_path / "pt", "--portion", "0.2", "--out", out),
        ("label", "merge", odd, "--out", tmp_path / "m.npz"),
        ("prior", "show", odd, "--out", tmp_path / "p.png"),
        ("prior", "import", odd, "--out", tmp_path / "p.npz"),
        ("class-statistics", odd),
        ("class-statistics", tmp_path / "p.params.json"),
        ("select-images", "--statistics", odd, "--keep", "1", "--out", tmp_path / "l.txt"),
        ("validate-server", odd),
    ]
    for command in commands:
        result = CliRunner().invoke(main, [str(one) for one in command])
        assert result.exit_code in (1, 2), (command, result.output, result.exception)
        assert not isinstance(result.exception, Exception), (command, result.exception)
    with pytest.raises(OSError, match="it is no ordinary file but a "):
        open_file(odd)
    assert not out.exists()


def test_lists_do_not_show_the_lines_of_other_files(tmp_path):
    secret = ["root:$6$abc$def:19000:0:99999:7:::", "hunter2", "AWS_KEY=AKIA0123456789", "b3BlbnNzaC1rZXktdjEAAAA" * 3]
    (tmp_path / "shadow").write_text("\n".join(secret))
    with pytest.raises(DataError) as error:
        find_listed(["00001", "00002"], read_list(tmp_path / "shadow"), "shadow")
    assert "names 4 of 4 images not there: line 1, line 2, line 3, line 4 (the data" in str(error.value)
    for text in ("gone.png", "17", "berlin_000000_000019", "road (2)", "img/00003"):
        with pytest.raises(DataError) as error:
            find_listed(["00001", "00002"], [text], "x.txt")
        assert f"not there: {text} " in str(error.value)


@pytest.mark.parametrize("policy", ["CBST", "Cbst", "GLOBAL"])
def test_names_of_choices_may_be_in_capitals(tmp_path, policy):
    maps = write_maps(tmp_path / "maps", random_maps(0, (2, 3, 4, 5)))
    words = ["label", "--probabilities", maps, "--portion", "0.5"]
    call(*words, "--policy", policy, "--fidelity", "PAPER", "--out", tmp_path / "a")
    call(*words, "--policy", policy.lower(), "--out", tmp_path / "b")
    assert (tmp_path / "a" / "kc.json").read_bytes() == (tmp_path / "b" / "kc.json").read_bytes()
    assert "'BEST' is not one of 'st', 'cbst'" in call(*words, "--policy", "BEST", "--out", tmp_path / "c", code=2)


# -------------------------------------------------------------------------------------------------------- truncated


def saved(array, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


PICTURE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
FORMS = {
    "png": ("PNG", {}), "jpeg": ("JPEG", {}), "progressive": ("JPEG", {"progressive": True}), "bmp": ("BMP", {}),
    "webp": ("WEBP", {}), "lossless webp": ("WEBP", {"lossless": True}), "gif": ("GIF", {}), "ppm": ("PPM", {}),
    "tiff": ("TIFF", {}), "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "deflated tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}), "jpeg 2000": ("JPEG2000", {}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_truncated_images_are_found_by_a_look(tmp_path, form):
    kind, options = FORMS[form]
    content = saved(PICTURE if kind != "GIF" else PICTURE[..., 0], kind, **options)
    path = tmp_path / "a"
    path.write_bytes(content)
    assert check_whole(path).whole
    for share in (0.5, 0.9, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CBSTError, match="truncated"):
            check_whole(path)
        with pytest.raises(DamagedError):
            read_rgb(path)


@pytest.mark.parametrize("behind", [b"\0" * 1000, b"a film" * 50_000])
def test_what_stands_behind_the_end_of_a_jpeg_is_no_harm(tmp_path, behind):
    content = saved(PICTURE, "JPEG")
    (tmp_path / "a.jpg").write_bytes(content + behind)
    assert check_whole(tmp_path / "a.jpg").format == "JPEG"
    (tmp_path / "a.jpg").write_bytes(content[:-100] + behind.replace(b"\xff\xd9", b""))
    assert not read_header(tmp_path / "a.jpg").whole


def test_the_end_of_a_thumbnail_is_not_that_of_its_picture(tmp_path):
    content, small = saved(PICTURE, "JPEG"), saved(PICTURE[:8, :8], "JPEG")
    part = b"Exif\0\0" + small
    content = content[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part + content[2:-200]
    (tmp_path / "a.jpg").write_bytes(content)
    assert not read_header(tmp_path / "a.jpg").whole


def test_a_png_that_promises_more_than_it_can_hold_is_no_whole(tmp_path):
    content = bytearray(saved(PICTURE, "PNG"))
    content[16:24] = struct.pack(">II", 13_000, 13_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DamagedError, match="truncated"):
        check_whole(tmp_path / "a.png")


def test_decoders_write_nothing_to_the_terminal_themselves(tmp_path, capfd):
    for array, read in ((PICTURE, read_rgb), (PICTURE[..., 0], read_label)):
        content = saved(array, "PNG")
        chunk = b"iCCP" + b"bad\0\0junk"
        odd = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path = tmp_path / "a.png"
        path.write_bytes(content[:33] + odd + content[33:])
        np.testing.assert_array_equal(read(path), array)
        for damaged in (content[: len(content) // 2], content[:500] + bytes([content[500] ^ 1]) + content[501:]):
            path.write_bytes(damaged)
            with pytest.raises(DamagedError):
                read(path)
    assert capfd.readouterr().err == ""
