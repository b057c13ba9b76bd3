"""The table of what the inputs have cost, at the end of a test run."""

from __future__ import annotations

from tests.fuzz import harness


def pytest_terminal_summary(terminalreporter):
    if harness.SEEN and (harness.LONG or terminalreporter.verbosity > 0):
        terminalreporter.section("what hostile inputs have cost")
        for line in harness.table():
            terminalreporter.write_line(line)
