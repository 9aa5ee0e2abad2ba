"""docs/cli.md names every verb. That what pages name exists: tests/docs."""

from pathlib import Path

import typer

from spo_verl.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"


def test_every_verb_is_in_the_page():
    text = (DOCS / "cli.md").read_text()
    root = typer.main.get_command(app)
    groups = [name for name, command in root.commands.items() if hasattr(command, "commands")]
    inner = [f"{group} {name}" for group in groups for name in root.commands[group].commands]
    for verb in [*root.commands, *inner]:
        assert f"spo-verl {verb}" in text, verb
