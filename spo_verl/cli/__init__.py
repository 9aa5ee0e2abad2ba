"""``spo-verl``, the command line: one module per verb.

| module | what it holds |
|---|---|
| ``app`` | the verbs put together |
| ``output`` | ``--json``, ``--debug``, exit status and errors, the same for every verb |
| ``layout`` | tables and paragraphs at any width, nothing cut |
| ``doctor`` with ``health`` | what is installed, and whether a run could start on this machine |
| ``config`` | the configuration of a run before it is started, by :mod:`spo_verl.launching` |
| ``settings`` with ``settings_table`` | every setting, read from the dataclasses |
| ``values`` and ``estimate`` | offline values: import, merge, show, estimate |
| ``data`` | training and evaluation data: list, prepare, check, overlap |
| ``plan`` | what a recipe needs, from :mod:`spo_verl.planning` |
| ``recipes`` | the recipes of the package: listed, shown, copied |
| ``rehearse`` | a recipe or a command line run for two small steps, by :mod:`spo_verl.rehearsal` |
| ``tracker`` with ``tracker_text``, ``prompt_lists`` | prompts of a run, by :mod:`spo_verl.history` |
| ``watch`` with ``watch_text`` | a run while it trains |
| ``diff``, ``export`` | two runs compared; a record as one file |
| ``report`` | runs as an HTML page, and their curves as a picture, by :mod:`spo_verl.reporting` |
| ``evaluate`` | metrics of generations, by :mod:`spo_verl.evaluation` |
| ``quickstart`` | forwards to :mod:`spo_verl.quickstart` |

Modules import typer and the standard library only; what is heavy is imported inside the verb that needs it.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script ``spo-verl``."""
    from spo_verl.cli.app import app
    from spo_verl.cli.output import contained

    contained(lambda: app(prog_name="spo-verl"))
