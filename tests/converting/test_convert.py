"""Scripts converted: which lines change, that the result composes with verl, and that nothing ends in a traceback."""

import contextlib
import difflib
import shlex
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.converting import command_line, convert_script
from spo_verl.converting.configuration import base_values, composed, training_rows
from spo_verl.converting.rules import RunValues
from spo_verl.errors import SpoConfigError, SpoError
from spo_verl.launching.composition import examine, verl_problem
from tests.cli.helpers import row, write_rows
from tests.converting.scripts import CRITIC, DYNAMIC_SAMPLING, LORA, MEGATRON, PLAIN, SEVERAL_METHODS, STOCK, TOOLS

HEAD = "python3 -m verl.trainer.main_ppo"
SIZES = (
    "actor_rollout_ref.rollout.n={n} data.train_batch_size={batch} actor_rollout_ref.actor.ppo_mini_batch_size={mini}"
)


def changed(script, **more):
    """The lines that went and those that came."""
    converted = convert_script(script, outside={"HOME": "/home/me"}, **more)
    lines = [*difflib.ndiff(script.splitlines(), converted.script.splitlines())]
    return [line[2:].strip() for line in lines if line[0] == "-"], [
        line[2:].strip() for line in lines if line[0] == "+"
    ]


def overrides(converted, number=0):
    return {one.key: one.text for one in converted.commands[number].arguments.overrides}


def test_only_the_lines_that_must_change_do():
    gone, come = changed(PLAIN)
    assert gone == [
        "algorithm.adv_estimator=grpo \\",
        "data.train_batch_size=1024 \\",
        "actor_rollout_ref.actor.ppo_mini_batch_size=256 \\",
        "actor_rollout_ref.rollout.n=5 \\",
        "algorithm.norm_adv_by_std_in_grpo=False \\",
        'trainer.total_epochs=15 "$@"',
    ]
    assert come == [
        "algorithm.adv_estimator=spo +spo=paper \\",
        "data.train_batch_size=5120 \\",
        "actor_rollout_ref.actor.ppo_mini_batch_size=1280 \\",
        "actor_rollout_ref.rollout.n=1 \\",
        'trainer.total_epochs=75 "$@"',
    ]


def test_a_variable_is_edited_where_it_is_set_unless_something_else_uses_it():
    gone, come = changed(DYNAMIC_SAMPLING)
    assert [line for line in gone if line.count("=") == 1 and " " not in line] == [
        "adv_estimator=grpo",
        "train_prompt_mini_bsz=32",
    ]
    assert come == [
        "adv_estimator=spo",
        "train_prompt_mini_bsz=512",
        "data.train_batch_size=$((train_prompt_bsz * 16)) \\",  # gen_prompt_bsz uses the variable too
        "actor_rollout_ref.rollout.n=1 \\",  # the name of the experiment does
        "algorithm.adv_estimator=${adv_estimator} +spo=paper spo.reward.low=-2 \\",
    ]
    assert {"data.gen_batch_size=${gen_prompt_bsz} \\", "algorithm.filter_groups.metric=acc \\"} <= set(gone)


def test_the_branch_that_is_taken_is_converted_and_the_others_are_named():
    gone, come = changed(SEVERAL_METHODS)
    assert come == [
        "BATCH=${BATCH:-1024}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=256",
        "METHOD=(algorithm.adv_estimator=spo +spo=paper actor_rollout_ref.rollout.n=1)",
    ]
    assert len(gone) == 3
    notes = " ".join(convert_script(SEVERAL_METHODS).notes)
    assert "line 17: this branch is not taken" in notes
    critic = convert_script(SEVERAL_METHODS, outside={"ALGO": "gae"})
    assert "critic" not in critic.script
    assert "algorithm.adv_estimator=$ALGO actor_rollout_ref.rollout.n=$N" in critic.script
    with pytest.raises(SpoConfigError, match="line 23: the script ends there"):
        convert_script(SEVERAL_METHODS, outside={"ALGO": "ppo"})


def test_a_script_of_ppo_loses_its_critic_and_gains_an_estimator():
    converted = convert_script(CRITIC).script
    assert converted == (
        "python3 -m verl.trainer.main_ppo algorithm.adv_estimator=spo +spo=paper \\\n"
        " data.train_batch_size=512 \\\n"
        " actor_rollout_ref.actor.ppo_mini_batch_size=128 \\\n"
        " actor_rollout_ref.actor.use_dynamic_bsz=True \\\n"
        " actor_rollout_ref.rollout.name=vllm \\\n"
        " trainer.total_epochs=15\n"
    )


