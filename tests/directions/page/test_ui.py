"""The page: what it refuses, and (slow) all of it in a headless Chromium."""

import asyncio
import io
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from direction_bank import screenshots
from directions.bank.bank import Bank
from directions.bank.gallery import write_gallery
from directions.file.direction import Direction, DirectionInfo
from directions.page import session as studio_module
from directions.page.page import _edited, _labelled, build
from directions.page.session import Shelf, Studio
from directions.train.recipe import Recipe, load_recipe
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models import Model, load_model
from tests.helpers.pictures import bomb
from tests.helpers.tiny import Tiny, make_tiny

EVIL = "<img src=x onerror=alert(1)>${alert(2)} {{value}}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Model:
    return load_model(str(tiny.model), "cpu", "fp32")


def fill(bank: Bank, model: Model) -> None:
    for i, (name, title, tag) in enumerate(
        (("smiling", "Smile", "mouth"), ("old", "Old", "age"), ("evil", EVIL, "odd"))
    ):
        info = DirectionInfo(title, model.name, model.fingerprint, 6, text=f"a {name} face", tags=(tag,))
        u = 0.6 * np.random.default_rng(i).normal(size=(2, 3, 16, 16))
        bank.add(Direction.create(u, np.array([0, 2 + i]), info), name)


@pytest.fixture
def studio(model: Model, tmp_path: Path) -> Studio:
    bank = Bank(tmp_path / "bank")
    fill(bank, model)
    return Studio(model, bank)


def text_alone(name: str, **changes: object) -> Recipe:
    """A recipe in which a random guide finds something: nothing is weighed against the text."""
    return load_recipe(name, eta=1.0, intervals=3, augmentations=1, **changes)


def photo(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8))
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


# --- without the page -------------------------------------------------------------------------------------------


def test_a_photo_is_inverted_and_judged_once_and_edited_often(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    token = studio.receive("holiday.png", photo())
    monkeypatch.setattr(studio_module, "invert_images", None)  # not again
    monkeypatch.setattr(studio_module, "judge_familiarity", None)
    monkeypatch.setattr(studio_module, "read_photo", None)
    before = studio.subjects.get(token).small
    assert studio.edit(token, {}).tobytes() == before.tobytes() == studio.edit(token, {"smiling": 0.0}).tobytes()
    one, both = studio.edit(token, {"smiling": 1.0}), studio.edit(token, {"smiling": 1.0, "old": -1})
    assert one.size == (60, 40) and len({image.tobytes() for image in (before, one, both)}) == 3
    assert len(studio.strip(token, {"smiling": 1.0})) == 5


def test_what_is_shown_is_small_and_what_is_downloaded_is_not(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio_module, "SHOWN_SIDE", 30)
    content = photo(60, 40, "JPEG")
    token = studio.receive("holiday.jpg", content)
    subject, shown = studio.subjects.get(token), studio.edit(token, {"smiling": 0.1})
    assert shown.size == subject.small.size == (30, 20) and subject.size == (60, 40)
    made = studio.download(token, {"smiling": 0.1})
    assert (made.name, made.kind) == ("holiday.jpg", "jpeg")
    with Image.open(io.BytesIO(made.content)) as large:
        assert large.size == (60, 40) and large.format == "JPEG"
        small = np.asarray(large.resize((30, 20), Image.Resampling.BOX)).astype(float)
    assert np.abs(small - np.asarray(shown)).mean() < 4
    assert studio.download(token, {}).content == content == studio.download(token, {"smiling": 0.0}).content


def test_sliders_keep_the_strengths_of_what_stays_chosen(studio: Studio) -> None:
    pytest.importorskip("gradio", reason="needs the extra `ui`")
    names, first, second, *_ = _labelled(studio, ["old"], {"smiling": 1.0, "old": -0.8})
    assert names == ["old"] and (first["label"], first["value"]) == ("old", -0.8)
    assert not second["visible"] and second["value"] == 0


def test_a_direction_trained_since_then_needs_no_other_inversion(studio: Studio, model: Model) -> None:
    token = studio.receive("holiday.png", photo())
    info = DirectionInfo("New", model.name, model.fingerprint, 6)
    studio.bank.add(Direction.create(np.ones((6, 3, 16, 16)), np.arange(6), info), "new")
    assert studio.edit(token, {"new": 1.0}).size == (60, 40)


def test_training_yields_every_evaluation_and_saves(
    studio: Studio, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio_module, "load_recipe", text_alone)
    tokens = [studio.keep(path.name, path.read_bytes())[0] for path in tiny.files]
    steps = list(studio.train(tokens, "a smiling face", "wide", "a serious face", 2))
    assert [len(step.losses) for step in steps] == [1, 2, 3, 3] and steps[-1].entry
    assert studio.bank.get("wide").preview and "wide" in studio.names()
    for sent, text, name, words in (
        ([], "x", "new", "ten photos"),
        (tokens * 6, "x", "new", "24 photos are too many: at most 20"),
        (tokens, " ", "new", "what the faces shall become"),
        (tokens, "x", "../evil", "cannot name a direction"),
        (tokens, "x", "wide", "exists already"),
    ):
        with pytest.raises(UsageError, match=words):
            next(studio.train(sent, text, name, "", 2))


def test_the_command_line_that_does_the_same(model: Model) -> None:
    studio = Studio(model, Bank.default(None), ("--bank", "my bank"))
    assert studio.command("my photo.jpg", {"smiling": 0.8, "old": 0.0, "wide": -0.3}) == (
        "flowgrad apply-direction smiling:0.8+wide:-0.3 'my photo.jpg' --bank 'my bank'"
    )
    assert studio.command("x.jpg", {}) == ""


def test_only_the_last_things_are_kept() -> None:
    shelf: Shelf[int] = Shelf(2)
    tokens = [shelf.add(i) for i in range(3)]
    assert shelf.get(tokens[2]) == 2 and shelf.get(tokens[1]) == 1
    with pytest.raises(UsageError, match="no longer in memory"):
        shelf.get(tokens[0])


# --- hostile input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bomb.png", bomb(), "too many pixels"),
        ("cut.jpg", photo(200, 200, "JPEG")[:900], "damaged or truncated"),
        ("drawing.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "not an image"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        ("../../etc/passwd", b"root", "^passwd is not an image"),
    ],
)
def test_photos_that_are_refused(studio: Studio, name: str, content: bytes, words: str) -> None:
    for take in (studio.receive, studio.keep):
        with pytest.raises(FlowgradError, match=words):
            take(name, content)


