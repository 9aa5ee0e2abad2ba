"""What is read without a shell is what a shell makes of it, before and after conversion."""

import shlex

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spo_verl.converting import convert_script
from spo_verl.converting.tracing import ScriptTracer
from spo_verl.converting.values import is_known
from spo_verl.errors import SpoConfigError
from tests.converting.scripts import STOCK, run_by_a_shell

CALLS = {
    **{name: ((), {}) for name in STOCK},
    "several methods, rloo": ((), {"ALGO": "rloo", "N": "3"}),
    "several methods, gae": ((), {"ALGO": "gae", "DEBUG": "1"}),
    "vision, sglang": (("sglang", "trainer.nnodes=2"), {}),
    "plain, with arguments": (("trainer.nnodes=2", "a.b='c d'"), {}),
}


def read(script, folder, arguments=(), variables=None):
    """The words of every command; what is not known is None."""
    outside = {"HOME": str(folder), "PWD": str(folder), **(variables or {})}
    reading = ScriptTracer(script, outside, arguments, str(folder))
    reading.read()
    return [[one.text if is_known(one.value) else None for one in launch.arguments] for launch in reading.launches]


@pytest.mark.parametrize("name", CALLS)
def test_the_words_are_those_of_a_shell_before_and_after_conversion(name, tmp_path):
    arguments, variables = CALLS[name]
    script = STOCK[name.partition(",")[0]]
    words = run_by_a_shell(script, tmp_path, *arguments, **variables)
    assert words == read(script, tmp_path, arguments, variables) != []
    outside = {"HOME": str(tmp_path), "PWD": str(tmp_path), **variables}
    converted = convert_script(script, outside=outside, arguments=arguments, folder=str(tmp_path)).script
    now = run_by_a_shell(converted, tmp_path, *arguments, **variables)
    assert now == read(converted, tmp_path, arguments, variables)
    assert len(now) == len(words)
    for run in now:
        values = dict(word.split("=", 1) for word in run if "=" in word)
        assert values["algorithm.adv_estimator"] == "spo"
        assert values["+spo"] == "paper"


OPTIONS = """
N=1 BATCH=8 NAME=none
{loop}; do
    case "$1" in
        --n) N=$2; shift 2 ;;
        --batch=*) BATCH=${{1#--batch=}}; shift ;;
        --name) shift; NAME=$1; shift ;;
        --) shift; break ;;
        *) break ;;
    esac
done
python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo trainer.experiment_name="$NAME" \\
    data.train_batch_size=$BATCH actor_rollout_ref.rollout.n=$N "$@"
"""


@pytest.mark.parametrize("loop", ["while [ $# -gt 0 ]", "while [[ $# -gt 0 ]]", "while (( $# ))", "while true"])
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--n", "4"),
        ("--n", "4", "--batch=16", "--name", "x y"),
        ("--name", "a", "--n", "2", "--", "a.b=1", "c.d=2"),
        ("--batch=4", "a.b=1", "--n", "2"),
    ],
)
def test_options_of_a_script_are_taken_one_after_the_other(loop, arguments, tmp_path):
    script = OPTIONS.format(loop=loop)
    assert read(script, tmp_path, arguments) == run_by_a_shell(script, tmp_path, *arguments) != []


