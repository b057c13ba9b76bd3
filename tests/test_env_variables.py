"""Environment variables for a while."""

from __future__ import annotations

import os

import pytest

from cbst_mx.env_variables import environment_variable

NAME = "CBST_MX_TEST_VARIABLE"


@pytest.mark.parametrize("before", [None, "", "old"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_value_holds_inside_the_block_and_what_was_there_comes_back(before, fails, monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    if before is not None:
        monkeypatch.setenv(NAME, before)
    seen = []

    def use():
        with environment_variable(NAME, "new"):
            seen.append(os.environ[NAME])
            if fails:
                raise KeyError(NAME)

    if fails:
        with pytest.raises(KeyError):
            use()
    else:
        use()
    assert seen == ["new"]
    assert os.environ.get(NAME) == before


def test_a_block_may_remove_the_variable_itself(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    with environment_variable(NAME, "new"):
        del os.environ[NAME]
    assert NAME not in os.environ