def test_values_inside_the_text_of_a_variable_are_edited_there():
    _, come = changed(LORA)
    assert come[0] == 'ARGS="algorithm.adv_estimator=spo +spo=paper data.train_batch_size=256 \\'
    assert come[-1] == 'actor_rollout_ref.actor.ppo_mini_batch_size=$((nproc * 4))"'
    assert len(come) == 3


def test_one_variable_for_two_sizes_is_edited_once():
    gone, come = changed(MEGATRON)
    assert (gone[0], come[0]) == ("BSZ=64", "BSZ=512")
    assert "actor_rollout_ref.actor.policy_loss.loss_mode=gspo \\" not in gone
    assert len(come) == 3


def test_what_refers_to_a_size_follows_it():
    assert "ppo_mini_batch_size" not in "".join(changed(TOOLS)[0])


@pytest.mark.parametrize("name", [name for name in STOCK if name not in ("critic", "nested")])
def test_what_comes_out_composes_with_verl_and_passes_all_checks(name):
    converted = convert_script(STOCK[name], outside={"HOME": "/home/me"}, folder="/home/me")
    whole, left_out = composed(converted.commands[-1].arguments)
    found = examine(whole)
    assert found.problems == []
    assert left_out == []
    assert whole.preset == "paper"
    assert not [one for one in found.warnings if "rollout.n" in one]
    if name in ("plain", "megatron"):  # verl's own check; of LoRA it would import vLLM
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert verl_problem(whole.config) is None


def test_a_converted_script_is_left_alone():
    for script in STOCK.values():
        once = convert_script(script)
        again = convert_script(once.script)
        assert again.script == once.script
        assert all(one.plan.already for one in again.commands)


# -------------------------------------------------------------------- forms of commands


def one_line(extra, n=4, batch=8, mini=8):
    return f"{HEAD} {extra} {SIZES.format(n=n, batch=batch, mini=mini)} trainer.total_training_steps=1\n"


@pytest.mark.parametrize(
    "before",
    [
        "nohup ",
        "torchrun --nproc-per-node 1 --no-python ",
        "PYTHONUNBUFFERED=1 HYDRA_FULL_ERROR=1 ",
        "ray job submit --runtime-env=a.yaml -- ",
        "srun --nodes=2 docker exec box ",
        "time ",
        "cd x && ",
        "if true; then ",
        "( ",
    ],
)
def test_what_stands_before_the_command_stays(before):
    after = {"if true; then ": "; fi", "( ": ")"}.get(before, " 2>&1 | tee log &")
    script = before + one_line("algorithm.adv_estimator=grpo").rstrip() + after + "\n"
    converted = convert_script(script)
    assert converted.script.startswith(before + HEAD)
    assert converted.script.endswith(f"trainer.total_training_steps=1{after}\n")
    assert overrides(converted)["data.train_batch_size"] == "32"


@pytest.mark.parametrize(
    "written", ["=grpo", "='grpo'", '="grpo"', "=\"'grpo'\"", "=rloo algorithm.adv_estimator=grpo"]
)
@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_prefixes_quotes_and_repetitions(prefix, written):
    converted = convert_script(one_line(f"{prefix}algorithm.adv_estimator{written}"))
    assert overrides(converted)["algorithm.adv_estimator"].strip("'") == "spo"
    assert "grpo" not in converted.script
    assert "rloo" not in converted.script
    assert f"{prefix}algorithm.adv_estimator" in converted.script


def test_of_repeated_keys_the_last_counts():
    converted = convert_script(one_line("algorithm.adv_estimator=grpo data.train_batch_size=999", batch=16))
    assert overrides(converted)["data.train_batch_size"] == "64"


def test_deletions_brackets_and_spaces_stay():
    extra = '~algorithm.kl_ctrl algorithm.adv_estimator=grpo \'data.train_files=["a b", c]\' +x.y="{p: 1, q: [2]}"'
    converted = convert_script(one_line(extra))
    assert shlex.split(converted.script)[3:8] == [
        "~algorithm.kl_ctrl",
        "algorithm.adv_estimator=spo",
        "+spo=paper",
        'data.train_files=["a b", c]',
        "+x.y={p: 1, q: [2]}",
    ]


def test_several_commands_are_converted_each_for_itself():
    script = (
        one_line("algorithm.adv_estimator=grpo")
        + one_line("algorithm.adv_estimator=spo +spo=paper", n=1, batch=32, mini=32)
        + one_line("algorithm.adv_estimator=rloo", n=2)
        + "python3 -m verl.trainer.main_eval data.path=x\n"
    )
    converted = convert_script(script)
    lines = converted.script.splitlines()
    assert [overrides(converted, one)["data.train_batch_size"] for one in range(3)] == ["32", "32", "16"]
    assert [one.plan.already for one in converted.commands] == [False, True, False]
    assert [one.line for one in converted.commands] == [1, 2, 3]
    assert lines[1] == script.splitlines()[1]
    assert "line 4: verl.trainer.main_eval is another trainer" in " ".join(converted.notes)


