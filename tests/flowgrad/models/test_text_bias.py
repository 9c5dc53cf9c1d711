"""The bias that draws attention to words: its formula, what it does to velocities and gradients, and its models."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDPMPipeline, DDPMScheduler
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.models import Model, Region, attends_to_words, load_config, load_model, pipelines
from flowgrad.models.text_bias import TextBias, fade
from flowgrad.velocity import checked, vjp
from tests.helpers.paths import ROOT
from tests.helpers.pipelines import has_transformers, make_pipeline, make_t5, make_unet, word_tokenizer

KINDS = ("instaflow", "sd3", "flux")  # SD3's with T5 too
CAT, DOG = torch.zeros(32, 32), torch.zeros(32, 32)
CAT[:12, :12], DOG[20:, 16:] = 1, 1
REGIONS = (Region(CAT, "a cat"), Region(DOG, "dog", 2.0))
PROMPT = "a cat, dog"
# The tokens of the two in the prompt, where letters are tokens: of a text that begins with a special one, as CLIP's do.
LETTERS = ((1, 2, 3, 4), (6, 7, 8))
T5 = 77  # where SD3's second text begins, in which words are tokens: a, cat, (comma), dog
TOKENS = {
    "instaflow": LETTERS,
    "sd3": ((*LETTERS[0], T5, T5 + 1), (*LETTERS[1], T5 + 3)),
    "sd3-clip": LETTERS,
    "flux": LETTERS,
}
pytestmark = has_transformers


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved pipeline of each kind."""
    folder = tmp_path_factory.mktemp("pipelines")
    for kind in (*KINDS, "sd3-clip"):
        pipe = make_pipeline(kind.removesuffix("-clip"))
        if kind == "sd3":
            pipe.register_modules(text_encoder_3=make_t5(), tokenizer_3=word_tokenizer())
        pipe.save_pretrained(folder / kind)
    return {path.name: path for path in folder.iterdir()}


def described(folder: Path, **keys: object) -> str:
    """A configuration file for a saved pipeline; its path."""
    prediction = "velocity" if folder.name == "instaflow" else "scheduler"
    told = {"name": "tiny", "family": "diffusers", "weights": folder, "size": 32, "steps": 4, "prediction": prediction}
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(json.dumps({**told, **keys}, default=str))  # JSON is YAML
    return str(path)


def load(folder: Path, regions: tuple[Region, ...] = (), prompt: str = PROMPT, **keys: object) -> Model:
    return load_model(described(folder, **keys), "cpu", "fp32", prompt, regions)


# --- the formula --------------------------------------------------------------------------------------------------


