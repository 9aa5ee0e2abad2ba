"""The YAML entry: defaults, the agreed keys, and refusals that list every problem with its fix."""

import pytest
from omegaconf import OmegaConf

from spo_verl.agent.config import EmbeddedConfig, LoopConfig, SandboxFusionConfig, parse
from spo_verl.errors import SpoConfigError


def test_an_empty_entry_is_the_papers():
    config = parse({})
    assert config == LoopConfig()
    assert (config.style, config.max_turns) == ("tool", 8)
    assert config.interpreter == EmbeddedConfig()


def test_backends_are_chosen_by_name():
    assert parse({"interpreter": {"wall_seconds": 5}}).interpreter == EmbeddedConfig(wall_seconds=5.0)
    fusion = parse({"interpreter": {"backend": "sandbox_fusion", "url": "http://x:8080"}}).interpreter
    assert fusion == SandboxFusionConfig(url="http://x:8080")


def test_lists_of_yaml_are_taken():
    text = "{interpreter: {packages: [sympy], allow_unenforced: [no_network]}}"
    section = OmegaConf.to_container(OmegaConf.create(text))
    assert parse(section).interpreter.packages == ("sympy",)
    hash(parse(section))  # backends are shared by their settings


def test_every_problem_is_told_at_once():
    with pytest.raises(SpoConfigError) as refusal:
        parse(
            {
                "style": "xml",
                "max_turns": 0,
                "max_tokens": 5,
                "interpreter": {"memory_mb": 0, "allow_unenforced": ["disk"]},
            }
        )
    message = str(refusal.value)
    assert message.startswith("5 problems")
    for part in ("style='xml'", "max_turns=0", "max_tokens: there is no such", "interpreter.memory_mb=0", "'disk'"):
        assert part in message


@pytest.mark.parametrize(
    ("interpreter", "said"),
    [
        ({"backend": "docker"}, "docker"),
        ({"backend": "sandbox_fusion"}, "interpreter.url is missing"),
        ({"backend": "sandbox_fusion", "url": "host:8080"}, "is no address of a server"),
        ({"backend": "sandbox_fusion", "url": "http://x", "run_seconds": 60}, "is over before a program's own"),
        ({"backend": "sandbox_fusion", "url": "http://x", "max_backoff_seconds": 0.1}, "is below"),
        ({"backend": "sandbox_fusion", "url": "http://x", "cpu_seconds": 3}, "no such setting"),
    ],
)
def test_what_does_not_fit_together_is_refused(interpreter, said):
    with pytest.raises(SpoConfigError, match=said):
        parse({"interpreter": interpreter})
