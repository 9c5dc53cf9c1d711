"""Pushing to and pulling from a stand-in of the hub; the bank as a page; nothing of a stranger's is trusted."""

import base64
import hashlib
import io
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from directions.bank import hub
from directions.bank.bank import Bank, Entry
from directions.bank.card import in_words, to_card
from directions.bank.gallery import curve, to_page, write_gallery
from directions.bank.pictures import data_url, to_png
from directions.commands.tables import direction_card
from directions.file.calibration import MAGNITUDE_LIMIT, Calibration
from directions.file.direction import Direction
from directions.file.header import DirectionInfo
from directions.file.sampler import SamplerFile, SamplerInfo
from directions.file.terms import Term
from flowgrad.errors import FlowgradError, UsageError
from tests.helpers import hub_stand_in

SCRIPT = "<script>alert('mine')</script> & \"more\""


def direction(**changes: object) -> Direction:
    info = DirectionInfo("Smile", "tiny", "f" * 16, 6, text="a smiling face", tags=("expression", "mouth"))
    calibration = Calibration(6.5, 1.0, (-1.0, 0.0, 1.0), (-4.0, 0.0, 6.5), (-1.0, 1.0), kept=(1.0, 1.0, 0.97))
    return Direction.create(np.ones((2, 3, 4, 4)), np.array([0, 3]), replace(info, calibration=calibration, **changes))


