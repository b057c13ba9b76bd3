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
    """A row of the table: what is done, by which work, how much at once, with which changes of the experiment."""

    title: str
    work: str
    batch: int = 1
    changes: tuple[str, ...] = ()


_SCALES = "evaluation.scales=[0.5,0.75,1]"
ROWS = (
    *(Row(f"training, crop 504, batch {batch}", "training", batch) for batch in (1, 2, 4, 16)),
    *(
        Row(f"batch 16, {part} at a time (`images_per_pass`)", "training", 16, (f"images_per_pass={part}",))
        for part in (1, 2, 4)
    ),
    Row("batch 2, gradient checkpointing", "training", 2, ("gradient_checkpointing=true",)),
    *(Row(f"batch {batch}, float16", "training", batch, ("amp=float16",)) for batch in (2, 16)),
    *(Row(f"batch {batch}, two GPUs, each", "training", batch, ("ctx=gpu:0,1",)) for batch in (2, 16)),
    Row("batch 16, two GPUs, float16, each", "training", 16, ("ctx=gpu:0,1", "amp=float16")),
    Row("adversarial warm-up, batch 2", "warm-up", 2),
    Row("pseudo-labels, counted", "labelling", 1, ("self_training.method=cbst",)),
    Row("pseudo-labels with the spatial prior", "labelling"),
    Row("evaluation at 1024 x 2048", "evaluation", 1),
    Row("evaluation, float16", "evaluation", 1, ("amp=float16",)),
    Row("evaluation at scales 0.5, 0.75, 1", "evaluation", 1, (_SCALES,)),
    Row("evaluation, 8 images at once", "evaluation", 8),
)


def measure(say: Callable[[str], None]) -> list[tuple[Row, list[str]]]:
    """Return every row with the memory of each network as text, in MiB."""
    found = []
    for row in ROWS:
        cells = []
        for name, experiment in _NETWORKS.items():
            changes = row.changes if any(c.startswith("ctx=") for c in row.changes) else ("ctx=gpu:0", *row.changes)
            arguments = ["tools.rehearsal.measure", row.work, experiment, str(row.batch), *changes]
            done = start(arguments, _CARD, data=Path("/nowhere"))
            lines = done.stdout.strip().splitlines() or [""]
            try:
                peaks = json.loads(lines[-1])["peaks"]
            except ValueError:
                raise RuntimeError(f"{row.title}, {name}: {' / '.join(lines[-4:])}") from None
            cells.append(f"{max(peaks):,}")
            say(f"{row.title}, {name}: {cells[-1]} MiB")
        found.append((row, cells))
    return found


def write(found: list[tuple[Row, list[str]]], page: Path = PAGE) -> None:
    """Write the table between its marks in the page."""
    lines = [f"| work | {' | '.join(_NETWORKS)} |", "| --- | ---: | ---: |"]
    lines += [f"| {row.title} | {' | '.join(cells)} |" for row, cells in found]
    text = page.read_text("utf-8")
    block = "\n".join([_BEGIN, "", *lines, "", _END])
    page.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: block, text, flags=re.DOTALL), "utf-8")
