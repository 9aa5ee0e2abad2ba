"""The parity block against the recipes; commands in the pages; nothing in the result tables that was not run."""

import re
import shlex

import pytest
import yaml

from spo_verl.launching.composition import problems_of
from tests.docs.pages import DOCS, blocks, links, table_rows
from tests.recipes.helpers import RECIPES, REPOSITORY, ROOT, composed, values

pytestmark = pytest.mark.long

PAGE = DOCS / "reproduction.md"
OURS = "\n".join(
    file.read_text() for file in [*ROOT.rglob("*.yaml"), *(REPOSITORY / "spo_verl" / "conf" / "spo").glob("*.yaml")]
)
"""The recipes and presets: a value of the block is one of these, not a default of verl's."""
PAGES = [*DOCS.glob("*.md"), *ROOT.rglob("README.md")]


def parity():
    """The page's block of recipes and their values: (recipe, key, value), lines with a key."""
    [block] = [block.text for block in blocks(PAGE.read_text(), "yaml") if block.text.startswith("# parity\n")]
    rows = [(name, key, value) for name, keys in yaml.safe_load(block).items() for key, value in keys.items()]
    return rows, re.findall(r"^  [\w.]+:", block, re.MULTILINE)


def shown(value):
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def test_the_block_has_every_value_of_the_paper():
    rows, lines = parity()
    assert len(rows) == len(lines) >= 75  # none is written twice
    assert not [name for name, _, _ in rows if name not in RECIPES]


@pytest.mark.parametrize(("recipe", "key", "value"), parity()[0])
def test_the_recipe_has_the_value_of_the_block(recipe, key, value, monkeypatch):
    monkeypatch.delenv("SPO_DATA_DIR", raising=False)
    if key == "max_turns":
        [entry] = yaml.safe_load((ROOT / recipe).with_name("agents.yaml").read_text())
        assert entry[key] == value
        return
    assert shown(values(recipe)[key]) == shown(value)
    assert re.search(rf"^\s*{key.rpartition('.')[2]}:", OURS, re.MULTILINE), f"no recipe or preset sets {key}"


def launches():
    """Launch lines of the pages and of the recipes' headers: where, and the words after the launcher."""
    files = [*PAGES, *ROOT.rglob("*.yaml")]
    for file in files:
        text = file.read_text().replace("\\\n", " ")
        for line in re.findall(r"recipes/run\.sh (\w+/[^\n`|)]+)", text):
            words = shlex.split(line.strip(), comments=True)
            if words and "NAME" not in words[0] and "<" not in words[0]:
                yield f"{file.relative_to(REPOSITORY)}: {' '.join(words)}", words


@pytest.mark.parametrize("words", dict(launches()).values(), ids=dict(launches()).keys())
def test_every_launch_line_names_a_recipe_and_keys_that_it_has(words):
    assert words[0] in RECIPES
    known = values(words[0])
    for key in (word.partition("=")[0] for word in words[1:]):
        assert key == "model_engine" or key in known, key


PLACES = {"experiment_name", "rollout_data_dir", "validation_data_dir", "path", "seed"}
"""Last parts of the keys that tell a run where it writes, what it evaluates, and which replicate it is."""


def changed_recipes():
    """Recipe and overrides of the page's launch lines that change more than places, each once."""
    for where, (name, *overrides) in launches():
        kept = tuple(one for one in overrides if one.partition("=")[0].rpartition(".")[2] not in PLACES)
        if where.startswith("docs/reproduction.md") and kept:
            yield name, *kept


@pytest.mark.parametrize("words", sorted(set(changed_recipes())), ids=" ".join)
def test_every_changed_recipe_of_the_page_is_accepted(words):
    assert problems_of(composed(*words)) == []


def test_every_checkpoint_that_is_named_will_be_there():
    """The last of its run, as keys of the recipe that writes it say; older ones are removed."""
    steps = {}
    for name in RECIPES:
        config = values(name)
        assert config["trainer.total_training_steps"] % config["trainer.save_freq"] == 0
        folder = f"checkpoints/{config['trainer.project_name']}/{config['trainer.experiment_name']}"
        steps[folder] = config["trainer.total_training_steps"]
    found = [
        (file.name, folder, int(step))
        for file in [*(page for page in PAGES if page.name in ("reproduction.md", "README.md")), *ROOT.rglob("*.yaml")]
        for folder, step in re.findall(r"(checkpoints/\w+/\w+)/global_step_(\d+)", file.read_text())
    ]
    assert len(found) >= 8
    assert [one for one in found if steps.get(one[1]) != one[2]] == []


