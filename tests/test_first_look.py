"""The first look: what an experiment names is found, or named in a sentence, before anything is trained."""

from __future__ import annotations

import pytest

from cbst_mx.errors import ConfigError
from cbst_mx.rounds.first_look import look
from tests.tiny import experiment, write_scenes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", source=2, source_val=1, target=3, target_val=1)


def test_images_are_counted(data):
    assert look(experiment(), data_root=data) == {
        "source": 2,
        "target": 3,
        "validation target": 1,
        "validation source": 1,
    }


def test_parameters_of_a_source_training_are_needed_where_it_is_this_experiments(data):
    with pytest.raises(ConfigError, match="^parameters .*none.params do not exist$"):
        look(experiment("pretrained=none.params"), data_root=data)
    assert look(experiment("pretrained=none.params", "starts_from=other"), data_root=data)
    given = ("initial_parameters=none.params", "source_training=null", "starts_from=other")
    with pytest.raises(ConfigError, match="^parameters none.params do not exist$"):
        look(experiment(*given), data_root=data)
