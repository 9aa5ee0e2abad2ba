"""Every override that hydra refuses is found in one pass, and the rest composes as hydra composes it."""

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from spo_verl.errors import SpoConfigError
from spo_verl.launching.composition import compose
from spo_verl.launching.hydra_side import Places, take

FILES = {
    "main.yaml": "defaults: [db: mysql, _self_]\na: {b: 1, c: [1, 2], d: {e: x}}\ns: text\nn: null\n",
    "db/mysql.yaml": "host: m\nport: 1\n",
    "db/postgres.yaml": "host: p\nuser: u\n",
    "more/one.yaml": "k: 1\n",
}
OVERRIDES = (
    *("a.b=2", "a.c='[3,4]'", "a.d={e: y}", 'a.d.e="a b"', "s=null", "a.b=${s}", "+a.new=1", "++a.newer=[x,{y: z}]"),
    *(
        "+a.d={f: 1}",
        "+a.b=9",
        "~a.b",
        "~a.d",
        "~a.b=2",
        "db=postgres",
        "db=oracle",
        "db.host=q",
        "+more=one",
        "more=one",
    ),
    *("+more@here=one", "~db", "~nothing", "a.x=1", "a.b.c=1", "a=b=[", "=", "", "a.b", "a.b=1,2", "a.b=range(1,3)"),
    *("a.b=int('3')", "hydra.job.name=j", "hydra.nope=1", "a.c.0=7", "++db=postgres", "a.b='", "key with space=1"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("conf")
    for name, text in FILES.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    return base


def by_hydra(folder, overrides):
    """hydra's own composition, or its error."""
    try:
        with hydra.initialize_config_dir(config_dir=str(folder), version_base=None):
            return OmegaConf.to_container(hydra.compose(config_name="main", overrides=list(overrides)))
    except Exception as error:  # noqa: BLE001 - whatever hydra raises is its refusal
        return error


def ours(folder, overrides):
    return take(overrides, config_name="main", places=Places(config_path=str(folder)))


@pytest.fixture(scope="module")
def alone(folder):
    """hydra's answer to each override."""
    return {override: by_hydra(folder, [override]) for override in OVERRIDES}


def test_one_override_is_taken_or_refused_as_by_hydra(folder, alone):
    plain = by_hydra(folder, [])
    for override, expected in alone.items():
        taken, refused = ours(folder, [override]), isinstance(expected, Exception)
        assert [line for line, _ in taken.refused] == [override] * refused, override
        assert OmegaConf.to_container(taken.config) == (plain if refused else expected), override


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(OVERRIDES), max_size=8, unique=True))
def test_what_is_accepted_composes_alike_and_what_is_refused_hydra_refuses(folder, overrides):
    taken = ours(folder, overrides)
    refused = [line for line, _ in taken.refused]
    accepted = [line for line in overrides if line not in refused]
    assert OmegaConf.to_container(taken.config) == by_hydra(folder, accepted)
    assert refused == [line for line in overrides if line in refused]
    for line in refused[:1]:
        assert isinstance(by_hydra(folder, [one for one in overrides if one == line or one in accepted]), Exception)


def test_many_wrong_overrides_cost_one_composition(folder, monkeypatch):
    calls = []
    real = ConfigLoaderImpl._compose_config_from_defaults_list
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "_compose_config_from_defaults_list",
        lambda self, *args, **kwargs: calls.append(1) or real(self, *args, **kwargs),
    )
    wrong = ["a.x=1", "db=oracle", "a=b=[", "more=one", *(f"a.y{number}=1" for number in range(30))]
    assert [line for line, _ in ours(folder, [*wrong, "a.b=2"]).refused] == wrong
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("places", "fragment"),
    [
        (Places(config_path="nowhere"), "relative path from verl's trainer folder"),
        (Places(config_path="/nowhere/at/all"), "there is no folder /nowhere/at/all"),
        (Places(config_path="conf/main.yaml"), "names a file"),
        (Places(config_dir=Path("nowhere")), "--config-dir nowhere: there is no folder"),
    ],
)
def test_a_folder_that_is_not_there_is_an_error_with_the_fix(places, fragment):
    with pytest.raises(SpoConfigError, match=fragment):
        take([], config_name="main", places=places)


# ---------------------------------------------------------------------- against main_ppo itself


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A configuration of a user's own that builds on verl's, and one that has verl's name."""
    base = tmp_path_factory.mktemp("own")
    (base / "mine.yaml").write_text(
        "defaults: [ppo_trainer, spo: bspo, _self_]\n"
        "hydra: {searchpath: [pkg://verl.trainer.config]}\n"
        "data: {train_batch_size: 7}\n"
    )
    (base / "named").mkdir()
    (base / "named" / "ppo_trainer.yaml").write_text("a: {b: 1}\n")
    return base


COMMANDS = {
    "a path with verl on its search path": ["--config-path", "{own}", "--config-name=mine", "data.seed=3"],
    "verl's file wins over one of that name": ["--config-dir", "{own}/named", "+spo=paper", "++data.x={a: [1]}"],
    "short flags": [
        "-cp",
        "{own}/named",
        "-cn",
        "ppo_trainer",
        "hydra.searchpath=[file://{own}]",
        "a.b=2",
        "+spo=paper",
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_hydras_flags_mean_what_they_mean_to_main_ppo(own, name, monkeypatch, tmp_path):
    from verl.trainer.main_ppo import main

    arguments = [word.replace("{own}", str(own)) for word in COMMANDS[name]]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main_ppo", *arguments, "--cfg", "job"])
    printed = io.StringIO()
    with redirect_stdout(printed):
        main()
    expected = OmegaConf.to_container(OmegaConf.create(printed.getvalue()), resolve=False)

    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    flags = _flags(words)
    composed = compose(
        flags.pop("overrides"),
        config_name=flags.get("name", "ppo_trainer"),
        config_dir=Path(flags["dir"]) if "dir" in flags else None,
        config_path=flags.get("path"),
    )
    assert composed.problems == []
    assert OmegaConf.to_container(composed.config, resolve=False) == expected


def _flags(words):
    names = {"--config-path": "path", "-cp": "path", "--config-name": "name", "-cn": "name", "--config-dir": "dir"}
    found, rest = {}, iter(words)
    overrides = []
    for word in rest:
        if word in names:
            found[names[word]] = next(rest)
        else:
            overrides.append(word)
    return {**found, "overrides": overrides}
