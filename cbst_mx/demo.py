"""The demo: source-only, ST, CBST and CBST-SP on generated street scenes, from one source network per seed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

from cbst_mx.config import Experiment, load_experiment
from cbst_mx.data.image_files import write_rgb_png
from cbst_mx.data.street_scenes import Shift, write_demo_data
from cbst_mx.errors import RunError
from cbst_mx.files import read_json, write_json, write_text
from cbst_mx.label_space import LabelSpace
from cbst_mx.messages import Part, Progress, silent
from cbst_mx.networks.devices import parse_contexts
from cbst_mx.networks.parameters import load_network
from cbst_mx.report.figures import comparison_sheet
from cbst_mx.report.page import PlotlyMissingError, write_report
from cbst_mx.report.tables import as_markdown
from cbst_mx.rounds import Run
from cbst_mx.rounds.outline import outline
from cbst_mx.selftrain.network_maps import predictions

__all__ = ["METHODS", "DemoResult", "find_experiment", "run_demo"]

#: Run folder of each method to its name in tables.
METHODS = {"source": "source-only", "st": "ST", "cbst": "CBST", "cbst-sp": "CBST-SP"}

SIZE = (64, 160)  # pixels of a scene
COUNTS = {"source_count": 900, "source_val_count": 50, "target_count": 150, "target_val_count": 60}
_PICTURE_ROWS = 4


@dataclass(frozen=True)
class DemoResult:
    """Results of a demo.

    Attributes
    ----------
    rows : dict
        Seed to method to result on the target's validation set, as ``confusion.summary`` gives it: last round.
    source_rows : dict
        The same on held-out source images.
    label_space : LabelSpace
        Classes of the results.
    results, picture : Path
        ``results.json`` and ``comparison.png``.
    report : Path or None
        ``report.html``; None where Plotly is not installed.
    """

    rows: dict[int, dict[str, dict[str, Any]]]
    source_rows: dict[int, dict[str, dict[str, Any]]]
    label_space: LabelSpace
    results: Path
    picture: Path
    report: Path | None


def find_experiment() -> Path:
    """Return the demo's own experiment file: in an installed package, or among the experiments of a checkout."""
    installed = Path(__file__).with_name("demo.yaml")  # put there by setup.py
    return installed if installed.is_file() else Path(__file__).parents[1] / "experiments" / "demo.yaml"


def run_demo(
    experiment: Path,
    out: Path,
    seeds: Sequence[int],
    *,
    shift_strength: float,
    shift_seed: int,
    ctx: str | None = None,
    progress: Progress,
    follow: Callable[[Sequence[Part]], None] = silent,
) -> DemoResult:
    """Run the four methods for every seed; finished parts of an earlier call are kept.

    Parameters
    ----------
    experiment : Path
        The experiment file; its method and start are replaced.
    out : Path
        Gets ``seed-N/data``, ``seed-N/METHOD`` (run folders), ``results.json``, the same as a table in ``results.md``,
        and ``comparison.png``.
    seeds : sequence of int
        Each seeds scenes, initialisation and training.
    shift_strength, shift_seed
        Strength and seed of the change of the target's appearance.
    ctx : str, optional
        Devices, instead of the experiment's.
    progress : callable
        Called with (what, done, in all).
    follow : callable, optional
        Called with the parts of the work before it begins.

    Raises
    ------
    CBSTError
        If a file cannot be used or `out` holds a demo with other settings.
    """
    settings = {"shift_strength": shift_strength, "shift_seed": shift_seed, "size": list(SIZE), **COUNTS}
    rows: dict[int, dict[str, dict[str, Any]]] = {}
    source_rows: dict[int, dict[str, dict[str, Any]]] = {}
    follow(_parts(experiment, out, seeds, ctx))
    for seed in seeds:
        folder = out / f"seed-{seed}"
        _scenes(folder, settings, seed, progress)
        rows[seed], source_rows[seed] = {}, {}
        for method in METHODS:
            variant = _variant(experiment, folder, method, seed, ctx)
            run = Run(variant, folder / method, progress=progress, data_root=(folder / "data").absolute())
            last = run.run()["stages"][-1]["evaluation"]
            rows[seed][method], source_rows[seed][method] = last["target"], last["source"]
    picture, results = out / "comparison.png", out / "results.json"
    first = _variant(experiment, out, "source", seeds[0], ctx)
    write_rgb_png(picture, _comparison(first, out / f"seed-{seeds[0]}"))
    write_json(results, {"settings": settings, "target": _keyed(rows), "source": _keyed(source_rows)})
    columns = {METHODS[method]: [rows[seed][method] for seed in seeds] for method in METHODS}
    write_text(results.with_suffix(".md"), as_markdown(columns, first.classes()))
    report: Path | None = out / "report.html"
    try:
        data_root = (out / f"seed-{min(seeds)}" / "data").absolute()  # pictures are of the lowest seed
        write_report([out / f"seed-{seed}" for seed in seeds], out / "report.html", data_root=data_root)
    except PlotlyMissingError:
        report = None
    return DemoResult(rows, source_rows, first.classes(), results, picture, report)


