"""The report: one page that opens anywhere, of what one or several runs say.

Everything is inside the file: styles, scripts, Plotly's script from its wheel, pictures as ``data:`` addresses. A rule
of the page itself (Content-Security-Policy) lets nothing be fetched, and no script run but those whose digests it has.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup  # of Jinja2

import cbst_mx
from cbst_mx.data import LabelledImageSet
from cbst_mx.errors import ConfigError
from cbst_mx.evaluation.run_settings import read_settings_of
from cbst_mx.evaluation.shown import TARGET, Shown
from cbst_mx.files import write_text
from cbst_mx.report import sections
from cbst_mx.report.charts import gain_chart, kept_chart, miou_chart, reliability_chart, training_charts
from cbst_mx.report.pictures import draw_pictures, open_sets
from cbst_mx.report.story import SOURCE, Method, Story, read_story

__all__ = [
    "IMAGES",
    "Page",
    "PlotlyMissingError",
    "build_page",
    "plotly_script",
    "render_index",
    "render_problem",
    "write_report",
]

IMAGES = 12  #: images that are shown where nothing else is asked for


class PlotlyMissingError(ConfigError):
    """Plotly, which reports need, is not installed."""


class Page(NamedTuple):
    """A report.

    Attributes
    ----------
    html : str
        The page.
    answers : list of str
        The sentences it opens with.
    missing : list of str
        What it had to leave out, and why.
    """

    html: str
    answers: list[str]
    missing: list[str]


def write_report(folders: Sequence[Path], out: Path, **options: Any) -> Page:
    """Write a report on runs.

    Parameters
    ----------
    folders : sequence of Path
        Each a run folder, or a folder of runs.
    out : Path
        The ``.html`` file.
    **options
        Keyword arguments of :func:`build_page`.

    Raises
    ------
    CBSTError
        If a run cannot be read, or Plotly is not installed.
    """
    page = build_page(folders, **options)
    write_text(out, page.html)
    return page


def build_page(
    folders: Sequence[Path],
    *,
    name: str | None = None,
    images: int = IMAGES,
    data_root: Path | None = None,
    shown: Mapping[Path, Mapping[int, Mapping[str, Shown]]] | None = None,
    live: str | None = None,
) -> Page:
    """Build a report on runs.

    Parameters
    ----------
    folders : sequence of Path
        Each a run folder, or a folder of runs. Runs that differ in their seeds only are one method.
    name : str, optional
        The validation set; by default the one that the first run names first.
    images : int
        Images of the validation set in pictures at most, 0 to 20; of the target half as many.
    data_root : Path, optional
        Folder that relative data roots are in, instead of the one in ``CBST_DATA``.
    shown : mapping, optional
        Run folder, stage and validation set to what is shown of a network, where the run itself has not kept it.
    live : str, optional
        Where the page asks for its state to load itself again; for pages that are served.

    Raises
    ------
    CBSTError
        If a run cannot be read, or Plotly is not installed.
    """
    if not 0 <= images <= 20:
        raise ConfigError(f"images must be from 0 to 20, got {images}")
    story = read_story(folders, name=name)
    kept = {method.title: _kept(story, number, shown or {}) for number, method in enumerate(story.methods)}
    first = story.adapted[0] if story.adapted else story.methods[0]
    validation, target, missing = open_sets(first.first, story.name, data_root) if images else (None, None, [])
    seen = target if story.name is None else validation  # what the networks' predictions are of
    networks = {method.title: kept[method.title] for method in story.adapted if kept[method.title]}
    if not story.adapted and kept[first.title]:
        networks = {SOURCE: kept[first.title]}
    if seen is not None and not networks and any(method.stages for method in story.methods):
        missing.append(
            "Pictures of predictions are left out: these runs are of an earlier version, which kept none; --predict "
            "makes them."
        )
    runs = {method.title: method.first for method in story.adapted}
    pictures = draw_pictures(seen, networks, target, runs, story.space, images=images)
    parts = [
        _part(number, method, kept[method.title], validation) for number, method in enumerate(story.adapted or [first])
    ]
    charts = [gain_chart(story), miou_chart(story), reliability_chart(_curves(story, kept))]
    charts += [chart for part in parts for chart in part["charts"]]
    drawn = [chart for chart in charts if chart is not None]
    context: dict[str, Any] = {
        "title": ", ".join(method.title for method in story.methods),
        "answers": story.answers(),
        "story": story,
        "first": first,
        "missing": missing,
        "pictured": [row["name"] for row in pictures["predictions"]],
        "charts": {chart.key: chart for chart in drawn},
        "pictures": pictures,
        "kept_images": max((len(one.predictions) for one in kept[first.title].values()), default=0),
        "legend": list(
            zip(story.space.names, ["#{:02x}{:02x}{:02x}".format(*colour) for colour in story.space.palette])
        ),
        "methods": sections.method_rows(story),
        "classes": sections.class_grid(story),
        "parts": parts,
        "confusion": sections.confusion_grids(story),
        "facts": sections.facts(story),
        "experiment": yaml.safe_dump(first.first.settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "settings": read_settings_of(first.first),
        "smoke": first.first.settings.smoke,
        "made": datetime.now(timezone.utc).isoformat(" ", "minutes"),
        "version": cbst_mx.__version__,
        "live": live,
    }
    data = {"charts": [chart.drawing() for chart in drawn], "pictures": pictures}
    return Page(_render(context, data), context["answers"], missing)


def _part(
    number: int, method: Method, kept: Mapping[int, Shown], validation: LabelledImageSet | None
) -> dict[str, Any]:
    """Return what is told of each method by itself, by its first run."""
    return {
        "key": number,
        "title": f"{method.title}, seed {method.first.settings.seed}",
        "charts": [kept_chart(method, number), *training_charts(method, number)],
        "thresholds": sections.threshold_grid(method),
        "shares": sections.share_grid(method),
        "kept": sections.kept_grid(method),
        "moves": sections.moves_grid(validation, kept),
        "images": sections.image_rows(method),
        "guard": sections.guard_rows(method),
        "label_free": sections.label_free_grid(method),
    }


def plotly_script() -> str:
    """Return Plotly's script, from its wheel.

    Raises
    ------
    PlotlyMissingError
        If it is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]
    except ImportError as error:
        raise PlotlyMissingError(
            "reports need plotly, which is not installed: pip install 'cbst_mx[report]'"
        ) from error
    return str(get_plotlyjs())


