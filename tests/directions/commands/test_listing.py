"""Lines of a bank."""

from directions.bank.bank import Bank
from directions.commands.listing import aligned, bank_lines


def test_columns_stand_below_one_another_in_every_script() -> None:
    lines = aligned([("a", "bb", "last"), ("微笑", "b", "is as long as it is"), ("e\u0301", "", "")]).split("\n")
    assert lines == ["a     bb  last", "微笑  b   is as long as it is", "e\u0301         "]


def test_every_entry_has_a_line() -> None:
    found = Bank.default().lines(kind=None)
    lines = bank_lines(found).split("\n")
    assert len(lines) == len(found) + 1
    (line,) = (line for line in lines if line.startswith("smiling ") and "faces128" in line)
    assert line.endswith("a smiling face") and " to " in line and " flowgrad " in line
