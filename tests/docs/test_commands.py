"""Every command in a page composes or parses; every key that a page names exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from spo_verl.config import known_keys
from spo_verl.training.checks import paper_keys
from tests.docs.commands import (
    Request,
    commands,
    examine_all,
    keys_in,
    main_ppo_arguments,
    request,
    spo_verl_lines,
    wrong_with,
)
from tests.docs.pages import DOCS, PAGES, REPOSITORY, blocks, inline_code, name_of, scripts, table_rows

pytestmark = pytest.mark.long

RECIPE_PAGE, OWN_RECIPE_PAGE = DOCS / "howto-reference-recipe.md", DOCS / "howto-your-recipe.md"
MAPPINGS = ("spo.sampling.quota",)  # settings below which the names are the reader's own
STATUSES = ("exercised", "composes", "refused")
WHOLE_RUN = [
    "+spo=paper",
    "data.train_files=train.parquet",
    "data.val_files=test.parquet",
    "data.train_batch_size=1024",
    "actor_rollout_ref.model.path=org/model",
    "actor_rollout_ref.actor.ppo_mini_batch_size=128",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
]


def launches(folder: Path) -> dict[str, tuple[Request, dict[str, str]]]:
    """ "page: command" -> what to compose and its environment; the pages' files are written into ``folder``."""
    found = {}
    for page in PAGES:
        text = page.read_text()
        for block in blocks(text, "yaml"):
            if block.file:
                (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.file).write_text(block.text)
        for script in scripts(text):
            for command in commands(script):
                arguments = main_ppo_arguments(command)
                if arguments is not None:
                    asked = request(arguments, whole=not command.partial, folder=folder)
                    found[f"{name_of(page)}: {command}"] = (asked, command.environment)
    return found


def status_rows() -> dict[str, tuple[str, list[str]]]:
    """Line of the lists of what has been run -> its list's status and its overrides."""
    [section] = re.findall(r"^## What has been run.*?^Also:$", OWN_RECIPE_PAGE.read_text(), re.MULTILINE | re.DOTALL)
    rows = {}
    for status, items in re.findall(r"^(\w+)[^\n]*\n\n((?:- [^\n]*\n(?:  [^\n]*\n)*)+)", section, re.MULTILINE):
        for item in items.removeprefix("- ").split("\n- "):
            what, _, overrides = re.sub(r"\s+", " ", item).partition(": `")
            assert what not in rows, what
            rows[what] = (status.lower(), inline_code(f"`{overrides}"))
    return rows


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, Any]:
    """Everything that the pages say composes, composed: one child process, and one more for commands on a CPU."""
    asked = launches(tmp_path_factory.mktemp("files"))
    asked |= {
        f"row: {what}": (Request([*WHOLE_RUN, *rest], whole=True), {}) for what, (_, rest) in status_rows().items()
    }
    asked |= {"stock": (Request([]), {}), "megatron": (Request(["model_engine=megatron"]), {})}
    found: dict[str, Any] = {}
    for platform in sorted({environment.get("VERL_PLATFORM", "") for _, environment in asked.values()}):
        mine = {name: one for name, (one, env) in asked.items() if env.get("VERL_PLATFORM", "") == platform}
        environment = {"VERL_PLATFORM": platform} if platform else {}
        found |= dict(zip(mine, examine_all(list(mine.values()), **environment), strict=True))
    return found


def test_every_launch_in_a_page_composes_and_is_accepted(answers):
    found = {name: answer for name, answer in answers.items() if "main_ppo" in name}
    assert len(found) >= 15
    for name, answer in found.items():
        other = "algorithm.adv_estimator=" in name and "algorithm.adv_estimator=spo" not in name
        problems = [one for one in answer["problems"] if not (other and one.startswith("algorithm.adv_estimator="))]
        assert problems == [], name


def test_the_status_of_every_row_holds(answers):
    rows = status_rows()
    assert len(rows) > 25
    assert {status for status, _ in rows.values()} == set(STATUSES)
    for what, (status, overrides) in rows.items():
        assert status in STATUSES, f"{what}: {status}"
        assert overrides, what
        problems = answers[f"row: {what}"]["problems"]
        assert bool(problems) == (status == "refused"), f"{what}: {problems}"
        assert not [one for one in problems if "Could not override" in one], f"{what}: {problems}"