WAYS = (
    'f() {\n if [ -z "$1" ]; then return; fi\n N=8\n}\nf',
    'f() {\n if [ -z "$1" ]; then return; fi\n N=8\n}\nf now',
    "for N in 2 4; do :; done",
    "for i in 2 4 8; do if [ $i = 8 ]; then break; fi; N=$i; done",
    "for i in 2 4 8; do if [ $i = 4 ]; then continue; fi; N=$N$i; done",
    "for i in 2 4; do for j in 1 3; do if [ $j = 3 ]; then break; fi; N=$i$j; done; done",
    "for i in 2 4; do ( N=8; break ); N=$i; done",
    "f() { for i in 2 4; do N=$i; return; done; N=9; }\nf",
    "until false; do N=8; break; done",
    "until true; do N=8; done",
    "M=010; N=$((M))",
    "for i in 2 4; do for j in 1 3; do N=$i$j; break 2; done; done",
    "for i in 2 4; do for j in 1 3; do if [ $j = 3 ]; then continue 2; fi; N=$N$j; done; N=9; done",
    "for i in 2 4; do for j in 1 3; do for k in 5 7; do N=$k; break 2; done; done; N=$N$i; done",
    "for i in 2 4; do N=$i; break 7; done",
    "for i in 2 4; do while true; do continue 2; done; N=8; done; N=$i",
    "N=0; while [ $N -lt 4 ]; do N=$((N + 1)); done",
    "N=4; ((N *= 2))",
    "N=4; let N=8",
    "N=0; i=0; while (( i < 3 )); do ((i++)); N=$((N + i)); done",
    "N=0; i=6; until [[ $i -le 1 ]]; do let i-=2; N=$((N + 1)); done",
    "i=5; while ((i > 1)); do ((--i)); if ((i == 3)); then break; fi; done; ((N = i * 2))",
    "i=1; while [ $i -lt 9 ]; do ((i += 3)); done; let N=i",
    "N=1; while [ $N -lt 3 ]; do N=$((N + 1)); while [ $N -lt 2 ]; do N=7; done; done",
    "declare -A M; M[small]=2; M[large]=8; N=${M[small]}",
    "declare -A M=([small]=2 [large]=8); SIZE=large; N=${M[$SIZE]}",
    'declare -A M=( ["small one"]=2 [large]=8 ); SIZE="small one"; N=${M["$SIZE"]}',
    "declare -A M; M=([a]=2); M+=([b]=4); N=${#M[@]}${M[a]}",
    'declare -A M=([a]=5); for key in "${!M[@]}"; do N=${M[$key]}; done',
    "declare -A M=([a]=5); (M[a]=7); N=${M[a]:-3}${M[b]:-4}",
    "L=(2 4 8); for i in ${!L[@]}; do N=${L[$i]}; done",
    'L=(2 4); A="${L[@]}"; N=${A#* }',
    "L=(2 4); A=${L[*]}; N=${A% *}",
    "L=('2 4' 8); for i in ${L[@]}; do N=$i; break; done",
    "L=('2 4' 8); for i in \"${L[@]}\"; do N=${i#* }; break; done",
    "L=('2 4' 8); for i in \"${L[*]}\"; do N=${i##* }; break; done",
    "L=('' ' 5 ' ''); for i in ${L[*]}; do N=$i; done",
    "L=(3 4); for i in 1${L[@]}5; do N=$i; done",
)

# A command in a loop that counts itself: the first pass decides, and the other passes start the same.
COUNTED = """i=0
while [ $i -lt 3 ]; do
    python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo trainer.experiment_name=run$i \
        data.train_batch_size=16 actor_rollout_ref.actor.ppo_mini_batch_size=16 actor_rollout_ref.rollout.n=4
    i=$((i + 1))
done
"""


def test_a_command_in_a_loop_that_counts_itself_is_converted_for_every_pass(tmp_path):
    words = run_by_a_shell(COUNTED, tmp_path)
    assert (len(words), read(COUNTED, tmp_path)) == (3, words[:1])
    converted = convert_script(COUNTED)
    assert any("line 2: a loop" in note for note in converted.notes)
    now = run_by_a_shell(converted.script, tmp_path)
    assert [dict(word.split("=", 1) for word in one)["data.train_batch_size"] for one in now] == ["64"] * 3
    assert [word for one in now for word in one if word.startswith("trainer.exp")] == [
        f"trainer.experiment_name=run{number}" for number in range(3)
    ]


@pytest.mark.parametrize(
    ("way", "line"),
    [
        ('declare -A M=([a]=1 [b]=2)\nfor key in "${!M[@]}"; do N=${M[$key]}; done', 3),
        ('declare -A M=([a]=1 [b]=2)\n\nN="${M[@]}"', 4),
        ("declare -A M\nM=(a 1)", 3),
    ],
)
def test_what_bash_alone_decides_of_an_associative_array_is_refused_with_its_line(way, line):
    script = f"N=3\n{way}\npython3 -m verl.trainer.main_ppo actor_rollout_ref.rollout.n=$N\n"
    with pytest.raises(SpoConfigError, match=f"line {line}: .*associative array"):
        convert_script(script)


@pytest.mark.parametrize("way", WAYS)
def test_loops_and_functions_that_set_a_number_of_responses(way, tmp_path):
    """The converted script still starts a run whose batch fits its number of responses."""
    script = f"N=3\n{way}\npython3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_batch_size=16 "
    script += "actor_rollout_ref.actor.ppo_mini_batch_size=16 actor_rollout_ref.rollout.n=$N\n"
    words = run_by_a_shell(script, tmp_path)
    assert read(script, tmp_path) == words != []
    number = int(dict(word.split("=", 1) for word in words[-1])["actor_rollout_ref.rollout.n"])
    [*_, now] = run_by_a_shell(convert_script(script).script, tmp_path)
    values = dict(word.split("=", 1) for word in now)
    assert (values["actor_rollout_ref.rollout.n"], values["data.train_batch_size"]) == ("1", str(16 * number))


