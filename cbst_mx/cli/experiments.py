"""Commands that work in a run folder: ``run`` and the single steps of a round."""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator

import click

from cbst_mx.cli.base import FILE, FOLDER, Bars, Terminal, choice, echo, print_table
from cbst_mx.cli.cluster import cluster_options, opened
from cbst_mx.cli.live_events import TensorBoard
from cbst_mx.errors import CBSTError, StoppedError
from cbst_mx.messages import counted, stage_title

if TYPE_CHECKING:
    from cbst_mx.config import Data, Experiment
    from cbst_mx.evaluation.run_results import RunResults
    from cbst_mx.label_space import LabelSpace
    from cbst_mx.messages import Part
    from cbst_mx.rounds import Run

__all__ = ["COMMANDS", "experiment_options", "print_thresholds"]


#: What every command on an experiment file takes, in the order of the help.
_EXPERIMENT_OPTIONS = (
    click.argument("experiment", type=FILE),
    click.option("--ctx", help="Device: cpu, cpu:N, gpu:N, or several as in gpu:0,1. Default: the experiment's."),
    click.option(
        "--amp",
        type=choice(["none", "bfloat16", "float16"]),
        help="Mixed precision: bfloat16 on CPUs with AVX512_BF16, float16 on GPUs. Default: the experiment's.",
    ),
    click.option(
        "--init",
        type=FILE,
        help="Start from these parameters instead of training a source network: any made or imported by cbst-mx.",
    ),
    click.option("--rounds", type=click.IntRange(0), help="Number of rounds. Default: the experiment's."),
    click.option("--fold", type=click.IntRange(0), help="Fold of target and validation images (NTHU)."),
    click.option(
        "--target",
        metavar="[val|train|train-505|folds]",
        help="Adapt on other images: Cityscapes val, train or 505 of train; NTHU folds (labelled) or train (3,200).",
    ),
    click.option(
        "--recompute",
        is_flag=True,
        help="Keep no network output while pseudo-labelling: run the network again for every look at the images.",
    ),
    click.option("--smoke", is_flag=True, help="Tiny network, one iteration a phase: only shows that every step runs."),
    click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a key of the experiment, e.g. --set self_training.rounds=2. May be repeated.",
    ),
    click.option(
        "--print-config",
        is_flag=True,
        is_eager=True,
        help="Print the experiment as it will be run, with where every value came from, and end.",
    ),
)


class _OutOption(click.Option):
    """An option that is needed, but not where the experiment is only printed."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value, or None where there need not be one."""
        if ctx.params.get("print_config") and self.value_is_missing(value):
            return None
        return super().process_value(ctx, value)


