"""The Dockerfiles, read without Docker: a pinned base, files that are there, commands that the README has."""

import json
import re
import shlex
import subprocess

import pytest
import yaml

from tests.recipes.helpers import RECIPES, REPOSITORY, ROOT

FILES = sorted((ROOT / "cluster").glob("*.Dockerfile"))
KNOWN = {"FROM", "RUN", "COPY", "WORKDIR", "CMD", "ARG", "SHELL"}


def instructions(text):
    """Instruction and arguments of each line; continued lines are one, comments are left out."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    lines = re.sub(r"\\\n\s*", " ", "\n".join(kept)).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def faults(text, folder):
    """What is wrong in a Dockerfile whose context is ``folder``."""
    found = instructions(text)
    names = [name for name, _ in found]
    wrong = [f"{name} is no instruction that is used here" for name in names if name not in KNOWN]
    if names[:1] != ["FROM"] or names.count("FROM") != 1:
        wrong.append("it does not begin with its one base")
    if names.count("CMD") != 1 or names[-1] != "CMD":
        wrong.append("it does not end with its command")
    for name, arguments in found:
        if name == "FROM" and not re.fullmatch(r"[\w./-]+:(?!latest$)[\w.-]*\d[\w.-]*", arguments):
            wrong.append(f"the base {arguments} has no version")
        if name == "COPY":
            *sources, target = arguments.split()
            wrong += [f"{source} is not there" for source in sources if not (folder / source).exists()]
            if target not in ("./", *sources):
                wrong.append(f"{target}: copied to another name")
        if name == "CMD":
            json.loads(arguments)
        if name == "RUN":
            done = subprocess.run(["bash", "-n", "-c", arguments], capture_output=True, text=True)
            wrong += done.stderr.splitlines()
            if "apt-get install" in arguments and not (
                "--no-install-recommends" in arguments and "rm -rf /var/lib/apt/lists/*" in arguments
            ):
                wrong.append("apt-get leaves more than is needed")
            if "pip install" in arguments and "--no-cache-dir" not in arguments:
                wrong.append("pip leaves its cache")
    return wrong


def split_at(words, mark):
    """The lists of words between marks."""
    parts = [[]]
    for word in words:
        if word == mark:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def test_there_is_one_for_each_path():
    assert [file.name for file in FILES] == ["cpu.Dockerfile", "gpu.Dockerfile"]
    page = (ROOT / "cluster" / "README.md").read_text()
    assert all(f"({file.name})" in page for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_is_sound_and_short(file):
    assert faults(file.read_text(), REPOSITORY) == []
    assert len(file.read_text().splitlines()) <= 25


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("FROM verlai/verl", "the base verlai/verl has no version"),
        ("FROM verlai/verl:latest", "the base verlai/verl:latest has no version"),
        ("FROM a:1\nCOPY nowhere ./", "nowhere is not there"),
        ("FROM a:1\nRUN (pip --version", "syntax error"),
        ("FROM a:1\nRUN apt-get install -y git", "apt-get leaves more"),
        ("FROM a:1\nINSTALL git", "INSTALL is no instruction"),
        ("FROM a:1\nRUN pip install -e .", "pip leaves its cache"),
    ],
)
def test_what_is_wrong_is_found(line, fault):
    assert any(fault in found for found in faults(f'{line}\nCMD ["x"]', REPOSITORY))


def test_the_commands_are_those_of_the_readme():
    readme = (REPOSITORY / "README.md").read_text()
    for file in FILES:
        found = instructions(file.read_text())
        [command] = [json.loads(arguments) for name, arguments in found if name == "CMD"]
        assert " ".join(command) in readme
        steps = [shlex.split(text) for name, text in found if name == "RUN"]
        for words in [part for step in steps for part in split_at(step, "&&")]:
            if words[:2] == ["pip", "install"]:
                plain = [word for word in words if word not in ("-c", "/tmp/held.txt", "--no-cache-dir")]
                assert " ".join(plain) in readme, words
    quickstart = (REPOSITORY / "quickstart.sh").read_text()
    assert 'make_env.sh"\nspo_make_env "$root" runtime' in quickstart


def test_the_version_of_verl_is_the_supported_one():
    from spo_verl import SUPPORTED_VERL

    text = (ROOT / "cluster" / "gpu.Dockerfile").read_text()
    assert re.findall(r"verl==([\d.]+)", text) == [SUPPORTED_VERL[-1]]


def test_the_folders_in_the_image_are_those_of_the_manifest():
    [folder] = [text for name, text in instructions((ROOT / "cluster" / "gpu.Dockerfile").read_text())
                if name == "WORKDIR"]  # fmt: skip
    entrypoint = yaml.safe_load((ROOT / "cluster" / "rayjob.yaml").read_text())["spec"]["entrypoint"].split()
    assert entrypoint[1] == f"{folder}/recipes/run.sh"
    assert entrypoint[2] in RECIPES