def test_names_are_those_of_the_bank(studio: Studio) -> None:
    token = studio.sample(0)
    assert studio.edit(token, {"old": 0.5}).size == (16, 16)
    for name in ("../evil", "/etc/passwd", "tiny/smiling", "smiling.safetensors"):
        with pytest.raises(UsageError, match="cannot name a direction"):
            studio.edit(token, {name: 1.0})
    with pytest.raises(UsageError, match="no direction for tiny is called 'smilin'"):
        studio.edit(token, {"smilin": 1.0})


def test_sent_names_are_texts(studio: Studio) -> None:
    pytest.importorskip("gradio", reason="needs the extra `ui`")
    html, line = _edited(studio, studio.receive(f"a/{EVIL}.png", photo()), {"smiling": 1.0})
    assert "<img src=x" not in html and line.startswith("flowgrad apply-direction smiling:1 ")


@pytest.fixture
def app(studio: Studio) -> Any:
    pytest.importorskip("gradio", reason="needs the extra `ui`")
    return build(studio)


def ask(app: Any, path: str, *chunks: bytes, **headers: str) -> tuple[int, str, int]:
    """Status and text of the answer to a request (POST if it has a body), and how many chunks were taken of it."""
    taken, messages = [0], []

    async def receive() -> dict[str, Any]:
        taken[0] += 1
        body = chunks[taken[0] - 1] if taken[0] <= len(chunks) else b""
        return {"type": "http.request", "body": body, "more_body": taken[0] < len(chunks)}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    pairs = [(name.replace("_", "-"), value) for name, value in {"host": "127.0.0.1:7860", **headers}.items()]
    scope = {"type": "http", "method": "POST" if chunks else "GET", "path": path, "query_string": b""}
    scope |= {"headers": [(name.encode(), value.encode()) for name, value in pairs]}
    asyncio.run(app(scope, receive, send))
    return messages[0]["status"], messages[1]["body"].decode(), taken[0]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/gradio_api/upload", {}, 403),
        ("/gradio_api/file=/etc/passwd", {}, 403),
        ("/gradio_api/file%3D/etc/passwd", {}, 403),
        ("/gradio_api/proxy=x", {}, 403),
        ("/gradio_api/undo-vibe-edit", {}, 403),
        ("/a/../b", {}, 403),
        ("/", {"host": "evil.example"}, 400),
        ("/", {"host": "127.0.0.1.evil.example:7860"}, 400),
        ("/", {"origin": "http://evil.example"}, 403),
        ("/flowgrad/photo/try", {"origin": "null"}, 403),
        ("/flowgrad/photo/try", {"content_length": str(1 << 30)}, 413),
        ("/gradio_api/queue/join", {"content_length": str(30 << 20)}, 413),
        ("/flowgrad/photo/try", {"content_length": str(30 << 20), "origin": "http://127.0.0.1:7860"}, 400),  # no photo
        ("/flowgrad/photo/try", {"host": "[::1]:7860"}, 400),
        ("/flowgrad/photo/other", {}, 404),
    ],
)
def test_requests_that_are_refused(app: Any, path: str, headers: dict[str, str], status: int) -> None:
    code, text, _ = ask(app, path, b"no photo", **headers)
    assert code == status and ("not an image" in text) == (path == "/flowgrad/photo/try" and status == 400)


