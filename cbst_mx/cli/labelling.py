"""``label``: pseudo-labels from class probabilities of any framework, in one go or in steps on several machines."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Callable, Sequence

import click

from cbst_mx import METHODS
from cbst_mx.cli.base import FILE, FOLDER, Bars, Terminal, choice, echo, print_table
from cbst_mx.cli.cluster import cluster_options, opened
from cbst_mx.messages import counted, listed

__all__ = ["COMMANDS"]


def _add(options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class _Portions(click.ParamType):
    """Numbers separated by commas."""

    name = "P,P,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.2,0.25,0.3", param, ctx)


class _Shard(click.ParamType):
    """I/N, or auto for that of this task of a batch system."""

    name = "I/N|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple):
            return value
        if value == "auto":
            return value
        part, slash, parts = value.partition("/")
        # not isdigit: a superscript is a digit and no number
        if not (slash and all(re.fullmatch("[0-9]{1,9}", number) for number in (part, parts))):
            self.fail(f"{value[:40]!r} is not a shard such as 1/4", param, ctx)
        return int(part), int(parts)


_FORMS = "Folder of maps (C, H, W) of a float type: .npy, .npz or .pt, in sub-folders too."
_PROBABILITIES = click.option("--probabilities", required=True, type=FOLDER, help=_FORMS)
_MAPS = (
    click.option("--key", metavar="NAME", help="Array of .npz and .pt files. Default: probability, or the only one."),
    click.option("--upsample", default=1, type=int, metavar="S", help="The maps are at stride S and are upsampled."),
    click.option("--size", nargs=2, type=int, metavar="H W", help="Size of the images, where not S times the map."),
    click.option(
        "--upsampling",
        default="bilinear",
        show_default=True,
        type=choice(["bilinear", "bicubic", "pillow"]),
        help="How: bilinear as in this package's networks, bicubic as OpenCV does (a = -0.75), pillow as the authors' "
        "program does (Pillow's bicubic, a = -0.5, to S times the map, cropped to the image).",
    ),
    click.option(
        "--origin",
        default="plain",
        show_default=True,
        metavar="ORIGIN",
        help="What the classes of a pixel sum to: plain maps to 1; bicubic: about 1; maximum (over scales): 1 or more; "
        "prior (already multiplied by one) or scores: any number.",
    ),
    click.option("--spatial-prior", type=FILE, help="Multiply by this prior (.npz, array prior), resized."),
    click.option(
        "--label-space",
        "--classes",
        "label_space",
        help="The classes: label space (cityscapes-19, ...), number, or YAML description of one's own. Default: by the "
        "maps.",
    ),
    click.option(
        "--fidelity",
        default="paper",
        show_default=True,
        type=choice(["paper", "released"]),
        help="Rules of the paper, or of the authors' released program (every 4th pixel).",
    ),
    click.option("--workers", default=1, show_default=True, type=int, help="Processes; the result is the same."),
)
_POLICY = click.option(
    "--policy",
    default="cbst",
    show_default=True,
    type=choice([*METHODS, *dict.fromkeys(METHODS.values())]),
    metavar=f"[{'|'.join(METHODS)}]",
    help="st: one threshold for all classes (global, Algorithm 1); cbst: one per class (class-balanced, Algorithm 2); "
    "cbst-sp is cbst with --spatial-prior.",
)
_PORTION = click.option("--portion", type=float, help="Portion p of the pixels to keep, in (0, 1].")
_PORTIONS = click.option("--portions", type=_Portions(), help="Portions of a sweep table (sweep.csv), 0.2,0.25,...")
_SHARD = click.option(
    "--shard",
    default="1/1",
    type=_Shard(),
    help="Only the I-th of N parts of the files; auto: by SLURM's or Kubernetes' task.",
)


def _rule(policy: str, prior: Path | None) -> str:
    """Return the threshold rule of `policy`, which may ask for a spatial prior."""
    if policy == "cbst-sp" and prior is None:
        raise click.UsageError("--policy cbst-sp needs --spatial-prior")
    return METHODS.get(policy, policy)


def _folder(
    probabilities: Path,
    upsample: int,
    size: tuple[int, int] | None,
    upsampling: str,
    spatial_prior: Path | None,
    origin: str,
    label_space: str | None,
    key: str | None,
    shard: Any = (1, 1),
) -> Any:
    from cbst_mx.labelling import MapFolder
    from cbst_mx.labelling.shards import shard_of_environment

    if size and upsample == 1:
        raise click.UsageError("--size needs --upsample")
    return MapFolder.open(
        probabilities,
        classes=label_space,
        key=key,
        stride=upsample,
        size=(size[0], size[1]) if size else None,
        interpolation=upsampling,
        origin=origin,
        prior=spatial_prior,
        shard=shard_of_environment(os.environ) if shard == "auto" else shard,
    )


def _announce(folder: Any, workers: int, portions: int, labels: bool) -> None:
    """Say what will be done and what it takes, before it is done."""
    from cbst_mx.labelling import needs

    sizes = set(folder.sizes)
    size = " x ".join(map(str, sizes.pop())) if len(sizes) == 1 else "different sizes"
    wanted = needs(folder, workers=workers, portions=portions, labels=labels)
    classes = f"{counted(folder.num_classes, 'class')} ({folder.label_space.name})"
    echo(
        f"{counted(len(folder.names), 'image')} of {size}, {classes}; "
        f"needs up to {wanted.disk / 1e6:.0f} MB on the disk and {wanted.memory / 1e6:.0f} MB of memory"
    )
    if folder.left_out:
        echo(f"left out, as no maps: {listed(folder.left_out)}")
    if folder.origin != "plain":
        echo(
            f"warning: the classes of a pixel of {folder.paths[0].name} sum to {folder.sums()}, which origin "
            f"{folder.origin} explains",
            err=True,
        )


def _run(
    folder: Any,
    out: Path,
    policy: str,
    portion: float | None,
    portions: tuple[float, ...] | None,
    fidelity: str,
    workers: int,
    where: Any,
    state: Any = None,
) -> None:
    from cbst_mx.labelling import check_request, run
    from cbst_mx.report.tables import sweep_table, threshold_table

    _check_workers(where)
    if not check_request(policy, portion, portions or (), fidelity=fidelity, workers=workers):
        raise click.UsageError("--portion or --portions must be given")
    _announce(folder, workers, len(portions or ()) + 1, portion is not None)
    with Bars(Terminal()) as bars, opened(where) as cluster:
        result = run(
            folder,
            out,
            policy=policy,
            portion=portion,
            portions=portions or (),
            fidelity=fidelity,
            state=state,
            workers=workers,
            cluster=cluster,
            progress=bars,
        )
    if portion is not None:
        method = _method(result["policy"], folder.prior is not None)
        title = f"{method}, p = {result['portion']:g}, rules of the {_rules(result)}"
        found = {"names": result["names"], "counts": result["count"], "values": result["threshold"]}
        print_table(threshold_table({**found, "k": result["kc"], "kept": result["kept"]}, title=title))
        echo(
            f"{100 * result['kept_portion']:.2f} % of the pixels kept; labels in {out / 'pseudo_labels'}, "
            f"thresholds in {out / 'kc.json'}"
        )
        for sentence in result.get("remarks", ()):
            echo(f"warning: {sentence}", err=True)
    if portions:
        print_table(sweep_table(result["sweep"], portions))
        echo(f"sweep in {out / 'sweep.csv'}")


def _check_workers(where: Any) -> None:
    """Refuse --workers beside --cluster, which has its own."""
    given = click.get_current_context().get_parameter_source("workers")
    if where is not None and given is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--workers and --cluster cannot be given together")


def _method(rule: str, prior: bool) -> str:
    """Return the paper's name of a threshold rule, used with a spatial prior or without."""
    of_rule = [name.upper() for name in METHODS if METHODS[name] == rule]
    return of_rule[-1] if prior else of_rule[0]


