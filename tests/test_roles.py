"""What is for what: names and labels decide, options before both, and what could be otherwise is a question."""

from __future__ import annotations

from collections import Counter

import pytest

from cbst_mx.data.survey.roles import Candidate, suggest
from cbst_mx.errors import DataError


def sets(**counts):
    """Return candidates: name = (images, labelled)."""
    return [
        Candidate(name.replace("_", "-"), count, labelled, Counter({(60, 80): count}))
        for name, (count, labelled) in counts.items()
    ]


@pytest.mark.parametrize(
    ("found", "source", "target", "evaluate", "questions"),
    [
        (sets(day=(9, 9), dusk=(5, 0)), "day", "dusk", (), ()),
        (sets(day=(9, 9), dusk=(5, 0), dusk_check=(3, 3)), "day", "dusk", ("dusk-check",), ("source", "evaluate")),
        (sets(a=(9, 9), b=(5, 0), c=(20, 0)), "a", "c", (), ("target",)),
        (sets(a=(9, 9), real=(5, 0), c=(20, 0)), "a", "real", (), ("target",)),
        (sets(train=(9, 9), val=(3, 3), photos=(5, 0)), "train", "photos", ("val",), ("source", "evaluate")),
        (sets(day=(9, 9), night=(5, 5)), "day", "night", ("night",), ("target",)),
        (sets(a=(9, 9), b=(5, 5)), "a", "b", ("b",), ("target",)),
    ],
)
def test_suggestions(found, source, target, evaluate, questions):
    roles = suggest(found)
    assert (roles.source, roles.target, roles.evaluate, roles.open_questions) == (source, target, evaluate, questions)
    assert len(roles.reasons) == 2 + bool(evaluate)


def test_what_is_given_stays():
    found = sets(day=(9, 9), dusk=(5, 0), dusk_check=(3, 3))
    roles = suggest(found, source="dusk-check", target="day", evaluate=["day"])
    assert (roles.source, roles.target, roles.evaluate, roles.open_questions) == ("dusk-check", "day", ("day",), ())


@pytest.mark.parametrize(
    ("found", "options", "sentence"),
    [
        (sets(a=(5, 0), b=(3, 0)), {}, "no image has a label"),
        (sets(a=(5, 5)), {}, "all images have labels and are of one kind"),
        (sets(a=(5, 5), b=(3, 0)), {"target": "a"}, "no labelled images are left to learn from"),
        (sets(a=(5, 5), b=(3, 0)), {"target": "c"}, "--target must be one of a, b, got 'c'"),
        (sets(a=(5, 5), b=(3, 0)), {"source": "b"}, "--source b must have labels"),
        (sets(a=(5, 5), b=(3, 0)), {"source": "a", "target": "a"}, "must be different images"),
    ],
)
def test_refusals(found, options, sentence):
    with pytest.raises(DataError, match=sentence):
        suggest(found, **options)
