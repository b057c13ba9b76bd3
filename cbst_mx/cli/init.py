"""The command ``init``: look at folders, ask what they do not say, and write the two files of a first experiment."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbst_mx.cli.base import FILE, FOLDER, Bars, Terminal, echo, print_table
from cbst_mx.cli.base import ask as question
from cbst_mx.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cbst_mx.cli.init_draft import Plan
    from cbst_mx.data.survey import Survey
    from cbst_mx.data.survey.roles import Candidate, Roles
    from cbst_mx.data.survey.values import Contents, Found

__all__ = ["COMMANDS"]


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, default=".", show_default="this folder", help="Where the files are written.")
@click.option("--name", help="Name of the experiment and beginning of the files' names. Default: that of FOLDER.")
@click.option("-y", "--yes", is_flag=True, help="Ask nothing: take what seems best, and say what was not known.")
@click.option("--overwrite", is_flag=True, help="Replace files of these names.")
@click.option("--source", help="Labelled images to learn from: the name of one of the sets that are found.")
@click.option("--target", help="Images to adapt to; their labels, if they have any, are not looked at.")
@click.option("--evaluate", multiple=True, help="Labelled images to measure on; can be repeated. none: hold some out.")
@click.option("--classes", type=FILE, help="List of the classes' names with ids or colours: text, CSV or JSON.")
@click.option(
    "--class",
    "class_names",
    multiple=True,
    metavar="VALUE=NAME",
    help="Name of an id (7=road) or colour (#804080=road), or ignore; can be repeated.",
)
@click.option("--exclude", multiple=True, metavar="PATH", help="Folder, file or glob below FOLDER to leave out.")
@click.option("--no-recognise", is_flag=True, help="Take layouts of published data (GTA5, Cityscapes) for one's own.")
@click.option("--pretrained", type=FILE, help="Parameters to start from, made by cbst-mx import-weights.")
@click.option("--masks", type=click.IntRange(1), help="Read only this many masks, spread evenly. Default: all.")
def init(
    folder: Path,
    out: Path,
    name: str | None,
    yes: bool,
    overwrite: bool,
    source: str | None,
    target: str | None,
    evaluate: tuple[str, ...],
    classes: Path | None,
    class_names: tuple[str, ...],
    exclude: tuple[str, ...],
    no_recognise: bool,
    pretrained: Path | None,
    masks: int | None,
) -> None:
    """Look at the photographs and masks in FOLDER and write both files of a first experiment.

    Finds which masks belong to which photographs, what values or colours they hold, and which images have no labels;
    asks what cannot be seen: names of the classes, and what is for what where several sets could be. Chooses crop,
    batch and iterations for the images and this machine. Writes OUT/NAME-data.yaml and OUT/NAME-cbst.yaml, with lists
    of images where globs are not enough; nothing else, and nothing in FOLDER. Ends with the commands to give next.
    """
    from cbst_mx.cli.init_draft import check_name, make_plan, write_plan
    from cbst_mx.data.survey import survey
    from cbst_mx.data.survey.roles import candidates

    given = _given_names(class_names)
    check_name(name or folder.resolve().name, out, overwrite=overwrite)  # before anything is asked
    with Bars(Terminal()) as bars:
        found = survey(folder, exclude=exclude, recognise=not no_recognise, progress=bars)
    sets = candidates(found)
    _show_sets(found, sets)
    if found.remarks and sets and not any(one.labelled for one in sets):
        raise DataError(f"no image has a label that fits: {'; '.join(found.remarks)}")
    measured = None if not evaluate else [one for one in evaluate if one != "none"]
    try:
        roles = _roles(sets, source, target, measured, ask=not yes)
        plan = make_plan(found, sets, roles, pretrained=pretrained)
        with Bars(Terminal()) as bars:
            plan.read_masks(masks, bars)
        if plan.contents is not None and not plan.known_space:
            plan.values = _name_classes(plan.contents, found, classes, given, ask=not yes)
    except click.Abort as error:
        raise ConfigError(
            "nothing is written, a question was not answered: --yes asks none, --help has an option for each answer"
        ) from error
    written = write_plan(plan, out, name or folder.resolve().name, overwrite=overwrite)
    for text in (*plan.remarks, *written.remarks):
        echo(f"note: {text}")
    _show_end(plan, written.files, written.commands)


def _given_names(options: tuple[str, ...]) -> dict[Any, str]:
    """Return the names of ids and colours that options give."""
    import re

    result: dict[Any, str] = {}
    for option in options:
        value, sign, name = option.partition("=")
        value, name = value.strip(), name.strip()
        colour = re.fullmatch("#?([0-9a-fA-F]{6})", value) if value.startswith("#") else None
        triple = re.fullmatch(r"(\d{1,3}),(\d{1,3}),(\d{1,3})", value)
        if not sign or not name or not (colour or triple or re.fullmatch(r"\d{1,5}", value)):
            raise click.BadParameter(
                f"must be an id or a colour, and a name, as 7=road or #804080=road, got {option!r}",
                param_hint="--class",
            )
        if colour:
            code = int(colour.group(1), 16)
            result[(code >> 16, code >> 8 & 255, code & 255)] = name
        else:
            result[tuple(map(int, triple.groups())) if triple else int(value)] = name
    return result


def _show_sets(found: Survey, sets: list[Candidate]) -> None:
    from cbst_mx.report.tables import plain_table

    table = plain_table(
        "set", "images", "labelled", "height x width", title=f"in {found.root}", words=["height x width"]
    )
    for one in sets:
        usual = [f"{height} x {width}" for (height, width), _ in one.sizes.most_common(2)]
        more = f" and {len(one.sizes) - 2} more" if len(one.sizes) > 2 else ""
        table.add_row(one.name, f"{one.count:,}", f"{one.labelled:,}", ", ".join(usual) + more)
    print_table(table)
    for data in found.published:
        echo(f"recognised: {data.root} has the layout of {data.format} (--no-recognise takes it for your own data)")
    for text in found.remarks:
        echo(f"note: {text}")


def _roles(
    sets: list[Candidate], source: str | None, target: str | None, evaluate: list[str] | None, *, ask: bool
) -> Roles:
    """Return what is for what, asking where several sets could be."""
    from cbst_mx.data.survey.roles import suggest

    roles = suggest(sets, source, target, evaluate)
    if ask and "target" in roles.open_questions:
        names = [one.name for one in sets if one.name != source]
        target = question("target, images to adapt to", roles.target, names)
        roles = suggest(sets, source, target, evaluate)
    labelled = [one.name for one in sets if one.labelled]
    if ask and "source" in roles.open_questions:
        names = [name for name in labelled if name != roles.target]
        source = question("source, labelled images to learn from", roles.source, names)
        roles = suggest(sets, source, target, evaluate)
    if ask and "evaluate" in roles.open_questions:
        names = ["none", *(name for name in labelled if name != roles.source)]
        default = roles.evaluate[0] if roles.evaluate else "none"
        answer = question("evaluation, labelled images to measure on", default, names)
        roles = suggest(sets, source, target, [one for one in (answer,) if one != "none"])
    for reason in roles.reasons:
        echo(reason)
    return roles


def _name_classes(
    contents: Contents, found: Survey, classes: Path | None, given: dict[Any, str], *, ask: bool
) -> tuple[Found, ...]:
    """Return the values of the masks with a name for each."""
    from dataclasses import replace

    from cbst_mx.data.survey.class_lists import ClassList, read_class_list
    from cbst_mx.data.survey.values import NO_CLASS, named

    unknown = [value for value in given if value not in {one.value for one in contents.values}]
    if unknown:
        shown = ", ".join(one.shown for one in contents.values)
        value = unknown[0]
        told = "#{:02x}{:02x}{:02x}".format(*value) if isinstance(value, tuple) else value
        raise DataError(f"--class {told} must be a value of the masks: {shown}")
    listing, origin = ClassList(), ""
    for path in [classes] if classes is not None else found.class_lists:
        try:
            read = read_class_list(path)
        except DataError:
            if classes is not None:
                raise
            continue
        if classes is not None or _fits(read, contents):
            listing, origin = read, path.name
            break
    values = []
    for one in named(contents, listing.names, origin, listing.order):
        if one.value in given:
            one = replace(one, name=given[one.value], origin="--class")
        default = one.name or (f"class-{one.value}" if isinstance(one.value, int) else f"colour-{one.shown[1:]}")
        if ask and one.value not in given and not (origin and one.name):
            what = f"{one.shown}, {100 * one.share:.1f} % of the pixels, in {one.masks} of {contents.read} masks: name"
            name = question(what, default)
            one = replace(one, name=name, origin="" if name == default and not one.name else "answered")
        elif one.name is None:
            one = replace(one, name=default)
        values.append(replace(one, name="ignore") if str(one.name).lower() in NO_CLASS else one)
    return tuple(values)


def _fits(listing: Any, contents: Contents) -> bool:
    """Return whether a list that lies beside the masks names most of their values."""
    named = sum(one.value in listing.names for one in contents.values)
    ordered = bool(listing.order) and not contents.in_colours and len(listing.order) >= len(contents.values) - 1
    return ordered or (named >= 2 and named >= len(contents.values) - 1)


def _show_end(plan: Plan, files: list[Path], commands: list[tuple[str, list[str]]]) -> None:
    from cbst_mx.report.tables import plain_table

    if plan.values:
        columns = ("value", "pixels %", "masks", "class", "known from")
        table = plain_table(*columns, title="values of the masks", words=["class", "known from"])
        for one in plan.values:
            table.add_row(
                one.shown, f"{100 * one.share:.2f}", f"{one.masks:,}", str(one.name), one.origin or "not known"
            )
        print_table(table)
    unknown = [one for one in plan.values if not one.origin]
    if unknown:
        echo(
            f"names not known: {len(unknown)} of {len(plan.values)}; change them in {files[-2]}, or give --class "
            "VALUE=NAME or --classes FILE (results are the same, only their tables are harder to read)"
        )
    for path in files:
        echo(f"written: {path}")
    echo("\nnext:")
    for what, command in commands:
        echo(f"  # {what}")
        echo(f"  {shlex.join(command)}")


COMMANDS = (init,)
