"""What the doctor notes: findings and their remedies, the parts of a data set, and the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence, Tuple, Union

from cbst_mx.data.datasets import ImageSet, LabelledImageSet
from cbst_mx.data.image_files import PathLike
from cbst_mx.label_space import LabelSpace
from cbst_mx.messages import listed

__all__ = [
    "ARE",
    "DO",
    "HAVE",
    "HOLD",
    "Examination",
    "Finding",
    "Mend",
    "Part",
    "Remedy",
    "Report",
    "Verb",
    "counted",
    "fix_text",
]

# Verbs after one file and after several.
Verb = Tuple[str, str]
ARE: Verb = ("is", "are")
DO: Verb = ("does", "do")
HAVE: Verb = ("has", "have")
HOLD: Verb = ("holds", "hold")


@dataclass(frozen=True)
class Remedy:
    """Steps that mend one file, and several."""

    one: str
    many: str


# A sentence, a sentence each for one and for several, or the command that brings back the files it is given.
Mend = Union[str, Remedy, Callable[[Sequence[Path]], str]]
_UNPACK = "unpack them again"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    ``severity`` is "error", "warning" or "note"; ``what`` a sentence without a full stop; ``where`` the path, and how
    many more; ``fix`` the command or the step that mends it, empty for a note.
    """

    severity: str
    what: str
    where: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """Result of an examination.

    ``images`` counts the images of each part, ``examined`` those whose pixels were read; ``frequencies`` gives each
    class's share of the labelled pixels read (they sum to 1) and ``presence`` the number of label maps it occurs in,
    both empty where no label was read; ``ignored`` is the share of pixels that count nowhere.
    """

    dataset: str
    root: str
    findings: tuple[Finding, ...]
    images: Mapping[str, int]
    examined: int
    labels_read: int
    frequencies: Mapping[str, float]
    presence: Mapping[str, int]
    ignored: float

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "dataset": self.dataset,
            "root": self.root,
            "ok": self.ok,
            "findings": [vars(finding) for finding in self.findings],
            "images": dict(self.images),
            "examined": self.examined,
            "labels_read": self.labels_read,
            "frequencies": dict(self.frequencies),
            "presence": dict(self.presence),
            "ignored": self.ignored,
        }


@dataclass
class Part:
    """Images that belong together, with the label file of each, or without labels.

    ``size`` and ``near`` say how large the publisher's images are: (height, width), and other heights that occur in
    the original. ``label_kinds`` are the forms of its label files, (colour, bits). The ``mend_`` fields say what mends
    a broken image, a broken label, and a label or an image of another size.
    """

    name: str
    images: ImageSet
    size: tuple[int, int] | None = None
    near: range = range(0)
    label_kinds: tuple[tuple[str, int], ...] = (("palette", 8), ("grey", 8))
    mend_image: Mend = _UNPACK
    mend_label: Mend = _UNPACK
    mend_size: str = ""
    count: int = 0

    @property
    def labels(self) -> tuple[Path, ...]:
        """Label files, none where there are no labels."""
        return self.images.label_paths if isinstance(self.images, LabelledImageSet) else ()

    @property
    def title(self) -> str:
        """Name of the part after "of ", empty where a data set has only one."""
        return f" of {self.name}" if self.name else ""


@dataclass
class Examination:
    """Findings and parts of the data in ``root`` while they are gathered.

    ``listed`` says that only the images of a list are examined.
    """

    root: Path
    listed: bool = False
    label_space: LabelSpace | None = None
    findings: list[Finding] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def add(self, severity: str, what: str, where: PathLike, fix: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(severity, what, str(where), fix))

    def add_files(self, severity: str, noun: str, paths: Sequence[Path], verb: Verb, what: str, mend: Mend) -> None:
        """Add one finding for several files, if there are any: "3 labels", the verb, `what`."""
        if paths:
            sentence = f"{counted(len(paths), noun)} {verb[len(paths) > 1]} {what}"
            self.add(severity, sentence, listed(paths, 1), fix_text(mend, paths))


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, such as "1 label" or "2,500 labels"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def fix_text(mend: Mend, paths: Sequence[Path]) -> str:
    """Return what mends some files."""
    if isinstance(mend, Remedy):
        return mend.one if len(paths) == 1 else mend.many
    return mend if isinstance(mend, str) else mend(paths)