def _rules(record: Any) -> str:
    return "paper" if record["fidelity"] == "paper" else "released program"


@click.group(invoke_without_command=True)
@click.option("--probabilities", type=FOLDER, help=_FORMS)
@_add(_MAPS)
@_POLICY
@_PORTION
@_PORTIONS
@click.option("--out", type=FOLDER, help="Output folder; new, or of this job, which then goes on.")
@cluster_options
@click.pass_context
def label(
    ctx: click.Context,
    probabilities: Path | None,
    out: Path | None,
    policy: str,
    portion: float | None,
    portions: tuple[float, ...] | None,
    fidelity: str,
    workers: int,
    where: Any,
    **maps: Any,
) -> None:
    """Make pseudo-labels from class probabilities of any framework; needs no mxnet.

    Reads one map per image, (C, H, W) or (1, C, H, W): NAME.npy, or NAME.npz or NAME.pt (tensors; needs
    no PyTorch) with one array, one called probability, or --key. NAME may be in sub-folders. Writes OUT/kc.json
    (threshold exp(-k_c), k_c, N_c and kept pixels per class), OUT/pseudo_labels/NAME.png (trainIds with palette,
    255 = not selected), OUT/image_statistics.npz and OUT/state.npz; with --portions also OUT/sweep.csv. Thresholds are
    exact over all pixels. The same command continues a job that was stopped, by a damaged map as well once that is
    mended; a map that is counted may not change any more.

    The class of a pixel is argmax p_c / threshold_c, and it is kept where some class reaches its threshold: it may be
    another class than the most probable one, and more than the portion may be kept. Pixels where all classes are 0, as
    in a masked region, are in no pool and get no label.

    The maps are read up to three times: to count, to count in the critical bins (not needed where values have no more
    bits than float16), to select. N_c, `count` in kc.json, is the number of predicted pixels, without the extra
    zeros in the pools of the released program.

    On several machines: count a shard each, merge, count again with --refine, merge, select; docs/labels.md has the
    seven commands.
    """
    given = click.core.ParameterSource.DEFAULT
    if ctx.invoked_subcommand is not None:
        for name in ctx.params:
            if ctx.get_parameter_source(name) is not given:
                raise click.UsageError(f"--{name.replace('_', '-')} must come after {ctx.invoked_subcommand}")
        return
    if probabilities is None or out is None:
        raise click.UsageError("--probabilities and --out must be given")
    policy = _rule(policy, maps["spatial_prior"])
    folder = _folder(probabilities, **maps)
    _run(folder, out, policy, portion, portions, fidelity, workers, where)


