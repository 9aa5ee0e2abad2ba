"""The helpers find what is wrong in a broken page: without this, an empty result would look like a good page."""

from __future__ import annotations

import pytest

from tests.docs.commands import commands, examine_all, keys_in, main_ppo_arguments, request, spo_verl_lines, wrong_with
from tests.docs.pages import anchors, blocks, broken_links, inline_code, links, scripts, table_rows

pytestmark = pytest.mark.long

PAGE = """# One page: `with` code!

See [there](#what-is-it) and [elsewhere](other.md#part-two) and `[not](a-link)`.

## What is it?

```bash
pip install it          # [no](link)
VERL_PLATFORM=cpu python -m verl.trainer.main_ppo a.b=1 \\
    'c.d=[x, y]' <the rest> ...   | tee log && spo-verl config "${overrides[@]}" --json
```

    $ spo-verl doctor
    [no](link-either)

## What is it?

| a | b |
|---|---|
| `x` | 1 |

```python
# not run: needs a cluster
import nothing_of_the_kind
```

```python
# file: thing.py
```
"""


def test_blocks_know_their_language_and_convention():
    assert [block.language for block in blocks(PAGE)] == ["bash", "python", "python"]
    not_run, file = blocks(PAGE, "python")
    assert (not_run.is_run, not_run.file) == (False, None)
    assert (file.is_run, file.file) == (True, "thing.py")


def test_scripts_are_bash_blocks_and_indented_commands_but_not_output():
    more = "    A=1 python -m verl.trainer.main_ppo a=1 \\\n        b=2\n\nand then\n\n    step 1\n    python -m x\n"
    text = f"{PAGE}Or:\n\n{more}"
    first, second = scripts(text)
    assert first == blocks(PAGE, "bash")[0].text
    [command] = commands(second)
    assert main_ppo_arguments(command) == ["a=1", "b=2"]


def test_commands_lose_what_is_the_readers_own_and_keep_the_rest():
    install, train, tee, config = commands(blocks(PAGE, "bash")[0].text)
    assert install.words == ["pip", "install", "it"]
    assert train.environment == {"VERL_PLATFORM": "cpu"}
    assert main_ppo_arguments(train) == ["a.b=1", "c.d=[x, y]"]
    assert train.partial
    assert not install.partial
    assert tee.words == ["tee", "log"]
    assert config.words == ["spo-verl", "config", "--json"]
    [saved] = commands("spo-verl settings --markdown > docs/settings.md")
    assert saved.words == ["spo-verl", "settings", "--markdown"]
    [inside] = commands("cmd key=<...>/part n=<N> end=...")
    assert inside.words == ["cmd", "key=READERS_OWN/part", "n=READERS_OWN", "end=..."]
    assert not inside.partial


def test_other_commands_are_no_main_ppo():
    for text in ("python -m verl.model_merger merge", "echo python -m verl.trainer.main_ppo", "python"):
        [command] = commands(text)
        assert main_ppo_arguments(command) is None


def test_hydra_flags_are_no_overrides(tmp_path):
    found = request(["--config-dir", "conf", "a=1", "--config-name=mine"], whole=False, folder=tmp_path)
    assert (found.overrides, found.config_name, found.config_dir) == (["a=1"], "mine", str(tmp_path / "conf"))
    with pytest.raises(AssertionError, match="--multirun"):
        request(["--multirun"], whole=False)


def test_a_wrong_key_a_wrong_setting_and_a_wrong_value_are_found():
    good, *bad = examine_all(
        [
            request(["+spo=paper", "spo.forgetting.half_life=0.1"], whole=False),
            request(["+spo=paper", "spo.forgeting.half_life=0.1"], whole=False),
            request(["+spo=paper", "data.train_batch=8"], whole=False),
            request(["+spo=papers"], whole=False),
            request(["+spo=paper", "spo.forgetting.half_life=-1"], whole=False),
            request(["algorithm.adv_estimator=spo", "spo.seed=1"], whole=False),
            request(["algorithm.adv_estimator=grpo"], whole=False),
            request(["+spo=paper", "actor_rollout_ref.rollout.name=vllm"], whole=True),  # no micro-batch size
        ]
    )
    assert good["problems"] == []
    assert good["config"]["spo"]["forgetting"]["half_life"] == 0.1
    assert [len(one["problems"]) > 0 for one in bad] == [True] * 7


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("spo-verl doctor", None),
        ("spo-verl", None),
        ("spo-verl values", None),
        ("spo-verl VERB --help", None),
        ("spo-verl config --verl +spo=paper a.b=1", None),
        ("spo-verl values merge part-*.parquet -o values.parquet", None),
        ("spo-verl values estimate MODEL train.parquet -o values.parquet <overrides>", None),
        ("spo-verl doctr", "no verb doctr"),
        ("spo-verl values mend", "no verb mend"),
        ("spo-verl config --verll", "verll"),
        ("spo-verl values merge a.parquet --out b.parquet", "out"),
        ("spo-verl values merge a.parquet", "missing output"),
        ("spo-verl values show", None),  # the name of the verb alone
        ("spo-verl values show --data train.parquet", "missing file"),
        ("spo-verl settings settings.md", "unexpected"),
        ("spo-verl --verbose doctor", "no option --verbose"),
    ],
)
def test_spo_verl_lines_are_parsed(line, complaint):
    [command] = commands(line)
    found = wrong_with(command)
    assert (found is None) if complaint is None else (complaint in str(found)), found


def test_spo_verl_lines_are_found_in_blocks_after_prompts_and_in_inline_code():
    text = PAGE + "Use `spo-verl values show FILE` or `spo-verl`.\n"
    assert [str(command) for command in spo_verl_lines(text)] == [
        "spo-verl config --json",
        "spo-verl doctor",
        "spo-verl values show FILE",
        "spo-verl",
    ]


def test_anchors_are_those_of_the_headings():
    assert anchors(PAGE) == {"one-page-with-code", "what-is-it", "what-is-it-1"}
    assert anchors("## `+spo=paper`, then?\n```\n# no heading\n```\n## A [link](x.md) b\n") == {
        "spopaper-then",
        "a-link-b",
    }


def test_broken_links_are_found(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    assert links(PAGE) == ["#what-is-it", "other.md#part-two"]
    page.write_text(PAGE)
    assert list(broken_links(page, PAGE)) == ["other.md#part-two: there is no other.md"]
    other.write_text("# Part one\n")
    assert list(broken_links(page, PAGE)) == ["other.md#part-two: no such heading"]
    other.write_text("# Part two\n")
    assert list(broken_links(page, PAGE)) == []
    assert list(broken_links(page, PAGE.replace("#what-is-it", "#what-was-it"))) == ["#what-was-it: no such heading"]
    assert list(broken_links(page, "[a](https://example.org) [b](mailto:a@b.c)")) == []


def test_tables_and_keys():
    assert table_rows(PAGE, "a", "b") == [["`x`", "1"]]
    with pytest.raises(AssertionError, match="no table"):
        table_rows(PAGE, "a", "c")
    assert inline_code("`a` ``b`` `c d`\n\n    `e`\n") == ["a", "c d"]
    assert keys_in("`data.seed`, `+spo.seed=1`, `a b.c=2`, `word`, `x/y.z`, `f(a.b)`") == {
        "data.seed",
        "spo.seed",
        "b.c",
    }
