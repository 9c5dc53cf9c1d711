"""The bank: finding, adding and removing directions, and the speed of listing them."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from directions.bank.bank import Bank, Entry
from directions.bank.card import to_card
from directions.file.direction import Direction, DirectionInfo, write_direction
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.resources import DEFAULT_MODEL
from tests.helpers.paths import ROOT


def make_direction(title: str = "Smiling", model: str = "faces64", value: float = 1.0, **changes: Any) -> Direction:
    info = DirectionInfo(title=title, model=model, fingerprint="abc", steps=10, **changes)
    return Direction.create(np.full((2, 3), value), np.array([0, 5]), info)


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """A bank with two shipped directions and none of the user's."""
    shipped = Bank(tmp_path / "shipped")
    shipped.add(make_direction("Smiling", text="a smiling face", tags=("expression",)), "smiling", card="# Smiling")
    shipped.add(make_direction("Old", text="an old face", tags=("age",)), "old")
    return Bank(tmp_path / "mine", shipped=shipped.folder)


def names(entries: tuple[Entry, ...]) -> list[str]:
    return [entry.name for entry in entries]


def test_the_list_has_both_banks_and_the_users_hides_the_shipped(bank: Bank) -> None:
    bank.add(make_direction("My smile"), "smiling")
    bank.add(make_direction("A", model="church"), "autumn")
    assert [(e.model, e.name, e.shipped) for e in bank.list()] == [
        ("church", "autumn", False),
        ("faces64", "old", True),
        ("faces64", "smiling", False),
    ]
    assert names(bank.list("church")) == ["autumn"]
    info = bank.get("smiling").info
    assert info is not None and info.title == "My smile"
    bank.remove("smiling")
    assert bank.get("smiling").shipped


def test_entry_has_preview_and_card(bank: Bank) -> None:
    entry = bank.add(make_direction(), "smile", preview=b"\x89PNG", card="# Smile")
    assert entry.preview and entry.preview.read_bytes() == b"\x89PNG"
    assert entry.card and entry.card.read_text() == "# Smile"
    assert entry.size == entry.path.stat().st_size and entry.load().u.shape == (2, 3)
    assert bank.get("old").preview is None


def test_an_unknown_name_gives_the_nearest(bank: Bank, tmp_path: Path) -> None:
    for name, model, message in (
        ("smilin", None, r"no direction is called 'smilin'. Nearest: smiling\."),
        ("old", "church", "no direction for church is called 'old'"),
        ("qqqqqq", None, "flowgrad bank list"),
        ("/tmp/x.safetensors", None, "flowgrad bank import /tmp/x.safetensors"),
    ):
        with pytest.raises(UsageError, match=message):
            bank.get(name, model)
    empty = Bank(tmp_path / "none")  # which need not exist
    assert empty.list() == ()
    with pytest.raises(UsageError, match="There is none yet; train one"):
        empty.get("smiling")


def test_a_name_of_several_models_must_say_which(bank: Bank) -> None:
    bank.add(make_direction(model="ffhq"), "smiling")
    with pytest.raises(UsageError, match=r"several models: faces64, ffhq. Write faces64/smiling"):
        bank.get("smiling")
    assert bank.get("ffhq/smiling").model == "ffhq"
    assert bank.get("smiling", model="faces64").model == "faces64"


def test_a_name_alone_is_the_default_models_if_it_has_one(bank: Bank) -> None:
    bank.add(make_direction(model=DEFAULT_MODEL), "smiling")
    assert bank.get("smiling").model == DEFAULT_MODEL
    assert bank.get("faces64/smiling").model == bank.get("smiling", "faces64").model == "faces64"
    assert bank.remove("smiling").model == DEFAULT_MODEL and bank.get("smiling").model == "faces64"


@pytest.mark.parametrize("name", ["../evil", "a/b", "/etc/passwd", "..", "A b", "", "x" * 65, "nul"])
def test_bad_names_never_become_paths(bank: Bank, name: str) -> None:
    with pytest.raises(UsageError):
        bank.add(make_direction(), name)
    with pytest.raises(UsageError):
        bank.path_for("ok", name)
    with pytest.raises(UsageError):
        bank.rename("smiling", name)
    assert not bank.folder.exists()


def test_what_is_replaced_only_if_told_comes_back(bank: Bank) -> None:
    bank.add(make_direction(value=1.0), "mine", preview=b"old", card="old")
    with pytest.raises(UsageError, match=r"exists already.*--overwrite"):
        bank.add(make_direction(value=2.0), "mine")
    entry = bank.add(make_direction(value=2.0), "mine", overwrite=True)
    assert entry.load().u[0, 0] == 2 and entry.preview is None and entry.card is None
    with pytest.raises(UsageError, match="exists already"):
        bank.restore("mine")
    bank.remove("mine")
    assert bank.restore("mine").load().u[0, 0] == 2  # the last that went
    bank.path_for("mine", "faces64").unlink()
    entry = bank.restore("mine")
    assert entry.load().u[0, 0] == 1 and entry.card and entry.card.read_text() == "old"