def _kept(story: Story, number: int, given: Mapping[Path, Mapping[int, Mapping[str, Shown]]]) -> dict[int, Shown]:
    """Return what is shown of the first run of a method, by stage."""
    method = story.methods[number]
    name = TARGET if story.name is None else story.name
    found = {}
    for stage in method.stages:
        sets = method.first.shown(stage) or given.get(method.first.folder.path, {}).get(stage, {})
        if name in sets:
            found[stage] = sets[name]
    return found


def _curves(story: Story, kept: Mapping[str, Mapping[int, Shown]]) -> list[tuple[str, Shown]]:
    """Return what the reliability of networks is drawn from: source-only, and the last stage of every method."""
    return [
        (title, kept[method.title][stage]) for title, method, stage in story.columns() if stage in kept[method.title]
    ]


def _render(context: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    environment = _environment()
    scripts = [plotly_script(), environment.get_template("report.js").render()]
    if context["live"] is not None:
        scripts.append(environment.get_template("live.js").render())
    return environment.get_template("report.html").render(
        **context,
        style=Markup(environment.get_template("report.css").render()),
        scripts=[Markup(script) for script in scripts],
        digests=_digests(scripts),
        data=_as_script_data(data),
    )


def render_index(rows: Sequence[Mapping[str, Any]], *, live: str) -> str:
    """Return the page that lists runs, for the server.

    Parameters
    ----------
    rows : sequence of mapping
        What is said of each run.
    live : str
        Where the page asks whether there is something new.
    """
    environment = _environment()
    script = environment.get_template("live.js").render()
    return environment.get_template("index.html").render(
        rows=rows,
        live=live,
        style=Markup(environment.get_template("report.css").render()),
        script=Markup(script),
        digests=_digests([script]),
    )


def render_problem(sentence: str) -> str:
    """Return a page that says what is wrong, with the way back to the list, for the server."""
    environment = _environment()
    style = Markup(environment.get_template("report.css").render())
    return environment.get_template("problem.html").render(sentence=sentence, style=style)


def _digests(scripts: Sequence[str]) -> str:
    """Return what a page's rule says of the scripts that may run."""
    found = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in found)


def _as_script_data(data: Mapping[str, Any]) -> Markup:
    """Return JSON that can stand inside an element: no character of it ends the element or begins another."""
    text = json.dumps(data, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cbst_mx.report"),
        autoescape=lambda name: name is None or name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(sections.FILTERS)
    return environment
