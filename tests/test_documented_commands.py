"""The commands of README and of docs/: a shell reads them, the program takes them, and small data runs some of them.

A page's blocks of commands are given to bash, in which every program is a stub that notes how it was called: so loops,
variables and continued lines are what a user's shell makes of them.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cbst_mx.cli import main
from tests.maps import random_maps, write_maps

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed")
PROGRAMS = ("cbst-mx", "make", "python", "scontrol")
SLURM = {"SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "1"}
BEGIN = re.compile(r"(cbst-mx|make|python|export|for|srun|scontrol|[.]|[A-Z_]+=\S+) ?\S")


class Call(NamedTuple):
    """A program as it was called, with the data folder of that moment."""

    program: str
    data: str
    arguments: list[str]


def blocks(page):
    """Return the indented blocks of a page that begin with a command or have one in a line."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"(?:^ {4,}\S.*\n?)+", text, re.MULTILINE)
    lines = [[line.strip() for line in block.splitlines()] for block in found]
    return ["\n".join(block) for block in lines if any(BEGIN.match(line) for line in block)]


def calls(page, folder):
    """Return the calls of a page, as bash makes them in `folder`."""
    stubs, log = folder / "stubs", folder / "log"
    stubs.mkdir()
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    for name in PROGRAMS:
        note = 'printf "%s\\0" "${0##*/}" "$CBST_DATA" "$@" >>"$LOG"; printf "\\n" >>"$LOG"'
        (stubs / name).write_text(f"#!{BASH}\n{note}\n")
        (stubs / name).chmod(0o755)
    (stubs / "srun").write_text(f'#!{BASH}\n"$@"\n')
    (stubs / "srun").chmod(0o755)
    log.touch()
    script = "set -eu\n" + "\n".join(blocks(page))
    environment = {"PATH": str(stubs), "LOG": str(log), "CBST_DATA": "data", "W": "weights", **SLURM}
    done = subprocess.run(
        [BASH, "-c", script], cwd=str(folder), env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{page.name}: {done.stderr}\n{script}"
    return [Call(*call[:2], call[2:-1]) for call in (line.split("\0") for line in log.read_text().splitlines())]


def inline(page):
    """Return the commands in a page's text and tables, as arguments of cbst-mx."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(one) for one in re.findall(r"`cbst-mx ((?:[^`]|\n)+)`", text)]


def find(arguments):
    """Return the command that arguments name, and those that are left for it."""
    command, name = main, "cbst-mx"
    while isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
        name, *arguments = arguments
        command = command.commands[name]
    return command, name, arguments


def take(arguments):
    """Let the program read a command line, which raises a UsageError where it cannot."""
    command, name, rest = find(arguments)
    assert command is not main, f"no such command: {arguments}"
    with contextlib.suppress(click.exceptions.Exit):  # --help
        command.make_context(name, list(rest))


@needs_bash
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_program_takes_every_command(page, tmp_path):
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    targets |= {path.stem for path in (ROOT / "experiments").glob("*.yaml")}
    for program, _, arguments in calls(page, tmp_path):
        if program == "cbst-mx":
            take([argument for argument in arguments if argument != "..."])
        elif program == "make":
            named = [argument for argument in arguments if "=" not in argument and argument != "-n"]
            assert named, arguments
            assert set(named) <= targets, arguments
        elif program == "python" and arguments[0] != "-m":
            source = (ROOT / arguments[0]).read_text("utf-8")
            for option in (argument for argument in arguments if argument.startswith("--")):
                assert f'"{option}"' in source, arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_text_are_known_with_their_options(page):
    for arguments in inline(page):
        command, name, rest = find(arguments)
        if arguments[0] == "COMMAND":
            continue
        assert command is not main or rest[0].startswith("-"), f"{page.name}: no such command: {arguments}"
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        for option in (part.partition("=")[0] for part in rest if part.startswith("--")):
            assert option in known, f"{page.name}: {name} has no option {option}"


def test_scripts_in_the_text_are_there_with_their_options():
    found = [shlex.split(one) for page in PAGES for one in re.findall(r"`python ([^`]+)`", page.read_text("utf-8"))]
    assert len(found) > 3
    for script, *rest in found:
        source = (ROOT / script).read_text("utf-8")
        for option in (part for part in rest if part.startswith("--")):
            assert f'"{option}"' in source, (script, option)


def test_activation_is_said_once():
    saying = {page.name for page in PAGES if re.search(r"venv/bin/(activate|cbst-mx)", page.read_text("utf-8"))}
    # of an error that forgetting it gives
    assert saying == {"README.md", "quick-start.md", "troubleshooting.md"}
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert "source .venv" not in text
    assert text.count(".venv/bin/cbst-mx") == 1


def test_commands_that_are_wrong_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n    for n in 1 2; do\n      cbst-mx run a.yaml \\\n         --out runs/$n\n    done\n")
    found = calls(page, tmp_path)
    assert [call.arguments for call in found] == [["run", "a.yaml", "--out", f"runs/{n}"] for n in (1, 2)]
    for wrong in (["run", "a.yaml"], ["run", "a.yaml", "--out", "b", "--round", "1"], ["plan", "a", "--seconds", "x"]):
        with pytest.raises(click.UsageError):
            take(wrong)
    with pytest.raises(AssertionError, match="no such command"):
        take(["runn", "a.yaml"])


# ------------------------------------------------------------------------------------------------- on small data


#: Commands of the pages that are run which are only read by the program, and why.
ONLY_READ = {
    "runs/second": "200 iterations",
    "runs/photos-1": "1,000 iterations",
    "runs/photos-cbst": "what `init` chooses for a real run",
    "runs/gta5-cbst": "GTA5",
    "jobs.yaml": "a batch system",
    "--shard auto": "a task of a batch system",
    "counts/*.npz": "what its tasks count",
    "tls://10.0.0.1": "other machines",
}
SECONDS = "0.01"  # that `plan` measures


def run_page(name, folder, monkeypatch, skipped=ONLY_READ, places=()):
    """Run the commands of a page in `folder`, in their order; `places` takes the place of paths. Return the outputs."""
    (folder / "shell").mkdir()
    outputs = {}
    monkeypatch.chdir(folder)
    for program, data, arguments in calls(ROOT / "docs" / f"{name}.md", folder / "shell"):
        line = " ".join(arguments)
        if program != "cbst-mx" or any(text in line for text in skipped):
            continue
        for old, new in (*places, (str(folder / "shell"), str(folder))):
            arguments = [argument.replace(old, new) for argument in arguments]
            data = data.replace(old, new)
        if arguments[0] == "init":
            arguments.append("--yes")  # nobody is there to answer
        if arguments[0] == "plan":
            arguments += ["--seconds", SECONDS]  # the last one counts
        monkeypatch.setenv("CBST_DATA", data)
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
        outputs[line] = result.output
    return outputs


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The scenes of the quick start, made by its first command."""
    folder = tmp_path_factory.mktemp("scenes")
    first = blocks(ROOT / "docs" / "quick-start.md")
    (command,) = [line for block in first for line in block.splitlines() if line.startswith("cbst-mx demo-data")]
    arguments = shlex.split(command)[1:]
    arguments[1] = str(folder / "data")
    assert CliRunner().invoke(main, arguments).exit_code == 0
    return folder / "data"


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    return tmp_path


@needs_bash
def test_the_quick_start_runs(checkout, monkeypatch):
    outputs = run_page("quick-start", checkout, monkeypatch)
    assert len(outputs) == 10
    assert (checkout / "runs/first/round-2/evaluation.json").is_file()
    assert list((checkout / "runs/predicted").rglob("*.png"))
    assert "nothing altered" in outputs["verify runs/first"]
    text = (ROOT / "docs" / "quick-start.md").read_text("utf-8")
    for file in re.findall(r"^\| `(round-1/\S+)` \|", text, re.MULTILINE):
        assert list((checkout / "runs/first").glob(file)), file


@needs_bash
def test_scaling_runs(checkout, scenes, monkeypatch):
    pytest.importorskip("distributed")
    write_maps(checkout / "maps", random_maps(0, (4, 19, 8, 16)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the runs of a sweep, which are processes of their own
    outputs = run_page("scaling", checkout, monkeypatch, places=[("data", str(scenes))])
    assert len(outputs) == 11
    assert '"processes": 2' in (checkout / "runs/machines/source/training.json").read_text()
    assert len(list((checkout / "labels/pseudo_labels").glob("*.png"))) == 4
    assert (checkout / "runs/sweep/report.html").is_file()
    assert len((checkout / "confident.txt").read_text().split()) == 2


@needs_bash
@pytest.mark.parametrize("name", ["keys-experiment", "editors", "performance"])
def test_pages_of_single_commands_run(name, checkout, scenes, monkeypatch):
    outputs = run_page(name, checkout, monkeypatch, places=[("data", str(scenes))] if name == "performance" else ())
    assert outputs
    assert all(outputs.values())


@needs_bash
def test_labelling_runs(checkout, monkeypatch):
    write_maps(checkout / "maps", random_maps(0, (4, 19, 8, 16)))
    outputs = run_page("labels", checkout, monkeypatch)
    assert len(outputs) == 8
    assert len(list((checkout / "labels/pseudo_labels").glob("*.png"))) == 4


def write_photos(folder, count=3):
    """Write what the page on own data describes: images of three classes, and masks of the labelled ones."""
    rng = np.random.default_rng(0)
    for split in ("day", "dusk", "dusk-check"):
        (folder / split).mkdir(parents=True)
        (folder / f"{split}-labels").mkdir()
        for index in range(count):
            mask = np.repeat(np.uint8([2, 1, 0]), 40)[:, None].repeat(160, axis=1)
            colours = np.uint8([[128, 64, 128], [107, 142, 35], [70, 130, 180]])[mask]
            image = np.clip(colours + rng.normal(0, 20, colours.shape), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / split / f"{index:03}.jpg")
            Image.fromarray(mask).save(folder / f"{split}-labels" / f"{index:03}.png")


@needs_bash
def test_own_data_runs(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos")
    text = (ROOT / "docs" / "your-own-data.md").read_text("utf-8")
    for block in re.findall(r"^```yaml\n(# (photos\S*[.]yaml).*?)^```", text, re.MULTILINE | re.DOTALL):
        (tmp_path / block[1].rstrip(",")).write_text(block[0])
    places = [("/where/the/photos/are", str(tmp_path / "photos")), ("/where", str(tmp_path))]
    outputs = run_page("your-own-data", tmp_path, monkeypatch, places=places)
    assert any(line.startswith("doctor") for line in outputs)
    assert (tmp_path / "runs/photos/summary.json").is_file()


def test_what_is_only_read_is_there():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    for part in ONLY_READ:
        assert part in text
