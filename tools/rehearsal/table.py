"""The table of memory at the paper's sizes in docs/performance.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Callable, NamedTuple

from tools.rehearsal.build import ROOT
from tools.rehearsal.cases import start

__all__ = ["PAGE", "ROWS", "measure", "write"]

PAGE = ROOT / "docs" / "performance.md"
_NETWORKS = {"ResNet-38": "gta5-cbst-sp", "FCN8s": "gta5-fcn8s-cbst-sp"}
_BEGIN, _END = "<!-- rehearsal -->", "<!-- end of rehearsal -->"
_CARD = {"memory": 49152, "gpus": 2}  # of 48 GB, so that everything fits


class Row(NamedTuple):
    """A row of the table: what is done, how much at once, and changes of the experiment, of a whole process as well."""

    title: str
    work: str
    batch: int = 1
    changes: tuple[str, ...] = ()
    process: tuple[str, ...] = ("ctx=gpu:0",)


_HALF = ("ctx=gpu:0", "amp=float16")
_TWO = ("ctx=gpu:0,1",)
_SCALES = "evaluation.scales=[0.5,0.75,1]"
ROWS = (
    *(Row(f"training, crop 504, batch {batch}", "training", batch) for batch in (1, 2, 4, 16)),
    *(
        Row(f"batch 16, {part} at a time (`images_per_pass`)", "training", 16, (f"images_per_pass={part}",))
        for part in (1, 2, 4)
    ),
    Row("batch 2, gradient checkpointing", "training", 2, ("gradient_checkpointing=true",)),
    *(Row(f"batch {batch}, float16", "training", batch, (), _HALF) for batch in (2, 16)),
    *(Row(f"batch {batch}, two GPUs, each", "training", batch, (), _TWO) for batch in (2, 16)),
    Row("batch 16, two GPUs, float16, each", "training", 16, (), (*_TWO, "amp=float16")),
    Row("adversarial warm-up, batch 2", "warm-up", 2),
    Row("pseudo-labels, counted", "labelling", 1, ("self_training.method=cbst",)),
    Row("pseudo-labels with the spatial prior", "labelling"),
    Row("evaluation at 1024 x 2048", "evaluation", 1),
    Row("evaluation, float16", "evaluation", 1, (), _HALF),
    Row("evaluation at scales 0.5, 0.75, 1", "evaluation", 1, (_SCALES,)),
    Row("evaluation, 8 images at once", "evaluation", 8),
)


def measure(say: Callable[[str], None]) -> list[tuple[Row, list[str]]]:
    """Return every row with the memory of each network as text, in MiB."""
    kinds = list(dict.fromkeys(row.process for row in ROWS))
    peaks: dict[tuple[str, Row], int] = {}
    for name, experiment in _NETWORKS.items():
        for process in kinds:  # precision and devices are those of a process
            rows = [row for row in ROWS if row.process == process]
            asked = {"changes": process, "rows": [[row.work, row.batch, row.changes] for row in rows]}
            arguments = ["-m", "tools.rehearsal.measure", experiment, json.dumps(asked)]
            done = start(arguments, _CARD, data=Path("/nowhere"))
            lines = done.stdout.strip().splitlines() or [""]
            if done.returncode:
                raise RuntimeError(f"{name} with {', '.join(process)}: {' / '.join(lines[-4:])}")
            for row, peak in zip(rows, json.loads(lines[-1])):
                peaks[name, row] = peak
                say(f"{name}, {row.title}: {peak:,} MiB")
    return [(row, [f"{peaks[name, row]:,}" for name in _NETWORKS]) for row in ROWS]


def write(found: list[tuple[Row, list[str]]], page: Path = PAGE) -> None:
    """Write the table between its marks in the page."""
    lines = [f"| work | {' | '.join(_NETWORKS)} |", "| --- | ---: | ---: |"]
    lines += [f"| {row.title} | {' | '.join(cells)} |" for row, cells in found]
    text = page.read_text("utf-8")
    block = "\n".join([_BEGIN, "", *lines, "", _END])
    page.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: block, text, flags=re.DOTALL), "utf-8")