# -------------------------------------------------------------------- scripts that nobody wrote

NAMES = ("A", "B", "C")
PLAIN_WORD = st.sampled_from(["1", "8", "a b", "x_y", "", "k=v", "*", "08", "-3"])
EXPRESSIONS = (
    "${name}",
    "${{{name}}}",
    "${{{name}:-d}}",
    "${{{name}-d}}",
    "${{{name}:+set}}",
    "${{{name}:=4}}",
    "${{#{name}}}",
    "${{{name}%%_*}}",
    "${{{name}#x}}",
    "${{{name}/a/b}}",
    "${{L[@]}}",
    "${{L[1]}}",
    "${{#L[@]}}",
    "$1",
    "$#",
    "${{2:-two}}",
    "$(( 2 * (3 + {number}) - 7 / 2 ))",
    "$(({number} % 4))",
)


@st.composite
def expressions(draw, quote):
    text = draw(st.sampled_from(EXPRESSIONS))
    return quote + text.format(name=draw(st.sampled_from(NAMES)), number=draw(st.integers(-9, 99))) + quote


def words():
    texts = st.sampled_from(["k.e=", "v", "'single $A'", '"two words"', "\\ ", "5"])
    piece = st.one_of(texts, expressions('"'), expressions(""))
    return st.lists(piece, min_size=1, max_size=3).map("".join)


@st.composite
def conditions(draw):
    template = draw(
        st.sampled_from(
            [
                '[ "${name}" = "{value}" ]',
                "[[ ${name} == x* ]]",
                '[ -z "${name}" ]',
                '[ -n "${{{name}:-}}" ]',
                "! [[ -n ${name} && ${name} != 8 ]]",
                "(( {number} > 3 ))",
                "true",
                "false",
            ]
        )
    )
    value = draw(st.sampled_from(["1", "8", "x_y", ""]))
    return template.format(name=draw(st.sampled_from(NAMES)), value=value, number=draw(st.integers(0, 9)))


@st.composite
def statements(draw, level=0):
    name = draw(st.sampled_from(NAMES))
    kinds = ["set", "append", "array", "start"] + (["if", "case", "for", "function"] if level < 2 else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "set":
        return f"{name}={draw(words())}"
    if kind == "append":
        return f"{name}+={shlex.quote(draw(PLAIN_WORD))}"
    if kind == "array":
        listed = " ".join(draw(st.lists(words(), max_size=3)))
        return draw(st.sampled_from([f"L=({listed})", f"L+=(\n  {listed}  # more\n)"]))
    if kind == "start":
        return " \\\n  ".join(["python3 -m verl.trainer.main_ppo", *draw(st.lists(words(), max_size=3))])
    inner = "\n".join(draw(st.lists(statements(level + 1), min_size=1, max_size=2)))
    if kind == "if":
        return f"if {draw(conditions())}; then\n{inner}\nelse {draw(statements(2))}\nfi"
    if kind == "case":
        return f'case "${name}" in\n  1|8) {draw(statements(2))} ;;\n  x*)\n{inner}\n;;\n  *) : ;;\nesac'
    if kind == "for":
        return f"for i in one; do\n{inner}\ndone"
    return f"f{level}() {{\n{inner}\n}}\nf{level} {shlex.quote(draw(PLAIN_WORD))} two"


def distinct(runs):
    return list(dict.fromkeys(tuple(run) for run in runs))


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(lines=st.lists(statements(), min_size=1, max_size=5), arguments=st.lists(PLAIN_WORD, max_size=2))
def test_any_script_of_this_language_is_read_as_a_shell_does(lines, arguments, tmp_path):
    start = "set -f\nA= B= C= L=()\n"
    script = start + "\n".join(lines) + '\npython3 -m verl.trainer.main_ppo "$A" $B "${L[@]}" "$@"\n'
    runs = run_by_a_shell(script, tmp_path, *arguments)
    mine = read(script, tmp_path, arguments)
    if any(None in run for run in mine):  # a parameter that was not given: not known, and said so
        return
    assert distinct(mine) == distinct(runs)
