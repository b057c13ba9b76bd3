"""From what was found and answered to the two files: splits, classes, held-out images, numbers, next commands."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

from cbst_mx.config.draft import Choices, Machine, choose
from cbst_mx.config.draft_files import Draft, Listed, check_new, write_drafts
from cbst_mx.data import FORMATS
from cbst_mx.data.doctor.findings import counted
from cbst_mx.data.listing import all_images
from cbst_mx.data.survey import Survey
from cbst_mx.data.survey.roles import Candidate, Roles
from cbst_mx.data.survey.values import Contents, Found, contents
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import LABEL_SPACES
from cbst_mx.messages import Progress, cores, listed

__all__ = ["Plan", "Written", "make_plan", "write_plan"]

_HELD_OUT = 10  # one image of so many
_FEWEST_HELD_OUT, _MOST_HELD_OUT = 5, 100


@dataclass
class Plan:
    """What is to be written; `values` and `remarks` grow on the way."""

    found: Survey
    source: Candidate
    target: Candidate
    evaluate: list[Candidate]
    pretrained: Path | None = None
    known_space: str = ""  # label space of a published source
    ids: str = ""  # convention of the masks in a known label space
    contents: Contents | None = None
    values: tuple[Found, ...] = ()
    remarks: list[str] = field(default_factory=list)

    def read_masks(self, sample: int | None, progress: Progress) -> None:
        """Read the masks of the source, and of what is evaluated, that are one's own.

        Raises
        ------
        DataError
            If they cannot be read or are no masks of classes.
        """
        labelled = [one for one in (self.source, *self.evaluate) if one.group is not None]
        masks = [path for one in labelled for path in one.group.labels if path]  # type: ignore[union-attr]
        if not masks:
            return
        self.contents = contents(masks, sample, progress)
        if self.contents.read < self.contents.of:
            self.remarks.append(
                f"{self.contents.read:,} of {self.contents.of:,} masks were read: a value that only others have is "
                "refused later; doctor with --all finds it"
            )
        convention = self.contents.known
        if convention and not self.contents.in_colours and not self.known_space:
            self.known_space = "cityscapes-19"
            self.remarks.append(f"the names of the masks say that they hold Cityscapes' {convention}s: 19 classes")
        if self.known_space:
            space = LABEL_SPACES[self.known_space]
            fits = convention if convention in space.raw_ids else ""
            if self.contents.in_colours and {one.value for one in self.contents.values} <= {*space.palette, (0, 0, 0)}:
                fits = "colours"
            self.ids = fits
            if not fits:
                names = listed([one.name for one in self.evaluate if one.group is not None])
                self.remarks.append(
                    f"{names} is not used for evaluation: what its masks' values are among the classes of "
                    f"{self.known_space} is not known; write the mapping under ids in the description"
                )
                self.evaluate = [one for one in self.evaluate if one.group is None]


@dataclass(frozen=True)
class Written:
    """The files, the commands to give next with what they do, and what is to be said."""

    files: list[Path]
    commands: list[tuple[str, list[str]]]
    remarks: list[str]


def make_plan(found: Survey, sets: Sequence[Candidate], roles: Roles, *, pretrained: Path | None = None) -> Plan:
    """Return the plan for the chosen sets."""
    by_name = {one.name: one for one in sets}
    source = by_name[roles.source]
    plan = Plan(found, source, by_name[roles.target], [by_name[name] for name in roles.evaluate], pretrained)
    if source.group is None:
        plan.known_space = FORMATS[source.format].label_space
    else:
        own = [one for one in plan.evaluate if one.group is None]
        if own:
            plan.remarks.append(f"{listed([one.name for one in own])} is not used for evaluation: it has other classes")
        plan.evaluate = [one for one in plan.evaluate if one.group is not None]
    return plan


def check_name(name: str, out: Path, *, overwrite: bool) -> str:
    """Return the beginning of the files' names.

    Raises
    ------
    ConfigError
        If it cannot be one, or such files are there and may not be overwritten.
    """
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "photos"
    if not stem.isprintable() or len(stem) > 80:
        raise ConfigError(f"name must have 1 to 80 printable characters, got {name[:60]!r}")
    draft = Draft(stem, {}, {})
    check_new(draft, out, overwrite=overwrite)
    return stem


def write_plan(plan: Plan, out: Path, name: str, *, overwrite: bool) -> Written:
    """Write the files of a plan.

    Raises
    ------
    ConfigError, DataError
        If something cannot be used; then nothing is written.
    """
    stem = check_name(name, out, overwrite=overwrite)
    classes, count = _classes(plan, stem)
    lists, splits, data = _splits(plan, stem)
    spec = None if plan.pretrained is None else _pretrained(plan.pretrained, count, out / f"{stem}-data.yaml")
    machine = _machine()
    choices = choose(plan.source.sizes, plan.target.sizes, machine, spec)
    remarks = [*_remarks(plan)]
    experiment_name, runs = f"{stem}-cbst", f"runs/{stem}-cbst"
    draft = Draft(stem, {}, None, lists)
    experiment_file = out / draft.experiment_file
    commands = _commands(plan, out / draft.description_file if splits else None, experiment_file, runs)
    by_what = {what: shlex.join(command) for what, command in commands}
    if splits:
        draft.description = {
            "title": stem,
            "root": str(plan.found.root.resolve()),
            "doctor": by_what[_CHECK],
            "classes": classes,
            "ids": plan.ids or "trainId",
            "splits": splits,
        }
    label_space = plan.known_space if plan.source.group is None else "folder"
    draft.experiment = _experiment(experiment_name, label_space, data, choices, plan, machine, by_what)
    experiment = write_drafts(draft, out, overwrite=overwrite)
    paths = [out / file for file in draft.files()]
    left_out = experiment.open_source().left_out
    if left_out:
        remarks.append(
            f"{counted(left_out, 'image')} of {plan.source.name} without a label: left out (unlabelled: skip)"
        )
    remarks.append(
        f"about {_minutes(choices.minutes)} on this machine when it has nothing else to do; plan measures it"
    )
    return Written(paths, commands, remarks)


_CHECK, _MEASURE, _RUN, _SEE, _USE = (
    "checks files and labels",
    "says how long it takes",
    "trains and adapts",
    "shows whether it helped, and where: a page for the browser",
    "labels the target's images with the adapted network",
)


def _commands(plan: Plan, description: Path | None, experiment: Path, runs: str) -> list[tuple[str, list[str]]]:
    root = str(plan.found.root)
    doctor = ["cbst-mx", "doctor", "folder", root, "--description", str(description)]
    if description is None:
        doctor = ["cbst-mx", "doctor", plan.source.format, str(dict(plan.source.data)["root"])]
    images = [str(plan.target.folder)]
    if plan.target.group is not None:
        images = [os.path.commonpath([str(path.parent) for path in plan.target.group.images])]
        if all_images(images[0]).files != plan.target.group.images:  # masks, or other sets
            images = [str(plan.found.root / glob) for glob in plan.found.images_of([plan.target.group]).globs]
    return [
        (_CHECK, doctor),
        (_MEASURE, ["cbst-mx", "plan", str(experiment)]),
        (_RUN, ["cbst-mx", "run", str(experiment), "--out", runs]),
        (_SEE, ["cbst-mx", "report", runs, "--out", f"{runs}-report.html"]),
        (_USE, ["cbst-mx", "predict", *images, "--parameters", runs, "--out", f"{runs}-predictions"]),
    ]


def _classes(plan: Plan, stem: str) -> tuple[Any, int]:
    """Return what the description says of the classes, and their number."""
    if plan.known_space:
        return plan.known_space, LABEL_SPACES[plan.known_space].num_classes
    chosen: dict[str, dict[str, Any]] = {}
    in_colours = plan.contents is not None and plan.contents.in_colours
    # colours have no order of their own: the most frequent first
    ordered = sorted(plan.values, key=lambda one: -one.share) if in_colours else plan.values
    for one in ordered:
        if one.ignored:
            continue
        name = str(one.name)
        if name in chosen and in_colours:
            raise ConfigError(f"with colour masks each class must have one colour, got several for {name!r}")
        note = f"{100 * one.share:.1f} % of the pixels" + ("" if one.origin else "; name not known")
        chosen.setdefault(name, {"name": name, "colour": [*one.colour], "note": note})
    if not chosen:
        raise DataError("masks must have at least one value that is a class, got none that is not ignored")
    ids = None
    if not in_colours:
        ids = [[one.value, str(one.name), f"{100 * one.share:.1f} % of the pixels"] for one in plan.values]
    ignored = [[*one.colour] for one in plan.values if one.ignored] if in_colours else []
    return {"name": f"{stem}-{len(chosen)}", "list": [*chosen.values()], "ids": ids, "ignored": ignored}, len(chosen)


def _splits(plan: Plan, stem: str) -> tuple[dict[str, Listed], list[dict[str, Any]], dict[str, Any]]:
    """Return lists of images, splits of the description, and the experiment's data by key."""
    lists: dict[str, Listed] = {}
    splits: list[dict[str, Any]] = []
    description = f"{stem}-data.yaml"
    root = str(plan.found.root.resolve())

    def data(one: Candidate, split: str | None = None) -> dict[str, Any]:
        if one.group is None:
            return dict(one.data)
        return {"format": "folder", "root": root, "split": split or one.name, "description": description}

    def split(one: Candidate, note: str, labels: bool, names: Sequence[str] = (), name: str = "") -> None:
        if one.group is None:
            return
        rule = plan.found.images_of([one.group])
        skipped = one.count - one.labelled if labels and not names else 0
        chosen = names or rule.listed
        file = f"{stem}-{name or one.name}.txt" if chosen else None
        if file:
            lists[file] = Listed(chosen, rule.among or rule.names)
        pattern = plan.found.labels_of([one.group]) if labels else None
        splits.append({
            "name": name or one.name,
            "note": note,
            "globs": [*rule.globs],
            "list": file,
            "list_note": "" if names or not file else "the globs fit other files, too",
            "pattern": pattern.pattern if pattern else None,
            "replace": [[*pair] for pair in pattern.replace] if pattern else None,
            "skip": f"{counted(skipped, 'image')} without a label" if skipped else "",
        })  # fmt: skip

    kept, held = ([], []) if plan.evaluate else _held_out(plan)
    split(plan.source, "labelled: the source", True, kept)
    split(plan.target, "adapted to, without a look at labels", False)
    validation: dict[str, Any] = {}
    for one in plan.evaluate:
        name = f"{one.name}-labelled" if one is plan.target else ""
        split(one, "labelled: for evaluation only", True, name=name)
        key = "target" if not validation else one.name
        validation[key] = {"data": data(one, name), "note": ""}
    if held:
        name = f"{plan.source.name}-held-out"
        split(plan.source, f"labelled: one of {_HELD_OUT}, the last, for evaluation only", True, held, name)
        note = "labelled source images, held out: says whether the network forgets"
        validation["source"] = {"data": data(plan.source, name), "note": note}
    return lists, splits, {"source": data(plan.source), "target": data(plan.target), "validation": validation}