def test_remove_and_restore(bank: Bank) -> None:
    bank.add(make_direction(), "mine", preview=b"p", card="c")
    path = bank.remove("mine").path
    assert not path.exists() and names(bank.list()) == ["old", "smiling"]
    assert list(path.parent.iterdir()) == []
    entry = bank.restore("mine")
    assert entry.path == path and entry.preview and entry.card
    with pytest.raises(UsageError, match=r"no removed direction is called 'mine'. The trash holds: nothing"):
        bank.restore("mine")


def test_shipped_directions_stay(bank: Bank) -> None:
    for change in (lambda: bank.remove("old"), lambda: bank.rename("old", "older")):
        with pytest.raises(UsageError, match="'old' ships with flowgrad and cannot be re"):
            change()
    assert "old" in names(bank.list())


def test_rename(bank: Bank) -> None:
    direction = make_direction()
    bank.add(direction, "mine", preview=b"p", card=to_card("mine", direction.info))
    entry = bank.rename("mine", "yours")
    assert entry.name == "yours" and entry.preview and entry.card and "mine" not in names(bank.list())
    card = entry.card.read_text()
    assert "(yours.png)" in card and "apply-direction yours" in card and "mine" not in card
    bank.add(make_direction(), "mine")
    with pytest.raises(UsageError, match="exists already"):
        bank.rename("mine", "yours")


def test_import_checks_everything(bank: Bank, tmp_path: Path) -> None:
    source = write_direction(make_direction("Wink"), tmp_path / "My Wink (2).safetensors")
    assert bank.import_file(source).name == "my-wink-2"
    assert bank.import_file(source, "wink").path == bank.folder / "faces64" / "wink.safetensors"
    with pytest.raises(UsageError, match="cannot name a direction"):  # no letter of it may be in a name
        bank.import_file(source.rename(tmp_path / "微笑.safetensors"))
    source = write_direction(make_direction(), tmp_path / "broken.safetensors")
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(FlowgradError, match="truncated"):
        bank.import_file(source)
    assert "broken" not in names(bank.list())


def test_export(bank: Bank, tmp_path: Path) -> None:
    target = bank.export("smiling", tmp_path)
    assert target == tmp_path / "smiling.safetensors"
    assert target.read_bytes() == bank.get("smiling").path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        bank.export("smiling", tmp_path)
    assert bank.export("smiling", tmp_path / "other.safetensors").exists()
    with pytest.raises(UsageError, match="is no folder"):
        bank.export("smiling", tmp_path / "other.zip")


def test_damaged_files_are_listed_with_their_error(bank: Bank) -> None:
    good = bank.add(make_direction(), "good").path
    (good.parent / "broken.safetensors").write_bytes(b"nonsense")
    (good.parent / "Bad Name.safetensors").write_bytes(good.read_bytes())
    (good.parent / "folder.safetensors").mkdir()
    (good.parent / ".good-tmp.safetensors").write_bytes(b"half")
    (good.parent / "notes.txt").write_text("x")
    (bank.folder / "ffhq").mkdir()
    shutil.copy(good, bank.folder / "ffhq" / "lost.safetensors")
    errors = {entry.name: entry.error for entry in bank.list()}
    assert set(errors) == {"Bad Name", "broken", "folder", "good", "lost", "old", "smiling"}
    assert errors["good"] is None
    assert "damaged" in str(errors["broken"])
    assert "cannot name" in str(errors["Bad Name"])
    assert "not a file" in str(errors["folder"])
    assert "Move it to the folder faces64" in str(errors["lost"])
    with pytest.raises(FlowgradError, match="damaged"):
        bank.get("broken").load()
    bank.remove("broken")


def test_search_ranks_and_needs_every_word(bank: Bank) -> None:
    bank.add(make_direction("Laughing", text="a laughing face", description="stronger than smiling"), "laughing")
    assert names(bank.search("smiling")) == ["smiling", "laughing"]
    assert names(bank.search("FACE old")) == ["old"]
    assert names(bank.search("age")) == ["old"]
    assert names(bank.search("smil expr")) == ["smiling"]
    assert bank.search("unicorn") == () and bank.search("") == ()


def test_default_bank_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWGRAD_BANK", str(tmp_path / "env"))
    assert Bank.default().folder == tmp_path / "env"
    assert Bank.default(tmp_path / "arg").folder == tmp_path / "arg"
    monkeypatch.delenv("FLOWGRAD_BANK")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert Bank.default().folder == tmp_path / "xdg" / "flowgrad" / "bank"


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FlowgradError, match="cannot read the bank"):
        Bank(tmp_path / "file").list()
    with pytest.raises(FlowgradError, match="cannot change the bank"):
        Bank(tmp_path / "file").add(make_direction(), "x")


def test_listing_imports_nothing_heavy(bank: Bank) -> None:
    code = f"""
import sys
from pathlib import Path
from directions.bank.bank import Bank
bank = Bank(Path({str(bank.folder)!r}), Path({str(bank.shipped)!r}))
assert len(bank.list()) == 2 and bank.search("old") and bank.get("smiling").error is None
print([name for name in ("numpy", "torch", "PIL", "pydantic", "safetensors", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
