"""docs/cli.md names every verb, and each verb is there once. That what pages name exists: tests/docs."""

from pathlib import Path

import typer

from spo_verl.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"


def test_every_verb_is_in_the_page():
    text = (DOCS / "cli.md").read_text()
    root = typer.main.get_command(app)
    for verb, command in root.commands.items():
        within = f" {'|'.join(inner)}`" if (inner := getattr(command, "commands", None)) else ""
        assert f"`spo-verl {verb}{within}" in text, verb


def verbs_of(registered, before="spo-verl"):
    """Every verb of an app and of its groups, as often as it was registered: typer runs the last of two in silence."""
    for one in registered.registered_commands:
        yield f"{before} {one.name or one.callback.__name__}"
    for group in registered.registered_groups:
        yield f"{before} {group.name}"
        yield from verbs_of(group.typer_instance, f"{before} {group.name}")


def test_every_verb_is_registered_once():
    found = list(verbs_of(app))
    assert {"spo-verl evaluate", "spo-verl data", "spo-verl values estimate"} <= set(found)
    assert sorted(found) == sorted(set(found))