def picture() -> bytes:
    return to_png(Image.new("RGB", (80, 40), "teal"))


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    bank = Bank(tmp_path / "bank")
    bank.add(direction(), "smiling", preview=picture(), card="# Smile")
    bank.add(direction(title="Old", tags=("age",)), "old")
    return bank


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every client of the hub ask this address."""
    client = pytest.importorskip("huggingface_hub", reason="needs the extra `hub`")
    monkeypatch.setattr(client, "HfApi", partial(client.HfApi, endpoint=address))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch):
    with hub_stand_in.hub() as (address, repositories):
        point_to(address, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
        yield repositories


# --- the hub ----------------------------------------------------------------------------------------------------


def test_what_is_pushed_can_be_pulled(bank: Bank, served: hub_stand_in.Repositories, tmp_path: Path) -> None:
    for name in ("old", "smiling"):
        assert "me/mine" in hub.push([bank.get(name)], "me/mine")
    files = served["me/mine"]
    assert set(files) == {"README.md", "tiny/old.safetensors", "tiny/smiling.safetensors", "tiny/smiling.png"}
    readme = files["README.md"].decode()
    assert readme.startswith("---\n") and "- flowgrad\n" in readme and "flowgrad bank pull me/mine" in readme
    assert "| smiling | tiny | a smiling face |" in readme and "| old | tiny |" in readme  # which was there already
    other = Bank(tmp_path / "other")
    assert [found.name for found in hub.pull("me/mine", other) if isinstance(found, Entry)] == ["old", "smiling"]
    pulled = other.get("smiling")
    assert pulled.info == bank.get("smiling").info and pulled.preview and pulled.card
    assert (pulled.load().u == bank.get("smiling").load().u).all()


def test_samplers_are_shared_as_directions_are(served: hub_stand_in.Repositories, bank: Bank, tmp_path: Path) -> None:
    term = Term("text", text="a smiling face", source="a face")
    bank.add(SamplerFile(SamplerInfo("Smilers", "tiny", "f" * 16, 6, (0, 3), (term,))), "smilers", preview=picture())
    hub.push([bank.get("smilers", kind="sampler")], "me/mine")
    assert "| smilers | tiny | sampler: a smiling face - a face |" in served["me/mine"]["README.md"].decode()
    other = Bank(tmp_path / "other")
    (found,) = hub.pull("me/mine", other)
    assert isinstance(found, Entry) and found.sampler == bank.get("smilers", kind="sampler").sampler
    assert "flowgrad sample --sampler smilers" in found.card.read_text()
    assert not other.list() and other.list(kind=None) == (found,)


def test_hostile_files_are_refused_one_by_one(
    bank: Bank, served: hub_stand_in.Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = bank.get("smiling").path.read_bytes()
    bomb = picture()[:16] + (50_000).to_bytes(4, "big") * 2 + picture()[24:]
    served["me/mine"] = {
        "tiny/../../evil.safetensors": raw,
        "../evil.safetensors": raw,
        "tiny/CON.safetensors": raw,
        "tiny/deep/x.safetensors": raw,
        "other/moved.safetensors": raw,
        "tiny/cut.safetensors": raw[:300],
        "tiny/large.safetensors": raw + bytes(5000),
        "tiny/good.safetensors": raw,
        "tiny/good.png": bomb,
        "tiny/good.md": b"<script>",
        "run.py": b"print()",
    }
    monkeypatch.setattr(hub, "FILE_LIMIT", len(raw) + 100)
    found = list(hub.pull("me/mine", Bank(tmp_path / "own")))
    (good,) = (each for each in found if isinstance(each, Entry))
    errors = " ".join(str(each) for each in found if isinstance(each, FlowgradError))
    assert good.name == "good" and good.preview is None and good.card and "<script>" not in good.card.read_text()
    assert all(words in errors for words in ("truncated", "wrong folder", "too large"))
    written = {path.relative_to(tmp_path / "own").as_posix() for path in (tmp_path / "own").glob("*/*.*")}
    assert written == {"tiny/good.safetensors", "tiny/good.md"}


def test_an_enormous_preview_is_not_fetched(
    bank: Bank, served: hub_stand_in.Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = bank.get("smiling").path.read_bytes()
    monkeypatch.setattr(hub, "FILE_LIMIT", len(raw) + 100)
    for more, is_fetched in ((len(raw) + 101, False), (0, True)):
        served["me/mine"] = {"tiny/good.safetensors": raw, "tiny/good.png": picture() + bytes(more)}
        (found,) = hub.pull("me/mine", Bank(tmp_path / "own"), overwrite=True)
        assert isinstance(found, Entry) and bool(found.preview) is is_fetched


def test_names_and_what_exists_are_refused(bank: Bank, served: hub_stand_in.Repositories) -> None:
    for name in ("mine", "../mine", "me/mine/more", "me/..", "https://hub/me/mine"):
        with pytest.raises(UsageError, match="OWNER/NAME"):
            hub.push(bank.list(), name)
    with pytest.raises(UsageError, match="no direction to push"):
        hub.push([], "me/mine")
    hub.push(bank.list(), "me/mine")
    with pytest.raises(UsageError, match="no direction called wow; there is old, smiling"):
        list(hub.pull("me/mine", bank, ["wow"]))
    (found,) = hub.pull("me/mine", bank, ["old"])
    assert isinstance(found, UsageError) and "exists already" in str(found)
    with pytest.raises(FlowgradError, match=r"refused me/none \(404\).*log in with"):
        list(hub.pull("me/none", bank))


def test_without_a_network_the_message_says_so(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(FlowgradError, match=r"the hub cannot be reached.*Check the network"):
        list(hub.pull("me/mine", bank))


def test_a_readme_and_a_card_show_texts_as_texts(bank: Bank) -> None:
    entry = bank.add(direction(text="a | <b>face</b>\n# x"), "odd")
    assert entry.info
    for written in (hub.to_readme("me/mine", bank.list()), to_card("odd", entry.info)):
        assert r"a \| \<b\>face\</b\> \# x" in written


@pytest.mark.parametrize(
    ("text", "change", "words"),
    [
        ("a smiling face - a serious face", -3.6, "more “a serious face”, less “a smiling face” (3.6)"),
        ("a smiling face", -0.5, "less “a smiling face” (-0.5)"),
    ],
)
def test_side_effects_are_told_in_words(text: str, change: float, words: str) -> None:
    assert in_words(text, change) == words


# --- the gallery ------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags of a page with their attributes, and its texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def images(self, kind: str = "jpeg") -> list[str | None]:
        """What is said of each picture of a kind."""
        return [image["alt"] for image in self.all("img") if str(image["src"]).startswith(f"data:image/{kind};base64,")]


def test_the_gallery_is_whole_and_tells_what_the_bank_knows(bank: Bank, tmp_path: Path) -> None:
    page = Page(write_gallery(bank.list(), tmp_path / "gallery.html").read_text(encoding="utf-8"))
    assert len(page.all("li")) == 2 and "Smile" in page.texts and "Old" in page.texts
    (photo,) = page.images()
    assert photo and "Smile" in photo
    assert page.images("svg+xml") == ["Effect by strength: -4.0 at -1, +6.5 at 1"] * 2
    assert len(page.all("img")) == 3
    assert {button["data-tag"] for button in page.all("button")} == {"age", "expression", "mouth"}
    assert page.all("label")[0]["for"] == "search" and page.all("html")[0]["lang"] == "en"
    with pytest.raises(UsageError, match="exists already"):
        write_gallery(bank.list(), tmp_path / "gallery.html")


def test_the_gallery_needs_no_network_and_allows_its_own_script_alone(bank: Bank) -> None:
    html = to_page(bank.list())
    assert not re.search(r"https?://", html) and "@import" not in html and "url(" not in html
    (policy,) = [each["content"] for each in Page(html).all("meta") if each.get("http-equiv")]
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy and "default-src 'none'" in policy and f"'sha256-{digest}'" in policy


def test_a_script_in_a_title_is_text(bank: Bank) -> None:
    texts = {"title": SCRIPT, "text": SCRIPT, "description": SCRIPT, "tags": (SCRIPT.replace(",", ""),)}
    bank.add(direction(**texts), "evil", preview=b"<svg onload=alert(1)>")
    page = Page(to_page(bank.list(), SCRIPT))
    assert len(page.all("script")) == 1 and SCRIPT in page.texts
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert len(page.images()) == 1  # what is no picture is not shown


@pytest.mark.parametrize(("raw", "count"), [(picture(), 1), (b"no picture", 0)])
def test_without_a_preview_the_headers_picture_is_shown_encoded_anew(tmp_path: Path, raw: bytes, count: int) -> None:
    own, url = Bank(tmp_path / "own"), data_url(raw, "image/png")
    entry = own.add(direction(thumbnail=url), "smiling")
    page = Page(to_page(own.list()))
    assert len(page.images()) == count and url not in str(page.all("img"))
    told = io.StringIO()
    Console(file=told, width=200).print(direction_card(entry))
    assert "in the file itself" in told.getvalue()


@pytest.mark.parametrize("size", [MAGNITUDE_LIMIT, 1e-3, 5e-324])
def test_a_curve_of_the_strangest_numbers_that_a_file_may_hold_is_drawn(size: float) -> None:
    assert curve((-size, 0.0, size), (-size, 0.0, size), (-size, size)).startswith("data:image/svg+xml;base64,")


def test_a_damaged_direction_is_shown_with_its_error(bank: Bank) -> None:
    (bank.folder / "tiny" / "bad.safetensors").write_bytes(b"nothing")
    assert any("truncated" in text or "bad" in text for text in Page(to_page(bank.list())).texts)