def experiment_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every command on an experiment file; the function gets the loaded Experiment first."""

    @functools.wraps(function)
    def command(
        experiment: Path,
        ctx: str | None,
        amp: str | None,
        init: Path | None,
        rounds: int | None,
        fold: int | None,
        target: str | None,
        recompute: bool,
        smoke: bool,
        changes: tuple[str, ...],
        print_config: bool,
        **options: Any,
    ) -> None:
        from cbst_mx.config import describe_released_start, take_released_start

        given: dict[str, Any] = {
            "ctx": ctx,
            "amp": amp,
            "self_training.rounds": rounds,
            "self_training.keep_maps": "recompute" if recompute else None,
            "smoke": "true" if smoke else None,
        }
        if init is not None:
            given.update({"initial_parameters": init, "source_training": "null", "pretrained": "null"})
        by_options = tuple(f"{key}={value}" for key, value in given.items() if value is not None)
        loaded, all_changes = _load(experiment, changes + by_options, fold, target)
        if print_config:
            _print_config(experiment, loaded, all_changes, changes, options.get("out"))
            return
        loaded = take_released_start(loaded)
        if (sentence := describe_released_start(loaded)) is not None:
            echo(sentence, err=bool(options.get("as_json")))
        function(loaded, **options)

    for option in reversed(_EXPERIMENT_OPTIONS):
        command = option(command)
    return command


#: Key to the option that changes it; others are changed by --target and --fold.
_OPTION_OF = {
    "ctx": "--ctx",
    "amp": "--amp",
    "self_training.rounds": "--rounds",
    "self_training.keep_maps": "--recompute",
    "smoke": "--smoke",
    **dict.fromkeys(("initial_parameters", "source_training", "pretrained"), "--init"),
}


def _print_config(
    path: Path, loaded: Experiment, changes: tuple[str, ...], given: tuple[str, ...], out: Path | None
) -> None:
    """Print the experiment as it will be run.

    Of all `changes` those in `given` were given by --set; `out` is the run folder, where one is named.
    """
    from cbst_mx.config import take_released_start
    from cbst_mx.config.origins import explained

    started = take_released_start(loaded)
    later = [("the released start, which is there", started)]
    if out is not None:
        begun = out / "experiment.yaml"
        later.append((f"{begun}, which does not say it", started.as_begun(begun)))
    names = {}
    for change in (change for change in changes if change not in given):
        key, _, value = change.partition("=")
        of_fold = key.endswith(".fold") and value != "null"
        names[change] = _OPTION_OF.get(key, "--fold" if of_fold else "--target")
    echo(explained(path, changes, names=names, later=later))


def _load(
    path: Path, changes: tuple[str, ...], fold: int | None, target: str | None
) -> tuple[Experiment, tuple[str, ...]]:
    """Load an experiment with the changes of the command line; `fold` changes every image set that has folds.

    Return it with all changes that were made.
    """
    from cbst_mx.config import load_experiment, target_changes

    loaded = load_experiment(path, changes)
    if target is not None:
        # what is asked for key by key comes last
        changes = (*target_changes(loaded, target), *changes)
        loaded = load_experiment(path, changes)
    if fold is None:
        return loaded, changes
    folded = [key for key, data in (("target", loaded.target), *_validation(loaded)) if data.fold is not None]
    if not folded:
        raise click.UsageError("--fold needs an experiment with folds (NTHU)")
    changes += tuple(f"{key}.fold={fold}" for key in folded)
    return load_experiment(path, changes), changes


def _validation(experiment: Experiment) -> Iterator[tuple[str, Data]]:
    for name, data in experiment.validation.items():
        yield f"validation.{name}", data


def _run_command(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every command that works in a run folder; the function gets the open Run."""

    @experiment_options
    @click.option(
        "--out",
        cls=_OutOption,
        required=True,
        type=FOLDER,
        help="Run folder; created, or continued if it is this experiment's.",
    )
    @click.option("--quiet", is_flag=True, help="Print warnings and the end only.")
    @click.option("--json", "as_json", is_flag=True, help="Print events, one JSON object a line, and nothing else.")
    @click.option("--tensorboard", type=FOLDER, help="Write TensorBoard events into this folder as the run goes on.")
    @cluster_options
    @click.option(
        "--train-workers",
        "trainers",
        default=0,
        show_default="0: this process trains",
        type=click.IntRange(0),
        help="Train in so many processes of the --cluster, one on each of as many workers, over MXNet's kvstore.",
    )
    @functools.wraps(function)
    def command(
        experiment: Experiment,
        out: Path,
        quiet: bool,
        as_json: bool,
        tensorboard: Path | None,
        where: Any,
        trainers: int,
        **options: Any,
    ) -> None:
        from cbst_mx.rounds import Run  # imports mxnet
        from cbst_mx.rounds.outline import outline

        if quiet and as_json:
            raise click.UsageError("--quiet and --json cannot be given together")
        if trainers and where is None:
            raise click.UsageError("--train-workers needs --cluster")
        if tensorboard is not None:
            from cbst_mx.report.tensorboard import check_installed

            check_installed()
        with Bars(Terminal(), quiet=quiet, as_json=as_json) as bars, opened(
            where, threads=0, trainers=trainers
        ) as cluster:
            run = Run(experiment, out, progress=bars, cluster=cluster)
            numbers = {"source": len(run.source), "target": len(run.target)}
            validation = {name: len(images) for name, images in run.validation.items()}
            parts = outline(run.experiment, out, validation=validation, **numbers)
            bars.follow(part for part in parts if _belongs(part, function.__name__, options.get("index")))
            if tensorboard is not None:
                bars.add(lambda tracker: TensorBoard(tracker, out, tensorboard))
            try:
                with run.dir.logging():
                    function(run, bars, **options)
            except CBSTError as error:
                if not isinstance(error, StoppedError):
                    run.dir.withdraw()
                raise

    return command


