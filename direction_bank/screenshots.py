"""Draws the page of `flowgrad ui` as Chromium shows it: direction_bank/page.jpg for the README, and all four parts.

python direction_bank/screenshots.py [FOLDER]: with FOLDER, browse, try, train and paint.png go there too. Needs
flowgrad[browser] and a Chromium; some minutes on a CPU, as the third part trains a direction (in a bank of its own).
"""

import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from PIL import Image

from directions.apply.inversion import join, sample_images
from directions.bank.bank import Bank
from directions.page.server import settings
from directions.page.session import Studio
from directions.photo.reading import to_images
from directions.photo.writing import save_image
from flowgrad.models import load_model

WINDOW: Any = {"width": 1280, "height": 900}
MOVED = (("smiling", "1"), ("old", "-0.8"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 600  # seconds for a page or a training on a slow machine


@contextmanager
def served(studio: Studio) -> Iterator[str]:
    """The address of the page, served from a thread."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(settings(studio, "127.0.0.1", port))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition. Raises TimeoutError."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("the page does not get on")
        time.sleep(0.2)


def browse(page: Any) -> None:
    """The first part."""
    page.frame_locator(".fg-gallery").locator(".fg-card").first.wait_for()


def changed(picture: Any, before: str) -> bool:
    """Whether a picture on the page is another than it was."""
    return bool(picture.get_attribute("src") != before)


def try_on(page: Any, photo: Path) -> None:
    """The second part: a photo, two directions, and their strengths."""
    page.get_by_role("tab", name="Try").click()
    page.locator("#fg-drop input[type=file]").set_input_files(str(photo))
    after = page.locator("#fg-view img").nth(1)
    after.wait_for()
    for i, (name, strength) in enumerate(MOVED):
        page.locator("#fg-choice input").click()
        page.get_by_role("option", name=name, exact=True).click()
        before, number = after.get_attribute("src"), page.locator(f"#fg-slider-{i} input[type=number]")
        page.keyboard.press("Escape")
        number.fill(strength)
        number.press("Enter")
        until(partial(changed, after, before))
    page.get_by_text("Show a strip").click()
    page.locator("#fg-strip img").wait_for()


def train(page: Any, photos: list[Path]) -> None:
    """The third part: a short training."""
    page.get_by_role("tab", name="Train").click()
    page.locator(".fg-drop input[multiple]").set_input_files([str(photo) for photo in photos])
    page.get_by_text(f"{len(photos)} photos").wait_for()
    for box, text in (("text", "a smiling face"), ("source", "a serious face"), ("name", "my-smile")):
        page.locator(f"#fg-{box} textarea, #fg-{box} input").fill(text)
    number = page.locator("#fg-iterations input[type=number]")
    number.fill("5")
    number.press("Enter")
    page.locator("#fg-start").click()
    page.get_by_text("saved as my-smile").wait_for()


def paint(page: Any) -> None:
    """The fourth part: one stroke across the canvas."""
    page.get_by_role("tab", name="Paint").click()
    page.get_by_label("Brush", exact=True).click()
    canvas = page.locator("#fg-canvas canvas").first
    canvas.drag_to(canvas, source_position={"x": 200, "y": 200}, target_position={"x": 400, "y": 400})
    until(page.get_by_label("Undo", exact=True).is_enabled)
    page.locator("#fg-paint-start").click()
    page.get_by_alt_text("the canvas, 3: RMSE").wait_for()


def main(folder: Path, shots: Path) -> None:
    """Draw the pages into `shots` and the README's picture; `folder` is for files of the work."""
    from playwright.sync_api import sync_playwright
    from skimage.data import astronaut

    model, portrait = load_model(), folder / "portrait.png"
    Image.fromarray(astronaut()).save(portrait)
    photos = [folder / f"{i}.png" for i in range(4)]
    for path, image in zip(photos, to_images(join(sample_images(model, len(photos), 0)).images), strict=True):
        image.save(path)
    studio = Studio(model, Bank.default(folder / "bank"))  # the shipped bank, and an empty one of its own
    with served(studio) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW)
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        browse(page)
        page.screenshot(path=shots / "browse.png")
        try_on(page, portrait)
        page.screenshot(path=shots / "try.png", full_page=True)
        train(page, photos)
        page.screenshot(path=shots / "train.png", full_page=True)
        paint(page)
        page.screenshot(path=shots / "paint.png", full_page=True)
        browser.close()
    with Image.open(shots / "try.png") as shown:
        save_image(shown, Path(__file__).with_name("page.jpg"), overwrite=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        main(Path(work), Path(sys.argv[1] if len(sys.argv) > 1 else work))