def test_a_variable_of_two_commands_is_edited_for_both_or_for_neither():
    sizes = "actor_rollout_ref.rollout.n={n} data.train_batch_size=$B actor_rollout_ref.actor.ppo_mini_batch_size=8"
    tail = "algorithm.adv_estimator=grpo trainer.total_training_steps=1\n"
    same = convert_script("B=8\n" + 2 * f"{HEAD} {sizes.format(n=4)} {tail}")
    assert same.script.startswith("B=32\n")
    other = convert_script("B=8\n" + "".join(f"{HEAD} {sizes.format(n=n)} {tail}" for n in (4, 2)))
    assert other.script.startswith("B=8\n")
    assert [overrides(other, one)["data.train_batch_size"] for one in (0, 1)] == ["32", "16"]


@pytest.mark.parametrize("form", ['CMD="{}"\neval $CMD', 'CMD="{}"\n$CMD', "sbatch --wrap='{}'", 'ssh host "{}"'])
def test_a_command_in_a_text(form):
    command = one_line("algorithm.adv_estimator=grpo").strip()
    converted = convert_script(form.format(command) + "\n")
    assert overrides(converted)["data.train_batch_size"] == "32"
    assert "grpo" not in converted.script


def test_windows_line_endings_are_replaced():
    converted = convert_script(PLAIN.replace("\n", "\r\n"))
    assert converted.script == convert_script(PLAIN).script
    assert "Windows" in converted.notes[0]


def test_the_words_of_a_command_line():
    words = ["data.train_files=['a b','c']", "algorithm.adv_estimator=grpo", "x=$(y)", "trainer.total_training_steps=3"]
    for start in ([], ["python", "-m", "verl.trainer.main_ppo"]):
        converted = convert_script(command_line([*start, *words]))
        assert shlex.split(converted.script.replace("\\\n", " "))[3:] == [
            words[0],
            "algorithm.adv_estimator=spo",
            "+spo=paper",
            *words[2:],
        ]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("", "no command"),
        ("echo 'python3 -m verl.trainer.main_ppo'\n", "no command"),
        ("# python3 -m verl.trainer.main_ppo\n", "no command"),
        ("python3 -m recipe.dapo.main_dapo algorithm.adv_estimator=grpo\n", "recipe.dapo.main_dapo is not converted"),
        ("python3 -m verl.trainer.main_ppo_v0\n", "main_ppo_v0 is not converted"),
        ("python3 main_split.py x=1\n", "main_split.py is not converted"),
        ("echo 'unclosed\n", "line 1: a single quote is not closed"),
        ("x=1\nif true; then\necho\n", "'fi' is missing"),
        ("fi\n", "'fi' closes nothing"),
        ("cat <<END\nx\n", "not closed by 'END'"),
        (one_line("algorithm.adv_estimator=grpo_passk"), "pass@k"),
        (one_line("algorithm.adv_estimator=gdpo"), "spo.reward.key"),
        (one_line("algorithm.adv_estimator=$(cat method)"), "only known when the script runs"),
        (one_line("algorithm.adv_estimator=$METHOD"), "--env NAME=VALUE"),
        (one_line("--multirun algorithm.adv_estimator=grpo"), "--multirun"),
        (one_line("algorithm.adv_estimator=grpo --ouput run_spo.sh"), "--ouput is no option of main_ppo"),
        (one_line("algorithm.adv_estimator=grpo", n="4,8"), "whole number"),
        (one_line("--config-name $NAME"), "only known when the script runs"),
        (one_line("algorithm.adv_estimator=grpo data={train_batch_size: 8}"), "one by one"),
        (f"for n in 4 8; do\n{one_line('algorithm.adv_estimator=grpo', n='$n')}done\n", "in a loop"),
        (f"read -r N < file\n{one_line('algorithm.adv_estimator=grpo', n='$N')}", "only known when"),
        ("A=$A$A" + "\n", "no command"),
        ("A=xxxxxxxxxxxxxxxx\n" + "A=$A$A\n" * 40, "grows beyond"),
        ("f() { f; f; }\nf\n", "more than"),
        ("( " * 500, "nested deeper"),
        ("x=" + "${a:-" * 500, "nested deeper"),
        ("x\0y", "NUL"),
        ("x" * 300_000, "no script"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(script, said):
    with pytest.raises(SpoConfigError) as error:
        convert_script(script)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "use", ['"$@"', "$2", "${1:-}", '"${@:2}"', "$#", "$*", "x; shift", "x; while getopts o: x; do :; done"]
)
def test_arguments_that_a_script_does_not_use_are_refused(use):
    with pytest.raises(SpoConfigError, match=r"uses no arguments.*`--ouput 'a b'` would have no effect"):
        convert_script(one_line("algorithm.adv_estimator=grpo"), arguments=["--ouput", "a b"])
    converted = convert_script(f"echo {use}\n{one_line('algorithm.adv_estimator=grpo')}", arguments=["x", "y"])
    assert "algorithm.adv_estimator=spo" in converted.script


