"""Command ``schema``: JSON schemas of the YAML files, for editors."""

from __future__ import annotations

import json

import click

from cbst_mx.cli.base import choice, echo

__all__ = ["COMMANDS"]


@click.command()
@click.argument("kind", type=choice(["experiment", "data"]))
def schema(kind: str) -> None:
    """Print the JSON schema of experiment files, or of the files that describe data.

    Editors that read it complete keys, show what they mean, and mark what is wrong. Reads and writes no file: redirect
    it into one, and name that in the first line of the YAML file, "# yaml-language-server: $schema=experiment.json".
    """
    from cbst_mx.config.schema import json_schema

    echo(json.dumps(json_schema(kind), indent=2))


COMMANDS = (schema,)
