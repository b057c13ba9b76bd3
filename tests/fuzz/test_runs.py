"""Folders of runs and jobs, checkpoints and archives as others may send them: every command ends in our words.

Nothing outside the folder is written or shown, and nothing that a terminal obeys is printed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import unicodedata
import zipfile
from pathlib import Path
from typing import Any, Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, seed, settings
from PIL import Image

from cbst_mx.cli import main
from cbst_mx.evaluation import server_export
from cbst_mx.files import digest_of
from cbst_mx.labelling import MapFolder, results
from cbst_mx.labelling import run as run_job
from cbst_mx.networks.parameters import load_arrays
from cbst_mx.training import checkpoints
from cbst_mx.training.checkpoints import Checkpoints
from symbols.backend import mx
from tests.fake_run import write_ledger, write_run
from tests.fuzz.harness import COUNT, LONG, SEED, Seen, fuzz, limited, mutated
from tests.maps import random_maps, write_maps

EXAMPLES = COUNT if LONG else COUNT // 3  # each of them is read by eleven commands
SECRET = "correct horse battery staple"
ODD_TEXTS = [
    "", "\x1b[2J\x1b]0;title\x07", "\x9b31m", "\u202egnp.exe", "a\nb", "\0", "\ud800", "[/bold]", "[red]", "[x",
    ":smile:", "x" * 5000,
    "../../outside/x", "/etc/passwd", "..", ".", "a/../../b", "~root", "source/training", "round-1/evaluation",
    "2020-13-45", "2024-01-01T00:00:00", "2024-01-01T00:00:00+00:00", "%s%n{0}", "road",
]  # fmt: skip
ODD_NUMBERS = ["1" * 5000, "1e999", "-1e999", "NaN", "Infinity", "18446744073709551616", "-1", "0", "1e308", "0.1"]
ODD_TREES = ["[" * 3000 + "]" * 3000, "[]", "{}", "null", "true", '{"a": {}}', "[1, [2]]", '{"": null}', "[[[]]]"]
WORDS = [text.encode("utf-8", "surrogatepass") for text in ODD_TEXTS + ODD_NUMBERS]
values = st.sampled_from([*map(json.dumps, ODD_TEXTS), *ODD_NUMBERS, *ODD_TREES])


def check_output(text: str) -> None:
    """Refuse output with what a terminal obeys, or of a file outside the folder."""
    obeyed = {sign for sign in set(text) - {"\n", "\t"} if unicodedata.category(sign) in ("Cc", "Cf", "Cs")}
    assert not obeyed, obeyed
    assert SECRET not in text
    assert max(map(len, text.splitlines()), default=0) < 20_000


def call(*arguments: object, seen: Seen | None = None) -> str:
    """Run a command; it may refuse in a sentence, which `seen` counts, and nothing else may go wrong."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(main, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2, 3), result.output
    check_output(result.output)
    if seen is not None:
        seen.refused += result.exit_code != 0
    return result.output


# --------------------------------------------------------------------------------------------------- run folders

PLACE = "\x00place\x00"  # where raw JSON text goes


def replaced(content: Any, path: list[int], way: int, key: str) -> Any:
    """Return JSON values in which what lies at a place is marked, gone, or has a sister."""
    if not path or not isinstance(content, (dict, list)) or not content:
        return PLACE
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    chosen = keys[path[0] % len(keys)]
    changed: Any = dict(content) if isinstance(content, dict) else list(content)
    if len(path) == 1 and way == 1:
        del changed[chosen]
    elif len(path) == 1 and way == 2 and isinstance(changed, dict):
        changed[key] = changed.pop(chosen)
    elif len(path) == 1 and way == 3 and isinstance(changed, list):
        changed.append(changed[chosen])
    else:
        changed[chosen] = replaced(content[chosen], path[1:], way, key)
    return changed