@pytest.mark.parametrize("told", [{}, {"content_length": "-1"}, {"content_length": "much"}, {"content_length": "10"}])
def test_a_body_that_grows_beyond_its_limit_is_cut_off(app: Any, told: dict[str, str]) -> None:
    """A gigabyte that does not say how long it is."""
    status, _, taken = ask(app, "/flowgrad/photo/try", *[bytes(1 << 20)] * 1024, **told)
    assert status == 413 and taken == 41
    status, _, taken = ask(app, "/gradio_api/queue/join", *[bytes(1 << 19)] * 1024, **told)
    assert status == 413 and taken == 3


# --- the page itself --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gradio", reason="needs the extra `ui`")
    bank = Bank(tmp_path_factory.mktemp("bank"))
    fill(bank, model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setattr(studio_module, "load_recipe", text_alone)
        with screenshots.served(Studio(model, bank)) as url:
            yield url


def status(url: str, content: bytes | None = None, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content, headers), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow
def test_the_server_reaches_nothing_but_the_bank(address: str) -> None:
    assert status(f"{address}/flowgrad/photo/try?name=x.png", photo()) == 200
    assert status(f"{address}/flowgrad/photo/try?name=x.png", b"no photo") == 400
    assert status(f"{address}/flowgrad/photo/try?name=x.png", bytes((40 << 20) + 1)) in (0, 413)
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=" + sys.executable, "/file=/etc/passwd"):
        assert status(address + path) in (403, 404)
    for path in ("/gradio_api/upload", "/upload", "/flowgrad/photo/other"):
        assert status(address + path, b"x") >= 400
    assert status(f"{address}/flowgrad/result/..%2f..%2fetc") == 403
    assert status(f"{address}/flowgrad/result/unknown?smiling=1") == 404
    assert status(f"{address}/flowgrad/photo/try?name=x.png", photo(), Origin="http://evil.example") == 403
    assert not list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*.*"))  # nothing that was sent is on the disk


@pytest.mark.slow
def test_the_page_in_a_browser(address: str, tiny: Tiny, tmp_path: Path) -> None:
    """Browse, search, drop a photo, move two sliders, download, train, and find the new direction."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if screenshots.CHROMIUM is None:
        pytest.skip("needs a Chromium, as in Debian's package chromium")
    (tmp_path / "0.png").write_bytes(photo(60, 40))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=screenshots.CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        outside: list[str] = []
        page.on("request", lambda request: None if is_ours(request.url, address) else outside.append(request.url))
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        page.set_default_timeout(screenshots.PATIENCE * 1000)
        page.goto(address)
        browse(page)
        page.screenshot(path=tmp_path / "browse.png")
        try_on(page, tmp_path / "0.png", tmp_path)
        page.screenshot(path=tmp_path / "try.png")
        train(page, tiny.files, tmp_path)
        browser.close()
    assert not outside and not list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*.*"))


@pytest.mark.slow
def test_the_gallery_opens_from_the_disk_and_works_by_keyboard(model: Model, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if screenshots.CHROMIUM is None:
        pytest.skip("needs a Chromium, as in Debian's package chromium")
    bank = Bank(tmp_path / "bank")
    fill(bank, model)
    write_gallery(bank.list(), tmp_path / "gallery.html")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=screenshots.CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(screenshots.PATIENCE * 1000)
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        page.goto((tmp_path / "gallery.html").as_uri())
        cards = page.locator(".fg-card:visible")
        assert cards.count() == 3 and page.get_by_text(EVIL, exact=True).count() == 1
        page.keyboard.press("Tab")
        page.keyboard.type("smi")
        assert cards.count() == 1 and page.get_by_role("status").inner_text() == "1 of 3 directions"
        for _ in "smi":
            page.keyboard.press("Backspace")
        page.keyboard.press("Tab")  # the first tag
        page.keyboard.press("Space")
        assert cards.count() == 1 and page.locator("[aria-pressed=true]").inner_text() == "age"
        browser.close()


def is_ours(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def browse(page: Any) -> None:
    gallery = page.frame_locator(".fg-gallery")
    cards = gallery.locator(".fg-card:visible")
    cards.first.wait_for()
    assert cards.count() == 3 and gallery.get_by_text(EVIL, exact=True).count() == 1
    gallery.locator("#search").fill("smile")
    screenshots.until(lambda: cards.count() == 1)
    gallery.locator("#search").fill("")
    screenshots.until(lambda: cards.count() == 3)


def try_on(page: Any, photo: Path, folder: Path) -> None:
    screenshots.try_on(page, photo)
    screenshots.until(
        lambda: "smiling:1+old:-0.8 0.png" in page.locator("#fg-command textarea, #fg-command input").input_value()
    )
    with page.expect_download() as download:
        page.get_by_text("Download at full size").click()
    download.value.save_as(folder / "edited.png")
    with Image.open(folder / "edited.png") as edited, Image.open(photo) as original:
        assert edited.size == original.size and edited.tobytes() != original.tobytes()


def train(page: Any, photos: list[Path], folder: Path) -> None:
    screenshots.train(page, photos)
    page.locator("#fg-losses").locator("canvas, svg").first.wait_for()
    page.screenshot(path=folder / "train.png")
    page.get_by_role("tab", name="Browse").click()
    page.frame_locator(".fg-gallery").get_by_text("tiny / my-smile").wait_for()
