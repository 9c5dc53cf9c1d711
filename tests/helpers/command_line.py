"""The command line, called within the process of the test."""

from typer.testing import CliRunner, Result

from cli import app


def call(*arguments: object) -> Result:
    """Run `flowgrad` with these arguments."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def passed(*arguments: object) -> str:
    """The output of a call that must succeed."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def failed(result: Result, code: int, *words: str) -> None:
    """A call must have ended with this code and with one or two lines that hold the words, and no traceback."""
    assert result.exit_code == code, result.output
    message = result.output[result.output.rindex("error:") :].strip()
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 2 and "Traceback" not in result.output
