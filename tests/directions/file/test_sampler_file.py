"""Sampler files come back as they were; what breaks the format is refused, by its header alone where it can be."""

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from directions.file.sampler import SamplerFile, SamplerInfo, read_sampler, read_sampler_info, write_sampler
from directions.file.terms import Term
from flowgrad.errors import FlowgradError, UsageError

TERMS = (
    Term("text", 2.0, text="a smiling face", source="a face"),
    Term("class", answers=("old",)),
    Term("moment", attributes=("age",), beta=(0.5, -0.5), target=(0.5, 0.5)),
    Term("identity", 10.0, descriptor=(0.1, 0.2)),
    Term("pose", target=(-10.0, 15.0)),
)
INFO = SamplerInfo(
    title="all of it",
    model="tiny",
    fingerprint="0123456789abcdef",
    steps=6,
    starts=(0, 3),
    terms=TERMS,
    questions={"age": {"young": "a young face", "old": "an old face"}},
    offsets={"old": 0.25},
    guide="tiny-guide",
    guide_fingerprint="fedcba9876543210",
    classifier="tiny-classifier",
    classifier_fingerprint="0f1e2d3c4b5a6978",
    parent="smilers",
    parent_hash="0011223344556677",
    pool=64,
    effective=20.5,
    acceptance=0.25,
    measured={"old": {"natural": 0.1, "wanted": 0.5, "before": 0.1, "after": 0.4}},
    tags=("one", "two"),
)
TENSORS = {"basis": np.ones((2, 3, 4, 4), np.float32), "network.flow.weight": np.zeros((2, 5), np.float32)}
NETWORK = dataclasses.replace(
    INFO, method="network", layers=2, width=5, shapes={name: value.shape for name, value in TENSORS.items()}
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_sampler(SamplerFile(INFO), tmp_path / "some.safetensors")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_sampler(SamplerFile(NETWORK, TENSORS), tmp_path / "network.safetensors")


def split(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewrite(path: Path, *keys: str, to: object) -> None:
    """Change what lies at keys within keys of the header, or remove it (None); the tensors stay."""
    header, tensors = split(path)
    holder = header
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = to
    if to is None:
        del holder[keys[-1]]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + tensors)


def test_what_is_written_is_read(path: Path, network: Path) -> None:
    assert read_sampler_info(path) == read_sampler(path).info == INFO
    assert read_sampler(path).hash == SamplerFile(INFO).hash
    found = read_sampler(network)
    assert found.info == NETWORK and found.hash == SamplerFile(NETWORK, TENSORS).hash
    assert all((found.tensors[name] == TENSORS[name]).all() for name in TENSORS)


def test_the_same_sampler_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    again = write_sampler(read_sampler(path), tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        write_sampler(SamplerFile(INFO), path)


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "1" * 16}, {"starts": (0, 2)}, {"terms": TERMS[:1]}, {"offsets": {}}, {"parent_hash": "1" * 16}],
)
def test_the_hash_is_of_all_that_is_drawn(change: dict) -> None:
    assert SamplerFile(dataclasses.replace(INFO, **change)).hash != SamplerFile(INFO).hash


def test_the_hash_is_not_of_what_is_told(path: Path) -> None:
    assert SamplerFile(dataclasses.replace(INFO, title="other", date="2026-01-01")).hash == SamplerFile(INFO).hash


