"""``python -m tools.rehearsal``: builds what it needs, runs all cases, one line each; ends with 1 where one fails."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tools.rehearsal import table
from tools.rehearsal.build import BuildError, build
from tools.rehearsal.cases import CASES, rehearse, start


def _say(line: str) -> None:
    print(line, flush=True)


# Below the data folder; the larger ones are what the paper's crops are cut from.
_SCENES = {
    ".": "--source 6 --source-val 2 --target 4 --target-val 2 --size 64 96",
    "large": "--source 4 --source-val 1 --target 2 --target-val 1 --size 512 1024",
}


def _cases(only: str, folder: Path) -> int:
    """Run all cases whose names have `only` in them, and return how many failed."""
    data = folder / "data"
    for name, counts in _SCENES.items():
        command = ["-m", "tools.rehearsal.inside", "demo-data", str(data / name), *counts.split()]
        done = start(command, {}, data=data)
        if done.returncode:
            raise BuildError(f"no street scenes: {done.stdout.strip()}")
    failed = 0
    chosen = [case for case in CASES if only in case.name]
    for case in chosen:
        begun = time.monotonic()
        wrong = rehearse(case, data=data, folder=folder)
        failed += wrong is not None
        verdict, reason = ("ok", "") if wrong is None else ("FAILED", f": {wrong}")
        _say(f"{verdict:<7}{case.name} ({time.monotonic() - begun:.0f} s){reason}")
    _say(f"{len(chosen) - failed} of {len(chosen)} as they should be")
    return failed


def main() -> int:
    """Rehearse; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.rehearsal", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose names have this text in them")
    parser.add_argument("--list", action="store_true", help="name the cases, and run none")
    parser.add_argument("--memory", action="store_true", help="measure memory at the paper's sizes, no cases")
    parser.add_argument("--write", action="store_true", help="do so, and write it into docs/performance.md")
    chosen = parser.parse_args()
    if chosen.list:
        _say("\n".join(case.name for case in CASES))
        return 0
    try:
        build()
        if chosen.memory or chosen.write:
            found = table.measure(_say)
            if chosen.write:
                table.write(found)
            return 0
        with tempfile.TemporaryDirectory() as folder:
            return 1 if _cases(chosen.only, Path(folder)) else 0
    except (BuildError, RuntimeError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