def _belongs(part: Part, verb: str, index: int | None) -> bool:
    """Return whether a part of a run is done by the command `verb` too, which may be for round `index`."""
    from cbst_mx.rounds.outline import LAST_LOOK

    if verb == "run":
        return True
    if verb == "source":
        return part.stage == 0 and part.step != "spatial prior"
    first = part.step == "spatial prior" and verb != "retrain"
    steps = {"pseudo_label": ("pseudo-labels",), "retrain": ("training",)}.get(verb)
    return first or (part.stage == index and (part.step in steps if steps else part.step != LAST_LOOK))


_ROUND = click.option("--round", "index", required=True, type=click.IntRange(1), help="Which round; 1 is the first.")


@click.command()
@_run_command
def run(run: Run, bars: Bars) -> None:
    """Run EXPERIMENT: source training, all rounds, evaluation.

    Reads the experiment file and the images it names (relative data roots are below the folder in CBST_DATA). Writes
    the run folder: source/ and round-N/ with parameters, thresholds, pseudo-labels and evaluation, summary.json,
    log.txt. A finished step is not run again, so the same command continues a run that was stopped.
    """
    from cbst_mx.evaluation.comparison import gain_over_source
    from cbst_mx.evaluation.run_signs import news

    summary = run.run()
    gain = gain_over_source(run.results)
    bars.result("summary", path=str(run.dir.summary), gain=None if gain is None else gain.to_json())
    if not bars.shows_results:
        return
    bars.close()
    _print_stages(summary, run.label_space, smoke=run.experiment.smoke)
    for sentence in () if run.experiment.smoke else news(run.results, run.results.evaluated[-1]):
        echo(f"news: {sentence}")
    print_thresholds(run.results)
    _print_protocol(run.results)
    if gain is not None:
        echo(str(gain))
    echo(f"took {bars.taken()}; results in {run.dir.summary}")
    echo(f"next: {report_command(run.dir.path)}")


@click.command()
@_run_command
def source(run: Run, bars: Bars) -> None:
    """Train the source network of EXPERIMENT and evaluate it.

    Reads the labelled source images; writes OUT/source/parameters.params with its sidecar, training.json, confusion.npz
    and evaluation.json. Takes over initial_parameters instead where the experiment gives them.
    """
    run.train_source()
    run.evaluate(0)
    run.evaluate_snapshots()
    _print_evaluation(run, bars, 0)


@click.command("pseudo-label")
@_ROUND
@_run_command
def pseudo_label(run: Run, bars: Bars, index: int) -> None:
    """Step a) of one round: label the target images with the network of the round before.

    Reads OUT/source or OUT/round-(N-1); writes OUT/round-N/pseudo_labels/NAME.png (trainIds with palette, 255 = not
    selected) and OUT/round-N/thresholds.json.
    """
    run.pseudo_label(index)
    if bars.shows_results:
        bars.close()
        print_thresholds(run.results, index)
        echo(f"pseudo-labels in {run.dir.stage(index).pseudo_labels}, thresholds in {run.dir.stage(index).thresholds}")


@click.command()
@_ROUND
@_run_command
def retrain(run: Run, bars: Bars, index: int) -> None:
    """Step b) of one round: retrain on source labels and pseudo-labels together.

    Reads OUT/round-N/pseudo_labels and the parameters of the round before; writes OUT/round-N/parameters.params with
    its sidecar and training.json.
    """
    run.retrain(index)
    if bars.shows_results:
        bars.close()
        echo(f"parameters in {run.dir.stage(index).parameters}")