def rewrite(path: Path, draw: Callable[..., Any]) -> None:
    """Change one value of a JSON file, or of one line of a ledger, whose digest then fits."""
    lines = (path.read_text().splitlines() or [""]) if path.suffix == ".jsonl" else [path.read_text()]
    number = draw(st.integers(0, len(lines) - 1))
    place, way = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5)), draw(st.integers(0, 3))
    content = replaced(json.loads(lines[number]), place, way, draw(st.sampled_from(ODD_TEXTS)))
    text = json.dumps(content).replace(json.dumps(PLACE), draw(values))
    if path.suffix == ".jsonl":
        try:
            record = json.loads(text)
            text = json.dumps({**record, "keys_sha256": digest_of(record["keys"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
    lines[number] = text
    path.write_text("\n".join(lines) + "\n")


def exchange(path: Path, draw: Callable[..., Any], outside: Path) -> None:
    """Put something else in the place of a file."""
    kind = draw(
        st.sampled_from(["gone", "empty", "folder", "pipe", "socket", "link", "loop", "nothing", "folder link"])
    )
    path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    elif kind == "link":
        path.symlink_to(outside / "secret.txt")
    elif kind == "folder link":
        path.symlink_to(outside)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "nothing":
        path.symlink_to(outside / "new.txt")


def change_text(path: Path, draw: Callable[..., Any]) -> None:
    """Change the name of a run's experiment, or another text or number in it."""
    lines = path.read_text(errors="replace").splitlines() or [""]
    number = draw(st.integers(0, len(lines) - 1))
    key = lines[number].partition(":")[0]
    lines[number] = f"{key}: {draw(values)}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("original") / "run", rounds=2, done=2)
    write_ledger(folder)
    for command in ("status", "verify", "results"):  # which also imports what they need
        assert "Error" not in call(command, *(["--no-images"] if command == "verify" else []), folder.path)
    return folder.path


def test_run_folders(original, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET + "\n")
    before, run = snapshot(outside), tmp_path / "work" / "run"

    @seed(SEED)
    @settings(
        max_examples=max(10, COUNT // (1 if LONG else 3)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def look(data):
        shutil.rmtree(run.parent, ignore_errors=True)
        shutil.copytree(original, run)
        for _ in range(data.draw(st.integers(1, 3))):
            files = sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
            path = data.draw(st.sampled_from(files))
            way = data.draw(st.integers(0, 5))
            if way == 0:
                exchange(path, data.draw, outside)
            elif way == 1 or path.suffix not in (".json", ".jsonl", ".yaml"):
                rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
                path.write_bytes(
                    mutated(path.read_bytes(), rng, [text.encode("utf-8", "surrogatepass") for text in ODD_TEXTS])
                )
            elif path.suffix == ".yaml":
                change_text(path, data.draw)
            else:
                try:
                    rewrite(path, data.draw)
                except (ValueError, RecursionError):  # no JSON since an earlier change
                    path.write_text(data.draw(values))
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        branched = run.parent / "new" / "branch"
        for arguments in (
            ("status", run),
            ("status", "--json", run),
            ("verify", run),
            ("verify", "--images", run),
            ("diff", run, original),
            ("diff", original, run),
            ("results", run),
            ("results", "--snapshots", run),
            ("compare", original, run),
            ("branch", run, "--from", "round-2", "--out", branched),
            ("class-statistics", run / "round-1" / "thresholds.json"),
        ):
            with limited("run folders", size) as seen:
                call(*arguments, seen=seen)
            assert snapshot(outside) == before, arguments
        assert {path.name for path in run.parent.iterdir()} <= {"run", "new"}
        assert not [path for path in branched.rglob("*") if path.is_symlink()]

    look()


# --------------------------------------------------------------------------------------------- other folders, files


def test_records_of_labelling_jobs(tmp_path):
    folder = MapFolder.open(write_maps(tmp_path / "maps", random_maps(0, (2, 3, 4, 5))))
    out = tmp_path / "out"
    run_job(folder, out, policy="class-balanced", portion=0.5, portions=[0.2, 0.5])
    for name in ("kc.json", "sweep.csv", "job.json"):
        good = (out / name).read_bytes()

        def read(content: bytes, name: str = name) -> None:
            (out / name).write_bytes(content)
            results.finished(folder, out, 0.5, [0.2, 0.5])
            if name == "job.json":
                run_job(folder, out, policy="class-balanced", portion=0.5, portions=[0.2, 0.5])

        words = [
            *(text.encode("utf-8", "surrogatepass") for text in ODD_TEXTS),
            *(text.encode() for text in ODD_NUMBERS),
        ]
        fuzz("records of labelling jobs", read, [good], words, count=-(-COUNT // 3))
        (out / name).write_bytes(good)


def test_checkpoints(tmp_path):
    path, identity = tmp_path / "c.params", {"stage": 1, "settings": "a"}
    arrays = {"parameter:a": mx.nd.ones((3, 4)), "momentum:0:0": mx.nd.ones((3, 4))}
    Checkpoints(path, identity).save(arrays, 5, {"losses": [0.5]})
    whole = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        Checkpoints(path, identity).load()

    fuzz("checkpoints", read, [whole])
    path.write_bytes(whole)
    stored = load_arrays(path)
    about = json.loads(stored.pop(checkpoints._ABOUT).asnumpy().tobytes())
    good = json.dumps({key: value for key, value in about.items() if key != "sha256"}).encode()

    def read_about(content: bytes) -> None:
        """Read a checkpoint whose text is changed and whose digest is that of the changed text."""
        try:
            text = json.loads(content)
            text["sha256"] = checkpoints._digest(stored, {key: text[key] for key in text if key != "sha256"})
            content = json.dumps(text).encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass
        mx.nd.save(
            str(path),
            {**stored, checkpoints._ABOUT: mx.nd.array(np.frombuffer(content or b" ", np.uint8), dtype="uint8")},
        )
        state = Checkpoints(path, identity).load()
        assert state is None or (state.iterations >= 0 and isinstance(state.record, dict))

    words = [
        *(json.dumps(text).encode() for text in ODD_TEXTS),
        *(text.encode() for text in ODD_NUMBERS + ODD_TREES[1:]),
    ]
    fuzz("checkpoints", read_about, [good], words)


def test_archives_for_the_server(tmp_path):
    path = tmp_path / "a.zip"
    label = np.full((1024, 2048), 7, np.uint8)
    Image.fromarray(label).save(tmp_path / "l.png")
    content = (tmp_path / "l.png").read_bytes()
    good = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("berlin_000000_000019.png", content)
            archive.writestr("\x1b[2J_000000_000020.png", content[:100])
        good.append(path.read_bytes())

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for problem in server_export.problems(path):
            check_output(problem)

    words = [
        b"PK\x03\x04",
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"PK\x06\x06",
        b"\xff\xff\xff\xff",
        b"\x0c\x00",
        b"../../x",
        b"\x1b[2J",
    ]
    fuzz("archives for the server", read, good, words)


def test_ledgers_of_a_million_lines(original, tmp_path):
    run = shutil.copytree(original, tmp_path / "run")
    ledger = run / "ledger.jsonl"
    line = ledger.read_text().splitlines()[0] + "\n"
    ledger.write_text(line * (1_000_000 if LONG else 100_001))
    with limited("run folders", ledger.stat().st_size):
        assert "is damaged (it " in " ".join(call("verify", run).split())
