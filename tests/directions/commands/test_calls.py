"""Every command: wrong values and names exit with 2 before any work begins, failed jobs with 1."""

import ast
import errno
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
from PIL import Image

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


TRAIN = "train-direction --samples 2 --text 'a smiling face' --name x --output run"
EDIT = "edit none.jpg --text 'a smiling face'"
WRONG = {  # calls that are wrong, and what the message says of them
    "train-direction --text 'a smile' --name x": "either photos",
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
    "train-direction none.jpg nor.jpg --text 'a smile' --name x": "none.jpg, nor.jpg do not exist",
    f"{TRAIN} --set intervals=999": "intervals must be at most N = 50, the Euler steps of this model; got 999",
    f"{TRAIN} --intervals 51": "intervals must be at most N = 50, the Euler steps of this model; got 51",
    f"{TRAIN} --eta 1.5": "eta: must be less than or equal to 1; got 1.5",
    f"{TRAIN} --title '{'x' * 201}'": "title must be one line of 1 to 200 characters",
    f"{TRAIN} --title '\n'": "title must be one line",
    f"{TRAIN} --seed {1 << 64}": "--seed must lie in 0 to 18446744073709551615; got 18446744073709551616",
    f"{EDIT} --seed -1": "--seed must lie in 0 to",
    f"sample --seed {1 << 70}": "--seed must lie in 0 to",
    f"{TRAIN} --tag a,b": "a tag is one line without comma or outer space, not ('a,b',)",
    f"{TRAIN} --tag ''": "a tag is one line",
    f"{TRAIN} --description '\x1b[31m'": "description must be a text without control characters",
    f"{TRAIN} --text ''": "a text must not be empty",
    f"{TRAIN} --text 'A  smile' --source 'a smile'": "is its own source",
    f"{TRAIN} --text 'a smile - a smile'": "is its own source",
    f"{TRAIN} --text 'a face'": "is its own source",  # the model's subject
    f"{TRAIN} --keep 'a man - a man'": "'a man' is its own source",
    f"{TRAIN} --text 'xyzzy plugh'": "knows no word of the text 'xyzzy plugh'",
    f"{TRAIN} --text 'a xyzzy'": "knows no word of the text 'a xyzzy'",
    f"{TRAIN} --text '{'x' * 200_000}'": "text must be at most 1,000 characters, not 200000",
    f"{EDIT}": "none.jpg does not exist",
    f"{EDIT} --strength nan": "finite number",
    f"{EDIT} --eta 2": "less than or equal to 1; got 2",
    f"{EDIT} --set momentun=1": "did you mean 'momentum'",
    f"{EDIT} --set intervals=999": "at most N = 50",
    f"{EDIT} --model faces46": "faces64",
    f"{EDIT} --guide nobody": "faces64-guide",
    "edit photo.png --text 'a smiling face'": "edited/photo-a-smiling-face.png exists already",
    "edit splits.csv --text 'xyzzy'": "knows no word",
    "edit splits.csv --text 'a face'": "is its own source",
    "apply-direction smiling none.jpg": "'smiling'",
    "apply-direction smiling:much none.jpg": "smiling:0.8+old:0.3",
    "apply-direction smiling none.jpg --strengths a,b": "--strengths",
    "apply-direction smiling none.jpg --strengths 0,1 --strength 0.5": "one of the two (got 0.5",
    "apply-direction smiling none.jpg --strengths 0,nan": "--strengths",
    "apply-direction smiling none.jpg --strengths ''": "--strengths takes numbers",
    "apply-direction smiling none.jpg --strengths ,": "--strengths takes numbers",
    "apply-direction smiling none.jpg --keep-identity -1": "--keep-identity must be a number above 0; got -1",
    "apply-direction smiling none.jpg --keep-identity nan": "--keep-identity must be a number above 0; got nan",
    "apply-direction smiling none.jpg --strength nan": "finite number",
    "apply-direction smiling none.jpg --strength inf": "finite number",
    "apply-direction smiling none.jpg --model faces46": "faces64",
    "sample --model faces46": "faces64",
    "sample --guide faces64-guide": "give --sampler too",
    "sample --direction smiling": "'smiling'",
    "evaluate smiling --photos none.jpg": "'smiling'",
    "evaluate smiling --photos none.jpg --strengths ,": "--strengths",
    "evaluate smiling --photos none.jpg --model faces46": "faces64",
    "evaluate smiling --photos none.jpg --judge nobody": "faces64-judge",
    "evaluate smiling --photos none.jpg --judge none.safetensors": "no judge at none.safetensors",
    "evaluate smiling --photos none.jpg --strengths ''": "--strengths takes numbers",
    "benchmark --thresholds a": "--thresholds",
    "benchmark --thresholds ''": "--thresholds takes numbers",
    "benchmark --text 'a face'": "is its own source",
    "benchmark --model faces46": "faces64",
    "benchmark --guide nobody": "faces64-guide",
    "benchmark --recipe defualt": "default",
    "benchmark --factors a": "--factors takes numbers",
    "benchmark --distance 0": "--distance must be a number above 0",
    "evaluate smiling --photos none.jpg --distance -1": "--distance must be a number above 0",
    "evaluate smiling --photos none.jpg --recipe defualt": "default",
    "ui --model faces46": "faces64",
    "train-guide none none.csv --output x --config faces46": "faces64",
    "train-flow none --seed 99999999999999999999": "18446744073709551615",
    "train-flow": "either pictures",
    **{
        f"bank {words} --model faces46": "no model called 'faces46', nor a direction for one; there is faces64"
        for words in (
            *("list", "show smiling", "path smiling", "remove smiling", "restore smiling", "rename smiling smile"),
            *("export smiling x", "gallery", "push me/mine"),
        )
    },
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


def prepare() -> None:
    """The files that some of these calls name."""
    Path("splits.csv").write_text("file,split\n")
    Image.new("RGB", (8, 8)).save("photo.png")
    Path("edited").mkdir()
    Path("edited/photo-a-smiling-face.png").touch()


@pytest.mark.parametrize("line", WRONG)
def test_wrong_calls_are_noticed_before_a_model_is_loaded(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowgrad.models.import_module", lambda family: pytest.fail("a model is loaded"))
    prepare()
    failed(call(*shlex.split(line)), 2, WRONG[line])


def test_wrong_calls_are_noticed_before_torch_is_loaded() -> None:
    """At once, that is, and not after seconds of imports."""
    lines = list(WRONG)
    prepare()
    code = f"""
import shlex, sys
from typer.testing import CliRunner
import directions.bank.bank
from cli import app
directions.bank.bank._shipped_folder = lambda: None
for line in {lines}:
    assert CliRunner().invoke(app, shlex.split(line)).exit_code == 2, line
    assert "torch" not in sys.modules, line
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable], input=code, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0


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
