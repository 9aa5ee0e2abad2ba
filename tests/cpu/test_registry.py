"""The list of workarounds: what it refuses, and what happens when a target is imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from types import ModuleType

import pytest

from spo_verl.cpu import registry
from spo_verl.cpu.registry import Workaround, check_target, declare
from spo_verl.errors import SpoVersionError


@pytest.fixture
def empty_list(monkeypatch: pytest.MonkeyPatch) -> list[Workaround]:
    entries: list[Workaround] = []
    monkeypatch.setattr(registry, "REGISTRY", entries)
    return entries


def fake_module() -> ModuleType:
    module = ModuleType("fake")

    class Thing:
        def __init__(self, size: int, poll_interval: float = 2.0) -> None:
            self.size = size

    module.Thing = Thing  # type: ignore[attr-defined]
    return module


def test_a_name_may_have_two_targets_but_each_once(empty_list: list[Workaround]) -> None:
    declare("both-ends", "fake:a", applied="import")
    declare("both-ends", "fake:b", applied="import")
    with pytest.raises(ValueError, match="'both-ends' is declared twice for fake:a"):
        declare("both-ends", "fake:a", applied="import")
    assert [(entry.module, entry.attribute) for entry in empty_list] == [("fake", "a"), ("fake", "b")]


def test_a_target_names_module_and_attribute(empty_list: list[Workaround]) -> None:
    with pytest.raises(ValueError, match="not of the form"):
        declare("no-colon", "fake.Thing", applied="import")
    assert empty_list == []


def test_check_returns_the_target() -> None:
    module = fake_module()
    entry = Workaround("w", "fake:Thing.__init__", ("poll_interval",), "import", None)
    assert check_target(entry, module) is module.Thing.__init__


@pytest.mark.parametrize(
    ("target", "parameters", "words"),
    [
        ("fake:Missing", (), "fake has no Missing"),
        ("fake:Thing.missing", (), "fake has no Thing.missing"),
        ("fake:Thing.__init__", ("interval",), r"takes \(self, size, poll_interval\), without interval"),
    ],
)
def test_a_target_that_does_not_fit_is_a_clear_error(target: str, parameters: tuple[str, ...], words: str) -> None:
    entry = Workaround("some-name", target, parameters, "import", None)
    with pytest.raises(SpoVersionError, match=words) as caught:
        check_target(entry, fake_module())
    message = str(caught.value)
    assert "patches/README.md#some-name" in message
    assert "0.9.1" in message
    assert "constraints.txt" in message


def test_hooks_wait_for_the_import_and_errors_come_out_of_it(tmp_path) -> None:
    (tmp_path / "first_target.py").write_text("value = 1\n")
    (tmp_path / "second_target.py").write_text("value = 1\n")
    script = textwrap.dedent(
        """
        import sys
        from spo_verl.cpu.registry import install_hooks, workaround
        from spo_verl.errors import SpoVersionError

        @workaround("sets-two", target="first_target:value")
        def apply(module):
            module.value = 2

        @workaround("does-not-fit", target="second_target:absent")
        def never(module):
            raise AssertionError("applied although its target is missing")

        install_hooks()
        assert "first_target" not in sys.modules
        import first_target
        assert first_target.value == 2
        try:
            import second_target
        except SpoVersionError as error:
            print("refused:", error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "refused: the CPU workaround 'does-not-fit' does not fit" in done.stdout


def test_importing_the_package_imports_neither_torch_nor_verl() -> None:
    script = "import sys, spo_verl.cpu; print(sorted({'torch', 'verl', 'ray', 'wrapt'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