@pytest.mark.parametrize(
    ("key", "to", "message"),
    [
        ("flowgrad.format", "4", "sampler format '4', this flowgrad reads 2. Upgrade flowgrad"),
        ("flowgrad.format", "1", "a direction .*, not a sampler. Apply it"),
        ("flowgrad.format", None, "flowgrad.format is missing"),
        ("flowgrad.terms", None, "flowgrad.terms is missing"),
        ("flowgrad.terms", "[]", "1 to 100"),
        ("flowgrad.terms", "{}", "1 to 100"),
        ("flowgrad.terms", "[{}]", "must give its kind"),
        ("flowgrad.terms", '[{"kind": "spell"}]', "kind must be one of"),
        ("flowgrad.terms", '[{"kind": "text", "text": "a", "source": "b", "weight": 0}]', "weight must lie above 0"),
        ("flowgrad.terms", '[{"kind": "text", "text": "a"}]', "must give source"),
        ("flowgrad.terms", '[{"kind": "class", "answers": ["huge"]}]', "among the questions"),
        ("flowgrad.terms", '[{"kind": "class", "answers": "old"}]', "answers must be a list"),
        ("flowgrad.terms", '[{"kind": "moment", "attributes": ["age"], "beta": [1], "target": [1]}]', "2 numbers"),
        ("flowgrad.terms", '[{"kind": "moment", "attributes": ["sky"], "beta": [1], "target": [1]}]', "attributes"),
        ("flowgrad.terms", '[{"kind": "identity", "descriptor": [1e999]}]', "not JSON|finite"),
        ("flowgrad.questions", '{"age": ["old"]}', "questions must be"),
        ("flowgrad.questions", '{"age": {"old": 3}}', "questions must be"),
        ("flowgrad.questions", '{"age": {"old": "a"}, "era": {"old": "b"}}', "one question"),
        ("flowgrad.offsets", '{"old": 1e9}', "offsets"),
        ("flowgrad.offsets", '{"blue": 1}', "offsets"),
        ("flowgrad.method", "magic", "method must be one of"),
        ("flowgrad.method", "network", "must have a layers|has tensors|layers"),
        ("flowgrad.starts", "[1, 2]", "starts must increase from 0"),
        ("flowgrad.starts", "[0, 9]", "below N = 6"),
        ("flowgrad.steps", "0", "steps must lie in"),
        ("flowgrad.acceptance", "1.5", "fraction"),
        ("flowgrad.effective", "65", "effective"),
        ("flowgrad.measured", '{"old": {"best": 1}}', "measured of old"),
        ("flowgrad.measured", '{"old": {"before": 2}}', "measured of old"),
        ("flowgrad.parent", "", "parent"),
        ("flowgrad.parent", "../up", "cannot name a sampler"),
        ("modelspec.title", "two\nlines", "title"),
        ("modelspec.description", "\u001b[2J", "control characters"),
        ("modelspec.thumbnail", "data:text/html;base64,AAAA", "thumbnail"),
    ],
)
def test_hostile_metadata_are_refused_by_the_header_alone(path: Path, key: str, to: str, message: str) -> None:
    rewrite(path, "__metadata__", key, to=to)
    with pytest.raises(FlowgradError, match=message) as caught:
        read_sampler_info(path)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("keys", "to", "message"),
    [
        (("basis", "dtype"), "F64", "not F32"),
        (("basis", "dtype"), [], "not F32"),
        (("basis", "shape"), [], "the shape"),
        (("basis", "shape"), [0, 3], "the shape"),
        (("basis", "shape"), [1 << 40, 1 << 40], "truncated or too long"),
        (("basis", "data_offsets"), [0, 8], "side by side"),
        (("basis", "data_offsets"), "all", "side by side"),
        (("basis", "data_offsets"), [16, 400], "side by side"),
        (("basis",), 3, "must give dtype"),
        (("basis",), None, "truncated or too long"),
        (("../../x",), {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a tensor is called"),
    ],
)
def test_hostile_tensors_are_refused_by_the_header_alone(network: Path, keys: tuple, to: object, message: str) -> None:
    rewrite(network, *keys, to=to)
    with pytest.raises(FlowgradError, match=message):
        read_sampler_info(network)


def test_a_truncated_file_and_a_changed_tensor_are_refused(network: Path) -> None:
    raw = network.read_bytes()
    network.write_bytes(raw[:-4])
    with pytest.raises(FlowgradError, match="truncated"):
        read_sampler_info(network)
    network.write_bytes(raw[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(FlowgradError, match="hash"):
        read_sampler(network)


def test_tensors_that_are_not_finite_or_not_described_are_refused() -> None:
    broken = {**TENSORS, "basis": np.full((2, 3, 4, 4), np.nan, np.float32)}
    with pytest.raises(FlowgradError, match="basis must be finite"):
        SamplerFile(NETWORK, broken)
    with pytest.raises(FlowgradError, match="info describes"):
        SamplerFile(NETWORK, {"basis": TENSORS["basis"]})