def test_the_rows_of_ours_are_of_the_step_that_the_recipes_end_at():
    text = PAGE.read_text()
    for name, label in (("spo", "SPO"), ("grpo", "GRPO")):
        steps = values(f"qwen3_8b_math_tir/{name}")["trainer.total_training_steps"]
        assert f"| here: {label}, step {steps} |" in text
        assert f"**Step {steps}**" in text


def test_the_script_reads_offline_values_of_its_own_length(monkeypatch):
    """Success rates depend on the longest response, so the two recipes must not share a file."""
    monkeypatch.delenv("SPO_DATA_DIR", raising=False)
    spo, script = (values(f"qwen3_8b_math_tir/{name}") for name in ("spo", "spo_script"))
    assert spo["data.max_response_length"] != script["data.max_response_length"]
    assert spo["spo.initial.values"] != script["spo.initial.values"]
    estimates = [words for _, words in launches() if words[0] == "qwen3_8b_math_tir/offline_values"]
    [overrides] = {tuple(rest) for _, *rest in estimates if rest and rest[0].startswith("values=") and len(rest) == 2}
    for read, estimated in ((spo, values(estimates[0][0])), (script, values(estimates[0][0], *overrides))):
        assert estimated["spo.estimate.output"] == read["spo.initial.values"]
        for key in ("data.max_response_length", *(f"actor_rollout_ref.rollout.{k}" for k in ("temperature", "top_p"))):
            assert estimated[key] == read[key], key


def test_the_pair_of_spo_plus_plus_differs_in_the_variant_only():
    one, other = values("spo_plus_plus/math_tir"), values("spo_plus_plus/math_tir_spo")
    assert {key for key in one if one[key] != other[key]} <= {
        "spo.forgetting.mode",
        "spo.forgetting.reference",
        "spo.advantage.measure",
        "actor_rollout_ref.actor.clip_ratio_c",
        "actor_rollout_ref.rollout.trace.experiment_name",
        "trainer.experiment_name",
        "trainer.default_local_dir",
    }
    assert (one["spo.advantage.measure"], other["spo.advantage.measure"]) == ("token", "trajectory")


def test_every_figure_and_table_of_the_paper_has_its_commands():
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    for start in ("Table 1", "Figure 2", "Figure 3", "Figures 4 and 5", "Figure 6", "SPO++"):
        [section] = [section for section in sections if section.startswith(start)]
        assert re.search(r"recipes/run\.sh|python benchmarks/|commands of Table 1", section), start
    scripts = re.findall(r"python (benchmarks/\w+\.py)", PAGE.read_text())
    assert {"benchmarks/group_signal.py", "benchmarks/group_waiting.py", "benchmarks/reward_curves.py"} <= set(scripts)
    assert all((REPOSITORY / script).is_file() for script in scripts)


def test_result_cells_hold_no_number_of_ours():
    text = PAGE.read_text()
    tables = [
        table_rows(text, "", "AIME 24", "AIME 25", "BeyondAIME", "BRUMO 25", "HMMT 25", "average"),
        table_rows(text, "", "k = 8", "k = 16", "k = 32"),
        table_rows(text, "", "here", "filled by"),
    ]
    with_paper = [
        table_rows(text, "what", "paper", "here", "found in"),
        table_rows(text, "Table 1 of SPO++", "paper, Math-TIR", "here", "column"),
        table_rows(text, "Table 2 of SPO++: C10, points", "paper, ALFWorld", "here", "column `composite` of"),
    ]
    for rows in with_paper:
        assert rows
        assert {here for _, _, here, *_ in rows} == {"not run"}
    for rows in tables:
        ours = [cells for name, *cells in rows if not name.startswith("paper")]
        assert ours
        for cells in ours:
            assert set(cells) - {cell for cell in cells if "recipes/run.sh" in cell or "commands of" in cell} == {
                "not run"
            }


def test_each_experiment_has_a_page_that_the_index_leads_to():
    listed = set(links((ROOT / "README.md").read_text()))
    for folder in {name.split("/")[0] for name in RECIPES} | {"cluster"}:
        assert (ROOT / folder / "README.md").is_file()
        assert f"{folder}/README.md" in listed
