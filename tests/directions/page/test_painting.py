"""The Paint part of the page: layers that become pictures, without a browser and over HTTP."""

import base64
import http.client
import io
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from directions.bank.bank import Bank
from directions.page.paint_tab import downloads
from directions.page.painting import CANDIDATES, SIDE, Easel, own_strength
from directions.page.session import Studio
from directions.paint.job import STRENGTHS, Plan, paint, to_job
from directions.paint.methods import DEFAULT_METHOD, Method
from directions.photo.reading import to_images, to_tensor
from directions.progress import Silent
from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models import Model, load_model
from tests.helpers.page import photo
from tests.helpers.pictures import bomb
from tests.helpers.pipelines import has_transformers, make_pipeline

MIDDLE = (SIDE // 4, SIDE // 2, 3 * SIDE // 4, SIDE)
LEFT = (0, 0, SIDE // 2, SIDE)


def layer(colour: str = "red", box: tuple[int, int, int, int] = LEFT) -> bytes:
    """A layer of the canvas as a PNG: a rectangle, and nothing around it."""
    image, buffer = Image.new("RGBA", (SIDE, SIDE)), io.BytesIO()
    image.paste(colour, box)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def empty() -> bytes:
    return layer(box=(0, 0, 0, 0))


def painted(easel: Easel, *layers: bytes, text: str = "", words: str = "", **changes: object) -> list[Image.Image]:
    """The pictures that become of layers: the painting, its blur, and candidates."""
    wanted = {"method": "gradop+", "strength": 0.15, "count": 1, "seed": 0} | changes
    tokens = [easel.receive(content) for content in layers]
    result = easel.paint(tokens, text, words, **wanted, reporter=Silent())  # type: ignore[arg-type]
    return [image for _, image in result.pictures]


@pytest.fixture
def easel(studio: Studio) -> Easel:
    return Easel(studio)


def test_a_layer_is_painted_as_the_command_paints_a_picture_of_it(easel: Easel, model: Model) -> None:
    strokes, blurred, *candidates = painted(easel, layer(), count=2, seed=3, strength=0.5)
    assert strokes.getpixel((1, 8)) == (255, 0, 0) and strokes.getpixel((14, 8)) == (255, 255, 255)
    assert blurred.size == strokes.size == (16, 16)
    plan = Plan(DEFAULT_METHOD, 0.5, None, 3)
    expected = to_images(paint(to_job(model, None, None), to_tensor([strokes]), plan, 2, Silent()))
    assert [image.tobytes() for image in candidates] == [image.tobytes() for image in expected]


@pytest.mark.parametrize("colour", ["white", "black"])
def test_what_is_painted_on_the_layer_of_a_region_in_any_colour_is_its_mask(easel: Easel, colour: str) -> None:
    before, after = (
        painted(easel, layer(), *more, words=words)[-1]
        for more, words in (((empty(),), ""), ((layer(colour, MIDDLE),), "a smiling face"))
    )
    outside = slice(0, 6)  # the mask begins in row 8, and fades
    assert abs(np.asarray(after).astype(int)[outside] - np.asarray(before)[outside]).max() <= 1
    (part,) = easel._masked([easel.layers.get(easel.receive(layer(colour, MIDDLE)))], "a smiling face")
    assert part.mask[9:, 5:11].min() > 0.9 and max(part.mask[:7].max(), part.mask[:, :3].max()) < 0.1
    assert (part.target.text, part.target.source) == ("a smiling face", easel.studio.model.config.subject)


def test_what_is_odd_is_told(easel: Easel) -> None:
    token = easel.receive(layer("blue", (0, 0, SIDE, SIDE)))
    flat, unheard = easel.paint([token], "an old face", "", "sdedit", 0.5, 1, 0, Silent()).notes
    assert "one colour" in flat and "sdedit" in unheard


@pytest.mark.parametrize("method", list(Method))
def test_a_method_is_offered_with_its_own_strength(method: Method) -> None:
    assert own_strength(method.value) == STRENGTHS[method]


@pytest.mark.parametrize(
    ("layers", "changes", "message"),
    [
        ((), {}, "paint something"),
        ((empty(), layer()), {"words": "a smiling face"}, "paint something"),
        ((layer(), layer()), {}, "the region has no words"),
        ((layer(), empty()), {"words": "a smiling face"}, "the region is not painted"),
        ((layer(), layer(box=(0, 0, SIDE, SIDE))), {"words": "a smiling face"}, "covers the whole"),
        ((layer(), layer()), {"words": "xyzzy"}, "'xyzzy'"),
        ((layer(),), {"text": "xyzzy"}, "'xyzzy'"),
        ((layer(),), {"method": "magic"}, "'magic'.*gradop"),
        ((layer(),), {"strength": 1.5}, "1.5"),
        ((layer(),), {"strength": float("nan")}, "nan"),
        ((layer(),), {"count": CANDIDATES + 1}, f"{CANDIDATES} candidates.*{CANDIDATES + 1}"),
        ((layer(),), {"count": 0}, "got 0"),
        ((layer(),), {"seed": -1}, "got -1"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_computes_nothing(
    easel: Easel, layers: tuple[bytes, ...], changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("directions.page.painting.candidates", None)
    with pytest.raises(UsageError, match=message):
        painted(easel, *layers, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not an image"), (bomb(), "too many pixels"), (photo(64, 64), "512 x 512 pixels.*64 x 64")],
)
def test_what_is_no_layer_is_refused(easel: Easel, content: bytes, message: str) -> None:
    with pytest.raises(FlowgradError, match=message):
        easel.receive(content)
    assert not easel.layers.things


def test_few_layers_are_kept(easel: Easel) -> None:
    first = easel.receive(layer())
    for _ in range(easel.layers.room):
        easel.layers.add(Image.new("RGBA", (1, 1)))
    with pytest.raises(UsageError, match="painting is no longer in memory"):
        easel.paint([first], "", "", "gradop+", 0.5, 1, 0, Silent())


@has_transformers
def test_a_model_that_reads_words_is_loaded_with_them(tmp_path: Path) -> None:
    make_pipeline("instaflow").save_pretrained(tmp_path / "weights")
    settings = "size: 32, steps: 4, prediction: velocity, prompt: a cat"
    (tmp_path / "reader.yaml").write_text(f"{{name: reader, family: diffusers, weights: weights, {settings}}}")
    reader = load_model(str(tmp_path / "reader.yaml"), "cpu", "fp32")
    easel = Easel(Studio(reader, Bank(tmp_path / "bank"), precision="fp32"))
    job = easel._job(None, easel._masked([easel.layers.get(easel.receive(layer()))], "a hat"), "a dog")
    assert job.model.config.prompt == "a dog, a hat" and easel._job(None, (), "").model is reader
    prompted = load_model(str(tmp_path / "reader.yaml"), "cpu", "fp32", "a dog, a hat")
    assert len({reader.fingerprint, prompted.fingerprint, job.model.fingerprint}) == 3


# --- over HTTP --------------------------------------------------------------------------------------------------


def send(address: str, content: bytes, name: str = "files", copies: int = 1) -> tuple[int, str]:
    """Status and text of the answer to a layer that is sent as Gradio's canvas sends it."""
    part = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="../../layer.png"\r\n\r\n'.encode()
    body = (part + content + b"\r\n") * copies + b"--x--\r\n"
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    try:
        connection.request("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_layer_that_is_sent_stays_in_memory_under_a_token(served: tuple[str, Studio, Path]) -> None:
    address, _, written = served
    tokens = [json.loads(text) for status, text in (send(address, layer()), send(address, layer())) if status == 200]
    assert len(tokens) == 2 and tokens[0] != tokens[1] and all(len(token) == 1 for token in tokens)
    assert not list(written.rglob("*.*"))


@pytest.mark.parametrize(
    ("content", "changes", "status"),
    [
        (b"<svg/>", {}, 400),
        (photo(8, 8), {}, 400),
        (layer(), {"name": "other"}, 400),
        (layer(), {"copies": 2}, 400),
        (bytes(2 << 20), {}, 413),
    ],
)
def test_what_is_sent_instead_of_a_layer_is_refused(
    served: tuple[str, Studio, Path], content: bytes, changes: dict[str, object], status: int
) -> None:
    answered, text = send(served[0], content, **changes)  # type: ignore[arg-type]
    assert answered == status and "Traceback" not in text
    assert not list(served[2].rglob("*.*"))


def test_candidates_are_downloaded_as_the_pngs_that_the_command_writes() -> None:
    picture = Image.new("RGB", (4, 4), (1, 2, 3))
    links = re.findall(r'href="([^"]+)" download="([^"]+)"', downloads([("0: RMSE", picture), ("1: RMSE", picture)], 7))
    assert [name for _, name in links] == ["candidate-7-0.png", "candidate-7-1.png"]
    raw = base64.b64decode(links[1][0].removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(raw))), np.asarray(picture))
