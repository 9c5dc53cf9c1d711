"""Every command: wrong values and names exit with 2 before any work begins, failed jobs with 1."""

import ast
import errno
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer

from cli import app
from flowgrad.errors import FlowgradError, UsageError
from tests.helpers.command_line import call, failed
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.usefixtures("home")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The words of every command, and the command."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


PROGRAM: Any = typer.main.get_command(app)
COMMANDS = dict(commands(PROGRAM))


def run(words: tuple[str, ...], *more: str) -> int:
    """The exit code of a command with something for each argument and option that it requires, and with more."""
    given: list[str] = []
    for parameter in (parameter for parameter in COMMANDS[words].params if parameter.required):
        given += [*(parameter.opts[:1] if parameter.param_type_name == "option" else ()), "faces64"]
    with pytest.raises(SystemExit) as ended:
        PROGRAM([*words, *given, *more])
    return int(str(ended.value.code))


def has_rule(annotation: Any) -> bool:
    """Whether a parameter's type is a number or a choice, or one of these or None."""
    declared = get_args(annotation)[0]
    kinds = {declared, *get_args(declared)}
    return bool(kinds & {int, float}) or any(get_origin(kind) is Literal for kind in kinds)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_values_are_checked_by_their_types(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers and choices by Typer; and no command takes an option that it does not know."""
    options = {parameter.name: parameter.opts[0] for parameter in COMMANDS[words].params}
    for parameter in inspect.signature(COMMANDS[words].callback).parameters.values():
        if has_rule(parameter.annotation):
            assert run(words, options[parameter.name], "perhaps") == 2
            assert f"Invalid value for '{options[parameter.name]}'" in capsys.readouterr().err
    assert run(words, "--nonsense") == 2
    assert run(words, "--help") == 0


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("the name is wrong"), 2, "the name is wrong"),
        (FlowgradError("the file is damaged"), 1, "the file is damaged"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 1, "the disk is full"),
        (MemoryError(), 1, "there is not enough memory"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_the_exit_code_says_whether_the_call_or_the_job_was_wrong(
    words: tuple[str, ...],
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(COMMANDS[words], "callback", fail)
    assert run(words) == code
    said = capsys.readouterr().err
    assert f"error: {message}" in said and len(said.splitlines()) <= 2


TRAIN = "train-direction --samples 2 --text x --name x --output run"
WRONG = {  # calls that are wrong, and what the message says of them
    "train-direction --text x --name x": "either photos",
    f"{TRAIN} none.jpg": "either photos",
    f"{TRAIN} --model faces46": "faces64",
    f"{TRAIN} --guide nobody": "faces64-guide",
    f"{TRAIN} --guide none.safetensors": "no guide at none.safetensors",
    f"{TRAIN} --recipe defualt": "default",
    f"{TRAIN} --name 'Big Smile'": "cannot name a direction",
    f"{TRAIN} --eta 2": "less than or equal to 1; got 2",
    f"{TRAIN} --iterations 0": "iterations",
    f"{TRAIN} --set momentun=1": "did you mean 'momentum'",
    f"{TRAIN} --set momentum": "KEY=VALUE",
    f"{TRAIN} --set momentum=[": "momentum",
    f"{TRAIN} --set inversion=magic": "'fixed-point' or 'rk45'",
    f"{TRAIN} --set optimizer=magic": "optimizer",
    f"{TRAIN} --calibrate-on none.jpg": "none.jpg does not exist",
    "train-direction none.jpg --text x --name x": "none.jpg does not exist",
    "edit none.jpg --text x": "none.jpg does not exist",
    "edit none.jpg --text x --strength nan": "finite number",
    "edit none.jpg --text x --eta 2": "less than or equal to 1; got 2",
    "edit none.jpg --text x --model faces46": "faces64",
    "apply-direction smiling none.jpg": "'smiling'",
    "apply-direction smiling:much none.jpg": "smiling:0.8+old:0.3",
    "apply-direction smiling none.jpg --strengths a,b": "--strengths",
    "apply-direction smiling none.jpg --strengths 0,1 --strength 0.5": "one of the two (got 0.5",
    "apply-direction smiling none.jpg --strengths 0,nan": "--strengths",
    "apply-direction smiling none.jpg --strength nan": "finite number",
    "apply-direction smiling none.jpg --strength inf": "finite number",
    "apply-direction smiling none.jpg --model faces46": "faces64",
    "sample --model faces46": "faces64",
    "sample --direction smiling": "'smiling'",
    "evaluate smiling --photos none.jpg": "'smiling'",
    "evaluate smiling --photos none.jpg --strengths ,": "--strengths",
    "evaluate smiling --photos none.jpg --model faces46": "faces64",
    "evaluate smiling --photos none.jpg --judge nobody": "faces64-judge",
    "evaluate smiling --photos none.jpg --judge none.safetensors": "no judge at none.safetensors",
    "benchmark --thresholds a": "--thresholds",
    "benchmark --model faces46": "faces64",
    "benchmark --guide nobody": "faces64-guide",
    "ui --model faces46": "faces64",
    "train-guide none none.csv --output x --config faces46": "faces64",
    "train-flow": "either pictures",
    "bank show smiling": "no direction",
    "bank path smiling": "no direction",
    "bank remove smiling": "no direction",
    "bank restore smiling": "no removed direction",
    "bank rename smiling smile": "no direction",
    "bank export smiling x": "no direction",
    "bank matrix smiling old": "no direction",
    "bank matrix --model faces46": "faces64",
    "bank matrix --guide nobody": "faces64-guide",
    "bank push smiling": "no direction to push",
    "bank pull smiling": "smiling",
    "models add x none": "none does not exist",
    "models add x none --like faces46": "faces64",
    "models add x none --guide nobody": "faces64-guide",
    "models remove shoes": "no model of yours",
    "models show faces46": "faces64",
    "models check faces46": "faces64",
    "models gate none.zip --model faces46": "faces64",
    "models convert none x --before faces46": "faces64",
    "models measure faces46": "faces64",
    "models measure faces64 --before faces46": "faces64",
    "models measure faces64 --splits splits.csv": "give both",
}
NAMES = [line for line in WRONG if re.search(r"--(model|recipe|like) (faces46|defualt)|none.safetensors", line)]


@pytest.mark.parametrize("line", WRONG)
def test_wrong_calls_are_noticed_before_a_model_is_loaded(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowgrad.models.import_module", lambda family: pytest.fail("a model is loaded"))
    Path("splits.csv").write_text("file,split\n")
    failed(call(*shlex.split(line)), 2, WRONG[line])


def test_wrong_names_are_noticed_before_torch_is_loaded() -> None:
    assert len(NAMES) > 10
    code = "import sys; from typer.testing import CliRunner; from cli import app; import shlex"
    code += f"\nfor line in {NAMES}: assert CliRunner().invoke(app, shlex.split(line)).exit_code == 2, line"
    code += "\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_option_that_a_message_names_exists() -> None:
    """In all texts of the code; those of pip, torchrun and the like are named in words."""
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "--version", "--nproc-per-node"}
    for path in (file for room in ("flowgrad", "directions") for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = set(re.findall(r"(?<![\w<!-])--[a-z][a-z-]*[a-z]", node.value))
                assert named <= known, f"{path.relative_to(ROOT)} names {named - known}"