def test_the_bias_is_the_share_of_the_region_times_the_fading_weight():
    torch.manual_seed(0)
    masks, words = torch.rand(2, 12, 12) / 2, torch.tensor([[0.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    bias = TextBias(masks, words, torch.float32)
    t = torch.tensor([0.0, 0.3, 0.5, 0.9])
    for side in (12, 6, 4, 1):
        expected = torch.zeros(4, side * side, 4)
        cell = 12 // side
        for b, w in enumerate((1.0, 0.4, 0.0, 0.0)):
            for q in range(side * side):
                y, x = cell * (q // side), cell * (q % side)
                for region in range(2):
                    share = masks[region, y : y + cell, x : x + cell].mean()
                    expected[b, q] += w * share * words[region]
        torch.testing.assert_close(bias.cross(t, side * side), expected)
    assert bias.cross(t, 25).shape == (4, 25, 4), "a side that does not divide the states'"
    assert bias.cross(t, 16)[2:].count_nonzero() == 0
    cross = bias.cross(t, 4)
    for text_first in (True, False):
        joint = bias.joint(t, 4, text_first)[:, 0]
        text, image = (slice(0, 4), slice(4, 8)) if text_first else (slice(4, 8), slice(0, 4))
        assert torch.equal(joint[:, image, text], cross)
        assert joint.count_nonzero() == cross.count_nonzero(), "image queries and text keys alone"


def test_the_weight_fades_to_the_middle():
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    torch.testing.assert_close(fade(t), torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0]))


@dataclass(eq=False)
class Call:
    """An evaluation of attention: queries, keys and values (B, H, L, D), its mask, and what came out."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    out: Tensor


class Attentions(TorchFunctionMode):
    """Keeps the calls of attention; `shift`, where it is set, is added to the values of some tokens."""

    def __init__(self, shift: float = 0.0, tokens: tuple[int, ...] = (), after: int = 0) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.shift, self.tokens, self.after = shift, [after + token for token in tokens], after

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        query, key, value, mask = (given.get(name) for name in ("query", "key", "value", "attn_mask"))
        if self.shift and key.shape[2] > 64:  # not a U-Net's attention of its 64 queries among themselves
            value = value.clone()
            value[:, :, self.tokens] += self.shift
        out = func(query, key, value, attn_mask=mask)
        self.calls.append(Call(query, key, value, mask, out))
        return out


def expected_bias(kind: str, t: float) -> Tensor:
    """(Q, K) for 64 queries, pixel by pixel and token by token, in the order of the network's tokens."""
    texts = {"instaflow": 77, "sd3": 77 + 256, "sd3-clip": 77 + 256, "flux": 512}[kind]
    before_text = 64 if kind.startswith("sd3") else 0
    before_image = 512 if kind == "flux" else 0
    joint = kind != "instaflow"
    bias = torch.zeros(64 + texts if joint else 64, 64 + texts if joint else texts, dtype=torch.float64)
    for region, tokens in zip(REGIONS, TOKENS[kind], strict=True):
        for q in range(64):
            y, x = 4 * (q // 8), 4 * (q % 8)
            share = float(region.mask[y : y + 4, x : x + 4].mean())
            for token in tokens:
                bias[before_image + q, before_text + token] = region.weight * max(0.0, 1 - 2 * t) * share
    return bias


@pytest.mark.parametrize("kind", [*KINDS, "sd3-clip"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_attention_is_a_softmax_of_biased_logits(folders: dict[str, Path], kind: str, guidance: float):
    model = load(folders[kind], REGIONS, guidance_scale=guidance)
    times = (0.1, 0.3)
    with Attentions() as found, torch.no_grad():
        model.velocity(model.noise(2, 0), torch.tensor(times))
    texts = [call for call in found.calls if kind != "instaflow" or call.key.shape[2] == 77]
    biased = [call for call in texts if call.mask is not None]
    assert len(biased) == {"instaflow": 4, "sd3": 1, "sd3-clip": 1, "flux": 2}[kind], "one of each layer"
    free = kind != "flux" and guidance > 1  # two evaluations, of which one is of the prompt
    assert len(texts) == len(biased) * (2 if free else 1)
    assert all(call.mask is None for call in found.calls if call not in texts)
    for call in biased:
        bias = torch.stack([expected_bias(kind, t) for t in times])[:, None]
        query, key, value = (rows.double() for rows in (call.query, call.key, call.value))
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
        torch.testing.assert_close(call.out.double(), logits.softmax(-1) @ value, atol=1e-5, rtol=1e-4)


# --- what it does to a model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weight_0_and_times_after_the_middle_are_the_plain_model(folders: dict[str, Path], kind: str):
    unweighted = tuple(Region(region.mask, region.words, 0.0) for region in REGIONS)
    plain, without, model = (load(folders[kind], each, guidance_scale=3.0) for each in ((), unweighted, REGIONS))
    x = model.noise(4, 0)
    early, late = torch.tensor([0.0, 0.1, 0.2, 0.4]), torch.tensor([0.5, 0.6, 0.75, 1.0])
    expected = plain.velocity(x, early)
    torch.testing.assert_close(without.velocity(x, early), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.velocity(x, late), plain.velocity(x, late), atol=1e-5, rtol=1e-4)
    v = checked(model.velocity(x, early), x)
    moved = (v - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert bool((moved > 1e-4).all()), "each time before the middle"
    alone = torch.cat([model.velocity(x[i : i + 1], early[i]) for i in range(4)])
    torch.testing.assert_close(v, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_words_act_in_their_region_and_no_more_elsewhere(folders: dict[str, Path], kind: str):
    """The response of the velocity to the values of the cat's tokens, in its region and far from it."""
    models = load(folders[kind]), load(folders[kind], REGIONS)
    x, t, after = models[0].noise(1, 0), torch.tensor(0.0), 64 if kind.startswith("sd3") else 0
    responses = []
    for model in models:
        with torch.no_grad(), Attentions(0.5, TOKENS[kind][0], after):
            shifted = model.velocity(x, t)
        responses.append((shifted - model.velocity(x, t)).abs().mean((0, 1)))
    plain, drawn = responses
    inside, outside = (slice(0, 6), slice(0, 6)), (slice(0, 10), slice(8, 16))  # of states with a side of 16
    growth = [float(drawn[where].mean() / plain[where].mean()) for where in (inside, outside)]
    assert growth[0] > 3
    if kind == "instaflow":  # whose convolutions carry what happens in the region over its edge
        assert growth[1] < growth[0] / 2
    else:
        assert growth[1] == pytest.approx(1, abs=0.1)


@pytest.mark.filterwarnings("ignore:In CPU autocast")  # which float64 has no need of
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(folders: dict[str, Path], kind: str):
    keys = {"checkpointing": True, "guidance_scale": 2.0, "prompt": PROMPT}
    config = load_config(described(folders[kind], **keys))
    velocity, shape = pipelines.load(config, torch.device("cpu"), torch.float64, REGIONS)[:2]
    draw = torch.Generator().manual_seed(0)
    x, direction, g = (torch.randn(2, *shape, generator=draw, dtype=torch.float64) for _ in range(3))
    t, step = torch.tensor([0.1, 0.3], dtype=torch.float64), 1e-4
    with torch.no_grad():
        ahead, behind = (velocity(x + sign * step * direction, t) for sign in (1, -1))
    slope = float((g * (ahead - behind)).sum() / (2 * step))
    assert float((vjp(velocity, x, t, g) * direction).sum()) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_layers_are_run_again_with_their_own_bias(folders: dict[str, Path], kind: str):
    """Two evaluations at different times before the gradient of their sum: the second must not change the first's."""
    gradients = []
    for checkpointing in (False, True):
        model = load(folders[kind], REGIONS, guidance_scale=2.0, checkpointing=checkpointing)
        leaf = model.noise(1, 0).requires_grad_()
        v = model.velocity(leaf, torch.tensor(0.1)) + model.velocity(leaf, torch.tensor(0.4))
        gradients.append(torch.autograd.grad(v.square().sum(), leaf)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_has_the_bias(folders: dict[str, Path], kind: str):
    path, t = described(folders[kind], guidance_scale=2.0), torch.tensor(0.1)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = load_model(path, "cpu", "fp32", PROMPT, REGIONS).velocity(x, t)
    for precision in ("bf16", "fp16"):
        plain, v = (load_model(path, "cpu", precision, PROMPT, each).velocity(x, t) for each in ((), REGIONS))
        assert v.dtype == torch.float32
        assert (v - expected).norm() < 0.05 * expected.norm()
        assert (v - plain).norm() > 1e-3 * plain.norm()


# --- loading ------------------------------------------------------------------------------------------------------


def test_a_prompt_and_regions_are_in_the_fingerprint(folders: dict[str, Path]):
    folder = folders["instaflow"]
    plain, regions, again = (load(folder, each).fingerprint for each in ((), REGIONS, REGIONS))
    assert regions == again != plain
    assert load_model(described(folder, prompt=PROMPT), "cpu", "fp32").fingerprint == plain, "wherever it came from"
    assert load(folder, prompt="a dog").fingerprint != plain


def test_words_that_a_prompt_lacks_are_appended_and_read(folders: dict[str, Path]):
    model = load(folders["instaflow"], REGIONS, prompt="A dog")
    assert model.config.prompt == "A dog, a cat"
    assert load(folders["instaflow"], REGIONS, prompt="").config.prompt == "a cat, dog"
    x, t = model.noise(1, 0), torch.tensor(0.7)
    assert torch.equal(load(folders["instaflow"], prompt="A dog, a cat").velocity(x, t), model.velocity(x, t))


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_are_not_read_are_refused(folders: dict[str, Path], kind: str):
    rows = {"instaflow": 77, "sd3": 256, "flux": 512}[kind]
    with pytest.raises(UsageError, match=f"'dog' are cut off: {rows} tokens"):
        load(folders[kind], REGIONS, prompt=f"a cat {'b' * rows}")
    right = Region(1 - CAT, "dog")
    assert load(folders[kind], (right,), prompt=f"{'b' * (rows - 6)} dog").fingerprint, "the last tokens that are read"


def test_overlapping_regions_are_refused(folders: dict[str, Path]):
    with pytest.raises(UsageError, match="'a cat' and 'dog' overlap in 144 pixels"):
        load(folders["instaflow"], (REGIONS[0], Region(CAT, "dog")))


def test_a_model_that_reads_no_words_says_so(tmp_path: Path, folders: dict[str, Path]):
    assert attends_to_words(load_config(described(folders["sd3"])))
    assert not attends_to_words(load_config("faces64"))
    for told in ({"prompt": "a cat"}, {"regions": REGIONS}):
        with pytest.raises(UsageError, match="faces64, of the family diffusers-unet, reads no words"):
            load_model("faces64", "cpu", **told)
    DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(tmp_path / "plain")
    path = described(tmp_path / "plain", size=16)
    assert not attends_to_words(load_config(path))
    with pytest.raises(UsageError, match="unconditional model, which reads no words"):
        load_model(path, "cpu", regions=REGIONS)
    with pytest.raises(FlowgradError, match="which reads no prompt"):
        load_model(path, "cpu", prompt="a cat")


def test_the_example_of_the_readme_works(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys
):
    page = (ROOT / "flowgrad" / "models" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path(described(folders["instaflow"])).rename("my-instaflow.yaml")
    exec(example, {})
    assert capsys.readouterr().out.splitlines()[-1] in example.splitlines()[-1]