def _parts(experiment: Path, out: Path, seeds: Sequence[int], ctx: str | None) -> list[Part]:
    """Return the parts of the runs of all seeds and methods, with the scenes that are drawn before them."""
    validation = {"target": COUNTS["target_val_count"], "source": COUNTS["source_val_count"]}
    found = []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        done = (folder / "data").is_dir()
        found.append(Part("demo", 0, "street scenes", _scenes_title(seed), sum(COUNTS.values()), done=done))
        for method in METHODS:
            numbers = {"source": COUNTS["source_count"], "target": COUNTS["target_count"]}
            variant = _variant(experiment, folder, method, seed, ctx)
            found += outline(variant, folder / method, validation=validation, **numbers)
    return found


def _scenes_title(seed: int) -> str:
    return f"demo, seed {seed}: street scenes"


def _keyed(rows: dict[int, Any]) -> dict[str, Any]:
    return {str(seed): value for seed, value in rows.items()}


def _scenes(folder: Path, settings: dict[str, Any], seed: int, progress: Progress) -> None:
    """Write the scenes of a seed, or check that those there have the same settings."""
    record = folder / "data.json"
    if record.is_file():
        stored = read_json(record)
        if stored != settings:
            raise RunError(f"{folder} holds a demo with other settings ({stored}): give another folder with --out")
        if (folder / "data").is_dir():
            return
    write_json(record, settings)  # first: the scenes appear all at once, so a killed call leaves either or both
    shift = Shift(strength=settings["shift_strength"], seed=settings["shift_seed"])
    write_demo_data(
        folder / "data",
        **COUNTS,
        size=SIZE,
        seed=seed,
        shift=shift,
        progress=functools.partial(progress, _scenes_title(seed)),
    )


def _variant(experiment: Path, folder: Path, method: str, seed: int, ctx: str | None) -> Experiment:
    """Return the experiment of one method: the source training without rounds, or rounds from its parameters."""
    changes: list[str] = [f"seed={seed}", f"name=demo-{method}-seed-{seed}"]
    if ctx is not None:
        changes.append(f"ctx={ctx}")
    if method == "source":
        changes.append("self_training.rounds=0")
    else:
        source = folder / "source" / "source" / "parameters.params"
        changes += [f"self_training.method={method}", "source_training=null", f"initial_parameters={source}"]
    return load_experiment(experiment, tuple(changes))


def _comparison(experiment: Experiment, folder: Path) -> np.ndarray:
    """Draw the first target validation images with the truth and every method's last prediction."""
    images = experiment.open_validation((folder / "data").absolute())["target"]
    images = images.subset(range(min(_PICTURE_ROWS, len(images))))
    space = experiment.classes()
    columns = [
        [images.image(i) for i in range(len(images))],
        [space.colorize(images.label(i)) for i in range(len(images))],
    ]
    device = parse_contexts(experiment.ctx)[0]
    for method in METHODS:
        run = folder / method
        rounds = sorted(run.glob("round-*/parameters.params"), key=lambda path: int(path.parent.name[6:]))
        network, spec, _ = load_network(rounds[-1] if rounds else run / "source" / "parameters.params", device)
        found = predictions(network, images, mean=spec.mean, std=spec.std, ctx=device, flip=experiment.evaluation.flip)
        columns.append([space.colorize(predicted) for _, predicted in found])
    return comparison_sheet(list(zip(*columns)), ["image", "truth", *METHODS.values()], legend=space)
