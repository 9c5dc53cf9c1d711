"""Guides from elsewhere: OpenAI's files by the package's own loader, and open_clip's models."""

import zipfile
from importlib.util import find_spec
from pathlib import Path

import clip
import pytest
import torch
from clip.model import CLIP

from directions.photo.reading import to_tensor
from flowgrad.errors import FlowgradError
from flowgrad.guidance.guide_files import load_guide

TEXTS = ("a smiling face", "a church by night")


def tiny_clip() -> CLIP:
    """A random CLIP of the ViT kind, with the vocabulary and context of OpenAI's."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "image_resolution": 32, "vision_layers": 1, "vision_width": 64, "vision_patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "transformer_width": 64, "transformer_heads": 1}
    return CLIP(**sizes, **text, transformer_layers=1).eval()


class Traced(torch.nn.Module):
    """CLIP as OpenAI archives it: a module that is scripted with its parameters' names."""

    def __init__(self, network: CLIP) -> None:
        super().__init__()
        for name, child in network.named_children():
            self.add_module(name, child)
        for name, parameter in network.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name in ("input_resolution", "context_length", "vocab_size"):
            value = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}[name]
            self.register_buffer(name, torch.tensor(value))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.visual(images)


def by_the_package(file: Path) -> CLIP:
    """The network as the package makes it; its own `load` fails on state dicts with present versions of torch."""
    if file.stem == "archive":
        return clip.load(str(file), device="cpu")[0]
    return clip.model.build_model(torch.load(file, weights_only=True)).float()


def saved(path: Path, network: CLIP) -> Path:
    """A file of the kind that its name says: archive.pt, or a state dict."""
    if path.stem == "archive":
        torch.jit.trace(Traced(network), torch.zeros(1, 3, 32, 32), strict=False).save(str(path))
    else:
        torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module", params=("state", "archive"))
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("clip") / f"{request.param}.pt", tiny_clip())


def test_similarities_are_the_packages(file: Path):
    guide = load_guide(str(file))
    network = by_the_package(file)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (guide.reading.mean, guide.reading.std))
    with torch.no_grad():
        expected = network(((images + 1) / 2 - mean) / std, clip.tokenize(TEXTS))[0]
        ours = guide.logit_scale * guide.encode_images(images) @ guide.encode_texts(TEXTS).T
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert guide.name == file.stem and guide.unknown_words("anything") == []


def test_preprocessing_is_the_packages(file: Path):
    from PIL import Image

    guide = load_guide(str(file))
    network, preprocess = by_the_package(file), clip.clip._transform(32)
    smooth = Image.effect_mandelbrot((96, 96), (-2, -1.5, 1, 1.5), 20).convert("RGB")
    image = to_tensor([smooth])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network.encode_image(preprocess(smooth)[None]), dim=-1)
    assert (guide.encode_images(image) @ expected.T).item() > 0.999


def test_both_kinds_of_file_have_one_fingerprint(tmp_path: Path):
    state, archive = (load_guide(str(saved(tmp_path / name, tiny_clip()))) for name in ("state.pt", "archive.pt"))
    other = load_guide(str(saved(tmp_path / "half.pt", tiny_clip().half())))
    assert state.fingerprint == archive.fingerprint != other.fingerprint and len(state.fingerprint) == 16


def test_embeddings_of_photos_are_computed_once(file: Path, monkeypatch: pytest.MonkeyPatch):
    guide, images = load_guide(str(file)), torch.zeros(1, 3, 32, 32)
    first = guide.encode_photos(images)
    with monkeypatch.context() as patch:
        patch.setattr(guide, "encode_images", None)
        assert guide.encode_photos(images) is first
    images.add_(0.5)
    assert not torch.equal(guide.encode_photos(images), first)
    del images, first
    assert len(guide._images) == 0


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_files_that_are_no_clip_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 not much of an archive")
    for name in ("code.pt", "disguised.pt"):
        torch.save({"w": Payload()}, tmp_path / name)
    with zipfile.ZipFile(tmp_path / "disguised.pt", "a") as archive:
        archive.writestr("disguised/code/__torch__.py", "")
    for path, message in (
        ("other.pt", "not a network of CLIP's architecture"),
        ("broken.pt", "damaged"),
        ("nowhere.pt", "there is no guide at"),
        ("code.pt", "asks for .*print, which is code"),
        ("disguised.pt", "could not be loaded"),
    ):
        with pytest.raises(FlowgradError, match=message):
            load_guide(str(tmp_path / path))
    assert "never" not in capsys.readouterr().out

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FlowgradError, match=r"ViT-B/32 could not be loaded \(no route to host\): put its file into"):
        load_guide("ViT-B/32")


def test_open_clip_needs_its_package(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(FlowgradError, match=r"pip install 'flowgrad\[open-clip\]'"):
        load_guide("open-clip:ViT-B-32:openai")


@pytest.mark.skipif(find_spec("open_clip") is None, reason="needs open_clip, of the extra open-clip")
def test_an_open_clip_model_reads_as_the_package_does(tmp_path: Path):
    import json

    import open_clip

    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    (tmp_path / "tiny-open.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "tiny-open.json")
    torch.manual_seed(0)
    network = open_clip.create_model("tiny-open").eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    guide = load_guide(f"open-clip:tiny-open:{tmp_path / 'weights.pt'}")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    told = network.visual.preprocess_cfg
    mean, std = (torch.tensor(told[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        seen = network.encode_image(((images + 1) / 2 - mean) / std, normalize=True)
        read = network.encode_text(open_clip.get_tokenizer("tiny-open")(list(TEXTS)), normalize=True)
        ours = guide.encode_images(images) @ guide.encode_texts(TEXTS).T
    torch.testing.assert_close(ours, seen @ read.T, atol=1e-5, rtol=1e-5)
    with pytest.raises(FlowgradError, match=r"open_clip could not load 'tiny-open' with weights 'nothing'"):
        load_guide("open-clip:tiny-open:nothing")
