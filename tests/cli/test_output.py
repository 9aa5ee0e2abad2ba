"""What all verbs share: JSON alone on stdout, errors without a traceback, exit status."""

import json

import pytest
import typer

from spo_verl.cli.output import Debug, Json, Outcome, print_json, verb
from spo_verl.errors import SpoConfigError, SpoValuesError
from tests.cli.helpers import CliRunner


def invoke(body, *arguments):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @verb
    def command(json_output: Json = False, debug: Debug = False) -> Outcome:
        return body()

    return CliRunner().invoke(app, list(arguments))


def noisy():
    print("a library says hello")
    return Outcome({"value": float("nan"), "path": SpoConfigError}, lambda console: console.print("for a reader"), 1)


def failing():
    raise SpoValuesError("there are no values at x: check the path")


def test_a_reader_gets_text_and_the_exit_status():
    result = invoke(noisy)
    assert result.exit_code == 1
    assert result.stdout == "a library says hello\nfor a reader\n"


def test_json_is_alone_on_stdout():
    result = invoke(noisy, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["value"] == "nan"
    assert "a library says hello" in result.stderr


def test_an_error_is_one_message_without_traceback_and_status_2():
    result = invoke(failing)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: there are no values at x: check the path\n"


def test_with_json_the_error_is_json_too():
    result = invoke(failing, "--json")
    assert result.exit_code == 2
    error = {"type": "SpoValuesError", "message": "there are no values at x: check the path"}
    assert json.loads(result.stdout) == {"error": error}


def test_debug_lets_the_error_through():
    assert isinstance(invoke(failing, "--debug").exception, SpoValuesError)


def test_a_defect_is_not_dressed_up_as_a_wrong_argument():
    assert isinstance(invoke(lambda: 1 / 0).exception, ZeroDivisionError)


def test_json_writes_numbers_that_it_does_not_have_as_texts(capsys):
    print_json({"list": [1.5, float("inf")], "tuple": (float("-inf"),), "text": "ä"})
    assert json.loads(capsys.readouterr().out) == {"list": [1.5, "inf"], "tuple": ["-inf"], "text": "ä"}


@pytest.mark.parametrize("flag", ["--jsn", "--debgu"])
def test_a_misspelt_option_is_refused(flag):
    result = invoke(noisy, flag)
    assert result.exit_code == 2
    assert flag in result.stderr