def test_the_table_of_what_the_preset_sets(answers):
    text = OWN_RECIPE_PAGE.read_text()
    rows = table_rows(text, "verl's key", "verl's default", "`+spo=paper`")
    stock = OmegaConf.create(answers["stock"]["config"])
    expected = {key: (str(OmegaConf.select(stock, key)), str(value)) for key, value in paper_keys().items()}
    changed = {key: pair for key, pair in expected.items() if pair[0] != pair[1]}
    assert {key.strip("`"): (default, preset) for key, default, preset in rows} == changed
    [kept] = [part for part in text.split("\n\n") if part.startswith("Set to verl's default")]
    assert set(inline_code(kept)) == expected.keys() - changed.keys()


def test_the_file_of_a_recipe_of_ones_own_wins_over_the_preset_that_it_names(answers):
    [mine] = [answer["config"] for name, answer in answers.items() if "--config-name my_recipe" in name]
    assert mine["algorithm"]["adv_estimator"] == "spo"
    assert mine["actor_rollout_ref"]["actor"]["clip_ratio_high"] == 0.3
    assert mine["actor_rollout_ref"]["actor"]["clip_ratio_c"] == 10.0
    assert mine["spo"]["forgetting"]["half_life"] == 0.1


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_spo_verl_lines_name_verbs_and_options_that_exist(page):
    for command in spo_verl_lines(page.read_text()):
        assert wrong_with(command) is None, f"{command}: {wrong_with(command)}"


def test_the_pages_have_spo_verl_lines():
    assert sum(1 for page in PAGES for _ in spo_verl_lines(page.read_text())) > 30


def has(config: dict[str, Any], key: str) -> bool:
    """Whether a configuration, not resolved, has this key."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def unknown_keys(text: str, configs: list[dict[str, Any]]) -> list[str]:
    """The keys that a page names below a section of verl's or ``spo``, and that are in none of the configurations."""
    unknown = []
    for key in sorted(keys_in(text)):
        root = key.partition(".")[0]
        if root == "spo":
            found = any(name == key or name.startswith(f"{key}.") for name in known_keys())
            found = found or key.startswith(tuple(f"{name}." for name in MAPPINGS))
        else:
            is_file = re.search(r"\.(py|md|pt|json|yaml|parquet|sh|txt|jsonl|log)$", key)
            found = bool(is_file) or root not in configs[0] or any(has(config, key) for config in configs)
        unknown += [] if found else [key]
    return unknown


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent in (DOCS, REPOSITORY)], ids=name_of)
def test_keys_that_a_page_names_exist(page, answers):
    unknown = unknown_keys(page.read_text(), [answers[name]["config"] for name in ("stock", "megatron")])
    if page == RECIPE_PAGE:
        unknown = [key for key in unknown if not key.startswith("trainer.spo.") and key != "trainer.debug"]
    assert unknown == []


def test_keys_that_do_not_exist_are_found():
    config = {"data": {"seed": None}, "trainer": {}}
    text = "`data.seed=1` `spo.seed` `spo.reward` `spo.sampling.quota.math` `data.pt` `other.key` "
    text += "`data.sead` `+trainer.foo` `spo.seet=1` `spo.seed.x`"
    assert unknown_keys(text, [config]) == ["data.sead", "spo.seed.x", "spo.seet", "trainer.foo"]


def test_the_merge_command_is_what_verl_takes(monkeypatch):
    from verl.model_merger.base_model_merger import parse_args

    found = [
        command.words[3:]
        for block in blocks((DOCS / "checkpoints.md").read_text(), "bash")
        for command in commands(block.text)
        if command.words[:3] == ["python", "-m", "verl.model_merger"]
    ]
    assert found
    for words in found:
        monkeypatch.setattr(sys, "argv", ["model_merger", *words])
        parsed = parse_args()
        assert (parsed.operation, parsed.backend) == ("merge", "fsdp")
