"""The page lists every setting with its default, and its example is a valid entry."""

import re
from pathlib import Path

import pytest
import yaml

from spo_verl.agent import config
from spo_verl.cli.settings_table import settings_of

PAGE = (Path(__file__).parents[2] / "docs" / "tool-integrated-reasoning.md").read_text()


def described(cls, prefix):
    """The plain settings of a class; the backend's own are listed by themselves."""
    found = []
    settings = settings_of(cls, prefix)
    while True:
        try:
            found.append(next(settings))
        except (StopIteration, TypeError):  # a setting that is one of several classes ends the generator
            return found


@pytest.mark.parametrize(
    ("cls", "prefix"),
    [
        (config.LoopConfig, "loop"),
        (config.EmbeddedConfig, "interpreter"),
        (config.SandboxFusionConfig, "interpreter"),
    ],
)
def test_every_setting_is_in_its_list(cls, prefix):
    settings = [setting for setting in described(cls, prefix) if setting.name != "interpreter.backend"]
    assert len(settings) >= 5
    unwrapped = re.sub(r"\n +", " ", PAGE)
    for setting in settings:
        meaning = setting.meaning.replace("``", "`")
        name = setting.name.removeprefix("loop.")
        assert f"- `{name}` ({setting.default}): {meaning}" in unwrapped


def test_the_examples_are_valid_entries():
    blocks = re.findall(r"```yaml\n# file: agent.yaml\n(.*?)```", PAGE, re.DOTALL)
    indented = re.findall(r"\n((?:    (?:- name|  ).*\n)+)", PAGE)
    entries = [yaml.safe_load(block)[0] for block in [*blocks, *(re.sub("(?m)^    ", "", text) for text in indented)]]
    assert len(entries) == 2
    for entry in entries:
        assert entry.pop("name") == "code_interpreter"
        assert entry.pop("_target_") == "spo_verl.agent.loop.CodeInterpreterLoop"
        config.parse(entry)


def test_every_limit_has_its_line():
    for limit in config.LIMITS:
        assert f"- `{limit}`: " in PAGE