def _held_out(plan: Plan) -> tuple[list[str], list[str]]:
    """Return the names of the source images to train on and those to hold out, the last ones; empty where few."""
    group = plan.source.group
    if group is None or group.labelled < 4 * _FEWEST_HELD_OUT:
        why = "published data" if group is None else f"only {plan.source.labelled} labelled images"
        plan.remarks.append(f"no images to evaluate on, and none held out ({why}): rounds say what needs no labels")
        return [], []
    names = plan.found.images_of([group]).names
    order = sorted(range(len(group.images)), key=lambda place: group.images[place])
    named = [name for name, place in zip(names, order) if group.labels[place]]
    count = min(max(_FEWEST_HELD_OUT, len(named) // _HELD_OUT), _MOST_HELD_OUT)
    bare = len(group.images) - len(named)
    if bare:
        plan.remarks.append(f"{counted(bare, 'image')} of {plan.source.name} without a label: left out")
    plan.remarks.append(
        f"no labelled target images: the last {count} labelled images of {plan.source.name} are held out for evaluation"
    )
    return named[:-count], named[-count:]


def _pretrained(path: Path, classes: int, description: Path) -> Any:
    from cbst_mx.errors import CheckpointError
    from cbst_mx.networks.parameters import read_sidecar

    how = (
        f"cbst-mx import-weights {shlex.quote(str(path))} --network fcn8s --num-classes {classes} --label-space "
        f"{shlex.quote(str(description))} --out weights.params makes such a file (with the description that init "
        "writes without --pretrained)"
    )
    try:
        spec, _, _ = read_sidecar(path)
    except CheckpointError as error:
        raise ConfigError(f"--pretrained cannot be used: {error}; {how}") from error
    if spec.num_classes != classes:
        raise ConfigError(
            f"--pretrained must be of {classes} classes, as the masks have, got {spec.num_classes}; {how}"
        )
    return spec


def _machine() -> Machine:
    """Return what this machine has, as far as the process may use it."""
    from cbst_mx.cli.machine import memory

    gpus, bfloat16 = 0, False
    try:
        from symbols.backend import has_bfloat16, mx

        bfloat16, gpus = has_bfloat16(), mx.context.num_gpus() if Path("/dev/nvidia0").exists() else 0
    except (ImportError, OSError):  # files can be written without mxnet
        pass
    return Machine(cores(), memory(), gpus, bfloat16)


def _experiment(
    name: str,
    label_space: str,
    data: dict[str, Any],
    choices: Choices,
    plan: Plan,
    machine: Machine,
    commands: dict[str, str],
) -> dict[str, Any]:
    of = f"{machine.cores} cores, {machine.memory / 2**30:.0f} GB" + (f", {machine.gpus} GPUs" if machine.gpus else "")
    network = {"mean": None, "std": None, **choices.network}
    reasons = {key: choices.reasons.get(key, "") for key in ("crop", "iterations", "rounds", "long_side")}
    return {
        "title": name,
        "source_name": plan.source.name,
        "target_name": plan.target.name,
        "name": name,
        "machine": of,
        "plan": commands[_MEASURE],
        "run": commands[_RUN],
        "label_space": label_space,
        **data,
        "network": network,
        "pretrained": None if plan.pretrained is None else str(plan.pretrained.resolve()),
        "c": {**{key: getattr(choices, key) for key in choices.__dataclass_fields__}, "reasons": reasons},
    }


def _remarks(plan: Plan) -> list[str]:
    result = []
    groups = [one.group for one in (plan.source, plan.target, *plan.evaluate) if one.group is not None]
    turned = sum(group.turned for group in groups)
    if turned:
        result.append(
            f"{counted(turned, 'image')} with a rotation mark (EXIF), read as stored, perhaps lying on the side: "
            "docs/your-own-data.md says how to turn them"
        )
    sizes: Counter[tuple[int, int]] = sum((group.sizes for group in groups), Counter())
    largest = max((height * width for height, width in sizes), default=0)
    if largest > 4e6:
        result.append(
            f"images of up to {largest / 1e6:.0f} million pixels: most of the time goes into reading them; smaller "
            "copies (labels by the nearest pixel) train faster"
        )
    return result


def _minutes(minutes: float) -> str:
    if minutes < 1.5:
        return "a minute"
    return f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.0f} hours"