@click.command("round")
@_ROUND
@_run_command
def round_(run: Run, bars: Bars, index: int) -> None:
    """One round: pseudo-label, retrain, evaluate.

    Reads the parameters of the round before; writes OUT/round-N.
    """
    run.round(index)
    _print_evaluation(run, bars, index)


def _print_evaluation(run: Run, bars: Bars, index: int) -> None:
    from cbst_mx.report.tables import iou_table

    results = run.evaluate(index)
    summary = run.write_summary()
    bars.result("summary", path=str(run.dir.summary), gain=None)
    if not bars.shows_results:
        return
    bars.close()
    if results:
        print_table(iou_table(results, run.label_space))
    else:
        _print_label_free([stage for stage in summary["stages"] if stage["round"] == index])
    _print_warnings([stage for stage in summary["stages"] if stage["round"] == index], smoke=run.experiment.smoke)


def print_thresholds(results: RunResults, index: int | None = None) -> None:
    """Print the thresholds of a round and what they kept: of the last one that has any, or of round `index`."""
    from cbst_mx.report.tables import threshold_table

    done = [stage for stage in range(1, results.rounds + 1) if results.folder.stage(stage).thresholds.is_file()]
    for stage in done[-1:] if index is None else [index]:
        found = results.thresholds(stage)
        title = f"thresholds of round {stage}: {found['policy'].upper()}, p = {found['portion']:g}"
        echo("")
        print_table(threshold_table(found, title=title))
        echo("")


def report_command(folder: Path) -> str:
    """Return the command that shows a run in the browser."""
    return f"cbst-mx report {shlex.quote(str(folder))} --out report.html"


def _print_stages(summary: dict[str, Any], label_space: LabelSpace, *, smoke: bool = False) -> None:
    from cbst_mx.report.tables import iou_table

    leading = summary["leading"]
    if leading is None:
        _print_label_free(summary["stages"])
    else:
        rows = {stage_title(stage["round"]): stage["evaluation"][leading] for stage in summary["stages"]}
        print_table(iou_table(rows, label_space))
    _print_warnings(summary["stages"], smoke=smoke)


def _print_protocol(results: RunResults) -> None:
    """Print what a run was adapted on, and which round its labels would choose."""
    from cbst_mx.evaluation.paper_check import find_best_round
    from cbst_mx.evaluation.run_results import BEST, UNLABELLED

    echo(results.adaptation)
    best = find_best_round(results)
    if best is not None:
        echo(f"{BEST}: {best.text} (last: {100 * results.miou():.1f})")
    choice = results.label_free_choice()
    if choice is not None:
        miou = "" if results.leading is None else f", mIoU {100 * results.miou(choice.stage):.1f}"
        echo(f"{UNLABELLED}: {stage_title(choice.stage)}, {choice.score:.3f}{miou}")


def _print_label_free(stages: list[dict[str, Any]]) -> None:
    from cbst_mx.report.tables import label_free_table

    echo("no validation set: what the networks predict on the target's images, without labels")
    print_table(label_free_table({stage_title(stage["round"]): stage["label_free"] for stage in stages}))


def _print_warnings(stages: list[dict[str, Any]], *, smoke: bool) -> None:
    """Print the warnings of the last stage of a summary that has any, and how many earlier ones have.

    None of a smoke test, whose network has learned nothing.
    """
    warned = [] if smoke else [stage for stage in stages if stage["warnings"]]
    for stage in warned[-1:]:
        when = f"after round {stage['round']}" if stage["round"] else "of the source network"
        for sentence in stage["warnings"]:
            echo(f"warning: {when}, {sentence}", err=True)
    if earlier := sum(len(stage["warnings"]) for stage in warned[:-1]):
        echo(f"{counted(earlier, 'more warning')} of stages before: see summary.json and log.txt", err=True)


COMMANDS = (run, source, pseudo_label, retrain, round_)