@label.command("count")
@_PROBABILITIES
@_add(_MAPS)
@_SHARD
@click.option("--refine", type=FILE, help="Merged counts of all machines: count again in their critical bins.")
@_POLICY
@_PORTION
@_PORTIONS
@click.option("--out", required=True, type=FILE, help="State file (.npz); goes on where this count wrote it.")
@cluster_options
def count_(
    probabilities: Path,
    shard: Any,
    refine: Path | None,
    policy: str,
    portion: float | None,
    portions: tuple[float, ...] | None,
    fidelity: str,
    workers: int,
    out: Path,
    where: Any,
    **maps: Any,
) -> None:
    """Count the confidences of a folder or of a shard of it.

    Reads the maps; writes the state file OUT. The first count serves every portion and both policies; the second one,
    with --refine, those that are given.
    """
    from cbst_mx.labelling import State, check_request, count

    _check_workers(where)
    policy = _rule(policy, maps["spatial_prior"])
    wanted = check_request(policy, portion, portions or (), fidelity=fidelity, workers=workers)
    if refine is not None and not wanted:
        raise click.UsageError("--refine needs --portion or --portions")
    if refine is None and wanted:
        raise click.UsageError("--portion and --portions need --refine: the first count serves every portion")
    folder = _folder(probabilities, shard=shard, **maps)
    if refine is None:
        state = State.new(folder, fidelity)
    else:
        state = State.load(refine)
        state.check(folder, fidelity)
        state.check_whole(folder)
        state.own_images = set(folder.names)
        if not state.counts.refine([policy], wanted):
            echo(f"{refine} holds these thresholds exactly already: a second count is not needed")
    if out.is_file():
        state = state.continued(State.load(out), folder)
    _announce(folder, workers, len(wanted), False)
    with Bars(Terminal()) as bars, opened(where) as cluster:
        count(folder, state, out, workers=workers, cluster=cluster, progress=bars)
    echo(f"counts of {counted(len(folder.names), 'image')} in {out}")


@label.command()
@click.argument("states", nargs=-1, required=True, type=FILE)
@click.option("--out", required=True, type=FILE, help="State file (.npz).")
def merge(states: tuple[Path, ...], out: Path) -> None:
    """Add STATES, the counts of different images, or second counts that went on from the same first one.

    Reads and writes state files of `label count`; an unfinished one is refused.
    """
    from cbst_mx.labelling import State

    merged = State.load(states[0])
    merged.check_finished()
    for path in states[1:]:
        state = State.load(path)
        state.check_finished()
        merged.merge(state, str(path))
    merged.save(out)
    pending = len(merged.counts.pending(merged.counts.names))
    echo(
        f"counts of {counted(len(merged.counts.names), 'image')} in {out}"
        + (f"; {pending} of them are still to be counted a second time" if pending else "")
    )


@label.command("select")
@click.option("--state", "state_path", required=True, type=FILE, help="Merged counts.")
@_PROBABILITIES
@_add(_MAPS)
@_SHARD
@_POLICY
@_PORTION
@_PORTIONS
@click.option("--out", required=True, type=FOLDER, help="Output folder; new, or of this job, which then goes on.")
@cluster_options
def select_(
    state_path: Path,
    probabilities: Path,
    shard: Any,
    policy: str,
    portion: float | None,
    portions: tuple[float, ...] | None,
    fidelity: str,
    workers: int,
    out: Path,
    where: Any,
    **maps: Any,
) -> None:
    """Select with the thresholds of a state: pseudo-labels of a folder or of a shard of it.

    Reads the state and the maps; writes what `label` writes. Where the state needs a second count and all its images
    are in the folder, that is done here as well.
    """
    from cbst_mx.labelling import State

    policy = _rule(policy, maps["spatial_prior"])
    folder = _folder(probabilities, shard=shard, **maps)
    _run(folder, out, policy, portion, portions, fidelity, workers, where, State.load(state_path))


COMMANDS = (label,)
