"""The page: what it refuses, and (slow) all of it in a headless Chromium."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from direction_bank import screenshots
from directions.apply import edit
from directions.bank.bank import Bank
from directions.bank.gallery import write_gallery
from directions.file.direction import Direction, DirectionInfo
from directions.page import session as studio_module
from directions.page.page import _edited, _labelled, _said
from directions.page.session import Studio
from directions.page.shelf import Shelf
from directions.photo.crop import Place
from directions.photo.faces import Faces, Prepared, available
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models import Model
from tests.helpers.page import EVIL, fill, photo, text_alone
from tests.helpers.pictures import bomb
from tests.helpers.tiny import Tiny

# --- without the page -------------------------------------------------------------------------------------------


def test_a_photo_is_inverted_and_judged_once_and_edited_often(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    token = studio.receive("holiday.png", photo())
    monkeypatch.setattr(studio_module, "invert_images", None)  # not again
    monkeypatch.setattr(studio_module, "judge_familiarity", None)
    monkeypatch.setattr(studio_module, "read_photo", None)
    before = studio.subjects.get(token).small
    assert (
        studio.edit(token, {}).image.tobytes()
        == before.tobytes()
        == studio.edit(token, {"smiling": 0.0}).image.tobytes()
    )
    one, both = (studio.edit(token, wanted).image for wanted in ({"smiling": 1.0}, {"smiling": 1.0, "old": -1}))
    assert one.size == (60, 40) and len({image.tobytes() for image in (before, one, both)}) == 3
    assert len(studio.strip(token, {"smiling": 1.0})) == 5


def test_what_is_shown_is_small_and_what_is_downloaded_is_not(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio_module, "SHOWN_SIDE", 30)
    content = photo(60, 40, "JPEG")
    token = studio.receive("holiday.jpg", content)
    subject, shown = studio.subjects.get(token), studio.edit(token, {"smiling": 0.1}).image
    assert shown.size == subject.small.size == (30, 20) and subject.size == (60, 40)
    made = studio.download(token, {"smiling": 0.1})
    assert (made.name, made.kind) == ("holiday.jpg", "jpeg")
    with Image.open(io.BytesIO(made.content)) as large:
        assert large.size == (60, 40) and large.format == "JPEG"
        small = np.asarray(large.resize((30, 20), Image.Resampling.BOX)).astype(float)
    assert np.abs(small - np.asarray(shown)).mean() < 4
    assert studio.download(token, {}).content == content == studio.download(token, {"smiling": 0.0}).content


def test_what_was_computed_for_a_slider_is_not_computed_again(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, reads, kept = [], [], studio_module.edit_images
    monkeypatch.setattr(studio_module, "edit_images", lambda *given: passes.append(1) or kept(*given))
    token, mixture = studio.receive("holiday.png", photo()), {"smiling": 1.0, "old": 0.2}
    shown = studio.edit(token, mixture)
    monkeypatch.setattr(studio, "_load", lambda *_: reads.append(1))
    studio.edit(token, mixture | {"old": 0.3})
    assert len(passes) == 2 and not reads
    studio.download(token, mixture | {"old": 0.3})
    assert len(passes) == 2
    info = DirectionInfo("Smile", studio.model.name, studio.model.fingerprint, 6)
    studio.bank.add(Direction.create(np.ones((1, 3, 16, 16)), np.array([0]), info), "smiling", overwrite=True)
    assert studio.edit(token, mixture).image.tobytes() != shown.image.tobytes()  # another one under this name


def two_faces(rgb: Image.Image, *_: object) -> Faces:
    """The right and the left half of a photo of 80 x 40 pixels as its faces; the left one is odd."""
    right, left = (Place(((x, 0), (x + 40, 0), (x + 40, 40), (x, 40)), "face") for x in (40, 0))
    small = rgb.resize((16, 16))
    odd = Prepared(small, left, "its face is small (9 pixels, the model has 16): beware")
    return Faces((Prepared(small, right), odd), too_small=1)


def test_how_many_faces_were_edited_and_what_is_odd_about_them_is_said(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="needs the extra `ui`")
    monkeypatch.setattr(studio_module, "prepare_faces", two_faces)
    monkeypatch.setattr(
        studio_module, "judge_familiarity", lambda *_: ["the model does not know <it> (norm 3, correlation (2))", None]
    )
    token = studio.receive("couple.png", photo(80, 40))
    assert "0 of 2 faces edited." in _edited(studio, token, {})[0]
    html, _ = _edited(studio, token, {"smiling": 1.0})
    assert "2 of 2 faces edited." in html and html.count("<details>") == 2 and "1 more is too small" in html
    assert "Face 1 from the left: its face is small: beware." in html
    assert "Face 2 from the left: the model does not know &lt;it&gt;." in html and "norm 3, correlation (2)<" in html


@pytest.mark.skipif(not available(), reason="the extra `faces` is not installed")
def test_an_identity_budget_is_kept_face_by_face_and_told(
    faces: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="needs the extra `ui`")
    monkeypatch.setattr(studio_module, "prepare_faces", two_faces)
    bank = Bank(tmp_path / "bank")
    fill(bank, faces)
    studio = Studio(faces, bank)
    token = studio.receive("couple.png", photo(80, 40))
    monkeypatch.setattr(edit, "distances", lambda new, _: new.new_tensor([0.9, 0.4])[: len(new)])  # right, left
    html, line = _edited(studio, token, {"smiling": 1.0}, 0.5)
    assert "1 of 2 faces edited." in html and "Face 1 from the left took 100% of the strength" in html
    assert "Face 2 from the left took 0% of the strength" in html
    assert "within=0.5" in html and line.endswith("couple.png --keep-identity 0.5")
    with Image.open(io.BytesIO(studio.download(token, {"smiling": 1.0}, 0.5).content)) as made:
        changed = np.asarray(made).astype(int) != np.asarray(Image.open(io.BytesIO(photo(80, 40))))
    assert changed[:, :40].any() and not changed[:, 40:].any()


@pytest.mark.skipif(not available(), reason="the extra `faces` is not installed")
@pytest.mark.parametrize("size", [(60, 40), (16, 16)])
def test_a_photo_without_a_face_stays_as_it_is(faces: Model, tmp_path: Path, size: tuple[int, int]) -> None:
    bank, content = Bank(tmp_path / "bank"), photo(*size, "JPEG")
    fill(bank, faces)
    studio = Studio(faces, bank)
    token = studio.receive("wall.jpg", content)
    view, subject = studio.edit(token, {"smiling": 1.0}), studio.subjects.get(token)
    assert view.changed == 0 and view.image.tobytes() == subject.small.tobytes()
    assert _said(subject, view) == "Nothing was edited." and "no face was found" in subject.notes[0]
    assert studio.download(token, {"smiling": 1.0}).content == content
    with pytest.raises(UsageError, match="no face was found"):
        studio.strip(token, {"smiling": 1.0})
    with pytest.raises(FlowgradError, match="no face was found"):
        studio.keep("wall.jpg", content)
    assert studio.edit(studio.sample(0), {"smiling": 1.0}).changed == 1


def test_a_name_is_claimed_before_it_is_trained(studio: Studio, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio_module, "load_recipe", text_alone)
    tokens = [studio.keep(path.name, path.read_bytes())[0] for path in tiny.files]
    first = studio.train(tokens, "a smiling face", "wide", "a serious face", 1)
    next(first)
    with pytest.raises(UsageError, match="being trained by another"):
        next(studio.train(tokens, "a smiling face", "wide", "a serious face", 1))
    first.close()  # whoever trained it went away
    assert list(studio.train(tokens, "a smiling face", "wide", "a serious face", 1))[-1].entry


def test_sliders_keep_the_strengths_of_what_stays_chosen(studio: Studio) -> None:
    pytest.importorskip("gradio", reason="needs the extra `ui`")
    names, first, second, *_ = _labelled(studio, ["old"], {"smiling": 1.0, "old": -0.8})
    assert names == ["old"] and (first["label"], first["value"]) == ("old", -0.8)
    assert not second["visible"] and second["value"] == 0


def test_a_direction_trained_since_then_needs_no_other_inversion(studio: Studio, model: Model) -> None:
    token = studio.receive("holiday.png", photo())
    info = DirectionInfo("New", model.name, model.fingerprint, 6)
    studio.bank.add(Direction.create(np.ones((6, 3, 16, 16)), np.arange(6), info), "new")
    assert studio.edit(token, {"new": 1.0}).image.size == (60, 40)


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
    assert studio.edit(token, {"old": 0.5}).image.size == (16, 16)
    for name in ("../evil", "/etc/passwd", "tiny/smiling", "smiling.safetensors"):
        with pytest.raises(UsageError, match="cannot name a direction"):
            studio.edit(token, {name: 1.0})
    with pytest.raises(UsageError, match="no direction for tiny is called 'smilin'"):
        studio.edit(token, {"smilin": 1.0})


def test_sent_names_are_texts(studio: Studio) -> None:
    pytest.importorskip("gradio", reason="needs the extra `ui`")
    html, line = _edited(studio, studio.receive(f"a/{EVIL}.png", photo()), {"smiling": 1.0})
    assert "<img src=x" not in html and line.startswith("flowgrad apply-direction smiling:1 ")


# --- the page itself --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_in_a_browser(served: tuple[str, Studio, Path], tmp_path: Path) -> None:
    """Browse, search, drop a photo, move two sliders, keep the person, download, train, find it, paint."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if screenshots.CHROMIUM is None:
        pytest.skip("needs a Chromium, as in Debian's package chromium")
    data = pytest.importorskip("skimage.data", reason="needs scikit-image: a photo with a face")
    address, _, written = served
    portrait, photos = Image.fromarray(data.astronaut()), [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(photos):
        portrait.resize((300 + 30 * i, 300 + 30 * i)).save(path)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=screenshots.CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        outside: list[str] = []
        refused: list[str] = []
        page.on("request", lambda request: None if is_ours(request.url, address) else outside.append(request.url))
        page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        page.set_default_timeout(screenshots.PATIENCE * 1000)
        page.goto(address)
        browse(page)
        try_on(page, tmp_path / "0.png", tmp_path)
        keep_the_person(page, tmp_path / "1.png")
        train(page, photos, tmp_path)
        screenshots.paint(page)
        browser.close()
    assert not outside and not refused and not list(written.rglob("*.*"))


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


def keep_the_person(page: Any, other: Path) -> None:
    """Switched on once, it holds for the next photo, and for the next directions."""
    if not available():
        return
    command = page.locator("#fg-command textarea, #fg-command input")
    page.locator("#fg-keep input").check()
    screenshots.until(lambda: command.input_value().endswith("0.png --keep-identity 0.5"))
    page.locator("#fg-drop input[type=file]").set_input_files(str(other))
    screenshots.until(lambda: command.input_value().endswith("1.png --keep-identity 0.5"))
    screenshots.until(lambda: page.locator("#fg-strip img").count() == 0)  # it was the first photo's
    page.get_by_label("Remove old").or_(page.locator("#fg-choice .token-remove").nth(1)).first.click()
    screenshots.until(lambda: "smiling:1 1.png --keep-identity 0.5" in command.input_value())
    assert "of the strength, at identity distance" in page.locator("#fg-view").inner_text()


def train(page: Any, photos: list[Path], folder: Path) -> None:
    screenshots.train(page, photos)
    page.locator("#fg-losses").locator("canvas, svg").first.wait_for()
    page.screenshot(path=folder / "train.png")
    page.get_by_role("tab", name="Browse").click()
    page.frame_locator(".fg-gallery").get_by_text("tiny / my-smile").wait_for()