@pytest.mark.parametrize("ends", ["\\ ", "# actor_rollout_ref.rollout.n=4 \\"])
def test_lines_that_the_command_does_not_reach_are_named(ends):
    converted = convert_script(
        f"{HEAD} algorithm.adv_estimator=grpo {ends}\n  data.train_batch_size=8 \\\n  trainer.nnodes=1\n"
    )
    [note] = converted.notes
    assert note.startswith("line 2: data.train_batch_size=8 belongs to no command")
    assert convert_script(one_line("algorithm.adv_estimator=grpo")).notes == ()


FRAGMENTS = st.sampled_from(
    [*"\"'`$(){}[]<>|&;\\#!=~*\n \t", "$((", "))", "${", "[[ ", " ]]", "if ", "then ", "fi", "case x in ", "esac", ";;",
     "do ", "done", "for i in ", "<<E\n", "E\n", "f() {", "${X:-", "${#", "//", "\\\n", HEAD,
     "algorithm.adv_estimator=",
     "grpo", "actor_rollout_ref.rollout.n=", "8", "é", "\x00", "\r", "X=", "X+=(", "eval ", "exit "]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=40).map("".join), st.sampled_from([*STOCK.values()]), st.data())
def test_no_text_ends_in_a_traceback(text, script, data):
    at = data.draw(st.integers(0, len(script)))
    cut = data.draw(st.integers(0, 30))
    for one in (text, script[:at] + text + script[at + cut :]):
        with contextlib.suppress(SpoError):
            convert_script(one, outside={"HOME": "/h"})


# -------------------------------------------------------------------- configurations and data


def test_a_configuration_of_ones_own_becomes_a_command_with_its_values(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults: [ppo_trainer, _self_]\n"
        "algorithm: {adv_estimator: grpo, use_kl_in_reward: true, filter_groups: {enable: true}}\n"
        "data: {train_batch_size: 128}\n"
        "actor_rollout_ref:\n"
        "  actor: {ppo_mini_batch_size: 32, clip_ratio_high: 0.25, use_dynamic_bsz: true}\n"
        "  rollout: {n: 8, name: vllm}\n"
        "trainer: {total_training_steps: 50}\n"
    )
    words = [f"--config-path={tmp_path}", "--config-name=mine"]
    converted = convert_script(command_line(words), base=base_values)
    assert overrides(converted) == {
        "algorithm.adv_estimator": "spo",
        "spo": "paper",
        "actor_rollout_ref.rollout.n": "1",
        "data.train_batch_size": "1024",
        "actor_rollout_ref.actor.ppo_mini_batch_size": "256",
        "algorithm.filter_groups.enable": "False",
        "actor_rollout_ref.actor.clip_ratio_high": "0.25",
    }
    whole, _ = composed(converted.commands[0].arguments)
    assert examine(whole).problems == []
    assert whole.config.algorithm.use_kl_in_reward is False  # the preset's
    assert whole.config.actor_rollout_ref.actor.clip_ratio_high == 0.25
    with pytest.raises(SpoConfigError, match="not here"):
        convert_script(command_line([f"--config-path={tmp_path}/no", "--config-name=mine"]), base=base_values)


def test_rows_are_counted_where_the_files_are_here(tmp_path):
    one = write_rows(tmp_path / "one.parquet", [row(str(number), "1") for number in range(7)])
    two = write_rows(tmp_path / "two.parquet", [row(str(number), "1") for number in range(5)])
    assert training_rows(RunValues({"data.train_files": str(one)})) == 7
    assert training_rows(RunValues({"data.train_files": f"['{one}', \"{two}\"]"})) == 12
    assert training_rows(RunValues({}, {"data.train_files": f"[{one},{two}]"})) == 12
    assert training_rows(RunValues({"data.train_files": f"[{one},{tmp_path}/three.parquet]"})) is None
    assert training_rows(RunValues({})) is None
    converted = convert_script(
        f"{HEAD} algorithm.adv_estimator=grpo data.train_files={one} actor_rollout_ref.rollout.n=2 "
        "data.train_batch_size=2 actor_rollout_ref.actor.ppo_mini_batch_size=2 trainer.total_epochs=5\n",
        rows=training_rows,
    )
    assert overrides(converted)["trainer.total_training_steps"] == "15"  # 7 // 2 * 5
    assert overrides(converted)["trainer.total_epochs"] == "5"
