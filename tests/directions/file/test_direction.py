"""The direction file: what is written comes back, and what is broken or hostile is refused with a reason."""

import dataclasses
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from directions.file.calibration import Calibration
from directions.file.direction import Direction, check_compatible, read_direction, read_info, write_direction
from directions.file.header import DirectionInfo
from directions.file.metadata import check_name
from flowgrad.errors import FlowgradError, UsageError

SHAPE, STEPS, STARTS = (3, 4, 4), 10, (0, 1, 3, 7)

CALIBRATION = Calibration(
    level=2.5,
    unit=0.75,
    strengths=(-1.0, 0.0, 1.0),
    effect=(-2.0, 0.0, 2.5),
    safe=(-1.5, 1.5),
    identity=(0.2, 0.0, 0.21),
    kept=(1.0, 1.0, 0.98),
    side_effects={"a woman": (0.1, 0.0, -0.1)},
    photos=32,
    source="test",
)


def make_info(**changes: Any) -> DirectionInfo:
    info = DirectionInfo(
        title="Smiling",
        model="faces64",
        fingerprint="abc123",
        steps=STEPS,
        text="a smiling face",
        source_text="a serious face",
        keep=("a woman", "a man"),
        description="Ein *Lächeln*,\nüber zwei Zeilen \U0001f642",
        date="2025-01-31",
        license="Apache-2.0",
        tags=("expression", "mouth"),
        thumbnail="data:image/png;base64,iVBORw0KGgo=",
        guide="faces-clip",
        guide_fingerprint="def456",
        forward="fine",
        xi=5e-3,
        eta=0.7,
        lam=1e-4,
        optimizer="sgd",
        step_size=0.03,
        seed=2**63 + 1,
        iterations=3,
        losses=(1.0, 0.1 + 0.2, 1e-300),
        images=2,
        image_hashes=("0123456789abcdef", "fedcba9876543210"),
        calibration=CALIBRATION,
        version="0.1.0",
    )
    return dataclasses.replace(info, **changes)


def make_direction(dtype: Any = "F16", **changes: Any) -> Direction:
    u = np.random.default_rng(0).normal(size=(len(STARTS), *SHAPE))
    return Direction.create(u, np.array(STARTS), make_info(**changes), dtype=dtype)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_direction(make_direction(), tmp_path / "smiling.safetensors")


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_round_trip_is_lossless(tmp_path: Path, dtype: str) -> None:
    direction = make_direction(dtype)
    read = read_direction(write_direction(direction, tmp_path / "d.safetensors"))
    assert read.info == direction.info == read_info(tmp_path / "d.safetensors")
    assert read.u.dtype == direction.u.dtype and np.array_equal(read.u, direction.u)
    assert read.starts.dtype == np.int32 and read.starts.tolist() == list(STARTS)
    assert read.info.shape == SHAPE and read.info.intervals == len(STARTS) and read.info.dtype == dtype


@pytest.mark.parametrize("url", ["", *(f"data:image/webp;base64,{body}" for body in ("A", "a+/9", "AAA=", "AA=="))])
def test_thumbnails_are_data_urls(url: str) -> None:
    assert make_info(thumbnail=url).thumbnail == url


def test_minimal_info_round_trips(tmp_path: Path) -> None:
    info = DirectionInfo(title="t", model="m", fingerprint="f", steps=1)
    direction = Direction.create(np.zeros((1, 2)), np.array([0]), info)
    assert read_direction(write_direction(direction, tmp_path / "d.safetensors")).info == direction.info


def test_safetensors_reads_it_and_what_it_writes_is_read(path: Path, tmp_path: Path) -> None:
    tensors = load_file(path)
    assert np.array_equal(tensors["u"], read_direction(path).u) and tensors["starts"].tolist() == list(STARTS)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.1" and metadata["modelspec.tags"] == "expression,mouth"
    assert metadata["modelspec.architecture"] == "faces64/flow-direction"
    assert metadata.pop("modelspec.hash_sha256").startswith("0x")
    save_file(tensors, tmp_path / "other.safetensors", metadata)
    assert read_direction(tmp_path / "other.safetensors").info == read_info(path)


def test_the_same_direction_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    other = write_direction(make_direction(), tmp_path / "again.safetensors")
    assert other.read_bytes() == path.read_bytes()


def test_files_of_format_1_keep_their_bytes(tmp_path: Path) -> None:
    u = np.arange(len(STARTS) * 48).reshape(len(STARTS), *SHAPE) / 64
    file = write_direction(Direction.create(u, np.array(STARTS), make_info()), tmp_path / "d.safetensors")
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:16] == "829f8ac26f14174e"


def test_info_is_json_without_the_thumbnail(path: Path) -> None:
    values = json.loads(json.dumps(read_info(path).as_dict()))
    assert values["calibration"]["side_effects"] == {"a woman": [0.1, 0.0, -0.1]} and "thumbnail" not in values


def test_tensors_that_are_slices_are_written_as_they_are(tmp_path: Path) -> None:
    whole = make_direction("F32")
    info = dataclasses.replace(whole.info, shape=(3, 4, 2))
    sliced = Direction(whole.u[..., ::2], whole.starts, info)
    assert (read_direction(write_direction(sliced, tmp_path / "d.safetensors")).u == sliced.u).all()


def test_never_overwrites_unless_told(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"exists already.*--overwrite"):
        write_direction(make_direction(title="Other"), path)
    assert path.read_bytes() == before
    write_direction(make_direction(title="Other"), path, overwrite=True)
    assert read_info(path).title == "Other"


def test_info_must_describe_the_tensors() -> None:
    direction = make_direction()
    with pytest.raises(FlowgradError, match="info describes u"):
        Direction(direction.u, direction.starts, dataclasses.replace(direction.info, shape=(3, 8, 8)))


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FlowgradError, match="metadata of"):
        write_direction(make_direction(losses=(0.5,) * (1 << 18)), tmp_path / "d.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_half_precision_overflow_is_refused() -> None:
    with pytest.raises(FlowgradError, match=r"reaches 7e\+04, more than F16 holds.*F32"):
        Direction.create(np.full((1, 2), 7e4), np.array([0]), make_info())
    assert Direction.create(np.full((1, 2), 7e4), np.array([0]), make_info(), dtype="F32").u[0, 0] == 7e4


@pytest.mark.parametrize(
    ("u", "starts", "message"),
    [
        *(([[0, bad]], (0,), "u must be finite, 1 of 2 values") for bad in (np.nan, np.inf, -np.inf)),
        *(
            (np.zeros((len(starts), 2)), starts, "starts must increase from 0")
            for starts in ((1, 2), (0, 0), (0, 5, 3), (0, STEPS), (0, -1), (-3, 0))
        ),
        (np.zeros((2, 2)), (0,), "one for each interval"),
    ],
)
def test_tensors_are_checked(u: Any, starts: tuple[int, ...], message: str) -> None:
    with pytest.raises(FlowgradError, match=message):
        Direction.create(np.array(u), np.array(starts), make_info())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": ""}, "title must be one line"),
        ({"title": "a\nb"}, "title must be one line"),
        ({"title": "\x1b[31mred"}, "title must be a text without control characters"),
        ({"description": "abc\u202edcba"}, "description must be a text without control"),
        ({"model": "../../etc"}, "cannot name a model"),
        ({"fingerprint": ""}, "fingerprint must name"),
        ({"steps": 0}, "steps must lie in 1 to 10000, not 0"),
        ({"steps": 10**9}, "steps must lie in"),
        ({"steps": True}, "steps must be an integer"),
        ({"steps": 10.0}, "steps must be an integer"),
        ({"eta": float("nan")}, "eta must be a finite number"),
        ({"eta": "0.7"}, "eta must be a finite number"),
        ({"losses": (1.0, float("inf"))}, "losses must be a list of finite numbers"),
        ({"losses": [1.0]}, "losses must be a list of finite numbers"),
        ({"lam": -1.0}, "at least 0"),
        ({"forward": "both"}, "forward must be 'grid' or 'fine', not 'both'"),
        ({"date": "yesterday"}, "date must be ISO 8601"),
        ({"tags": ("a,b",)}, "a tag is one line"),
        ({"thumbnail": "http://example.org/x.png"}, "thumbnail must be a base64 data URL"),
        ({"thumbnail": "data:image/svg+xml;base64,AAAA"}, "thumbnail must be a base64 data URL"),
        ({"thumbnail": "data:image/png;base64," + "A" * (1 << 18)}, "thumbnail must be at most"),
        *(
            ({"thumbnail": f"data:image/png;base64,{body}"}, "thumbnail must be a base64 data URL")
            for body in ("", "==", "AA===", "A=A", "AAA\n", "AA-_", "AAé", "AA A", "AA\x00", "\ud800")
        ),
        ({"thumbnail": None}, "thumbnail must be a text"),
        ({"seed": 1 << 70}, "seed must be an integer of 64 bits"),
        ({"text": "x" * 1001}, "text must be at most 1,000 characters, not 1001"),
        ({"keep": ("x", "y" * 200_000)}, "keep must be at most 1,000 characters"),
        ({"description": "x" * 10_001}, "description must be at most 10,000 characters"),
        ({"tags": tuple(map(str, range(101)))}, "tags must be at most 100"),
        ({"tags": ("x" * 1001,)}, "tags must be at most 1,000 characters"),
    ],
)
def test_fields_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowgradError, match=message.replace("(", r"\(")):
        make_info(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strengths": (0.0, 0.0, 1.0)}, "strengths must increase"),
        ({"strengths": (900_000.0, 900_000, 1e6)}, "strengths must increase"),
        ({"strengths": (), "effect": (), "identity": (), "kept": (), "side_effects": {"a": ()}}, "must be 1 to 1000"),
        ({"strengths": tuple(map(float, range(1001)))}, "must be 1 to 1000"),
        ({"strengths": (-1.0, 0.0, 1e308)}, "strengths must lie within 1,000,000 of 0"),
        ({"effect": (1.0,)}, "effect must hold 3 values"),
        ({"effect": (0.0, 0.0, 1e308)}, "effect must lie within 1,000,000 of 0"),
        ({"effect": (0.0, 0.0, float("nan"))}, "effect must be a list of finite numbers"),
        ({"error": (0.1, 0.0, -0.1)}, "error must be at least 0"),
        ({"identity": (1.0,)}, "identity must hold no value or 3"),
        ({"identity": (0.1, 0.0, -0.1)}, "identity must be at least 0"),
        ({"identity": (0.1, 0.0, 1e308)}, "identity must lie within"),
        ({"kept": ()}, "kept must be there where identity is"),
        ({"kept": (0.0, 0.5, 1.5)}, "kept must be fractions of 1"),
        ({"judged": {"happy": (0.0, 0.5, 1.5)}}, "judged must be fractions of 1"),
        ({"judged": {"happy": (0.0, -0.5, 0.5)}}, "judged must be fractions of 1"),
        ({"side_effects": {"x": (1.0,)}}, "side_effects must hold 3"),
        ({"side_effects": {"x": (0.0, 0.0, -1e308)}}, "side_effects must lie within"),
        ({"safe": (1.0, -1.0)}, "safe must be"),
        ({"safe": (0.5, 1.0)}, "safe must be (lowest, highest) around 0"),
        ({"safe": (-1e308, 1.0)}, "safe must lie within"),
        ({"safe": (1.0,)}, "safe must be two"),
        ({"unit": 0.0}, "unit must be above 0"),
        ({"unit": -1.0}, "unit must be above 0"),
        ({"level": -1.0}, "level must be at least 0"),
        ({"level": 0.0}, "level must be the effect at strength 1, 2.5, not 0.0"),
        ({"level": 1e308}, "level must lie within"),
    ],
)
def test_calibration_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowgradError, match=re.escape(message)):
        dataclasses.replace(CALIBRATION, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"safe": (0.0, 0.0)},
        {"safe": (-0.0, 1.0)},
        {"level": 0.0, "effect": (-2.0, 0.0, -0.1)},  # chance made it negative
        {"level": 0.0, "effect": (0.0, 0.0, 0.0)},
        {"level": 2.4999},  # as it is rounded
        {"identity": ()},
        {"strengths": (-3.0, -2.0, -1.0)},  # without strength 1, level cannot be compared
    ],
)
def test_honest_calibrations_are_valid(changes: dict[str, Any]) -> None:
    dataclasses.replace(CALIBRATION, **changes)


# --- broken and hostile files -----------------------------------------------------------------------------------

GONE = object()


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors of a file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(path: Path, header: bytes, tensors: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + tensors)


def rewrite(path: Path, *keys: str, to: Any) -> None:
    """Change what lies at keys within keys of the header, or remove it; the tensors stay."""
    header, tensors = split(path)
    *outer, last = keys
    holder = header
    for key in outer:
        holder = holder[key]
    holder[last] = to
    if to is GONE:
        del holder[last]
    join(path, json.dumps(header).encode(), tensors)


def refused(path: Path, message: str, read: Callable[[Path], object] = read_info) -> None:
    with pytest.raises(FlowgradError, match=message) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and text.count(str(path)) == 1
    assert len(text) < 600 and "\x1b" not in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *((lambda raw, size=size: raw[:size], "too short|truncated") for size in (0, 7, 8, 100, -1)),
        (lambda raw: raw + b"payload", "too long"),
        *(
            (
                lambda raw, length=length: struct.pack("<Q", length) + raw[8:],
                f"a header of {length} bytes, at most 1048576",
            )
            for length in (1 << 20 | 1, 1 << 63, (1 << 64) - 1)
        ),
    ],
)
def test_hostile_lengths(path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path.write_bytes(damage(path.read_bytes()))
    refused(path, message)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x80\x04pickle", "the header is not JSON"),
        (b"not json", "the header is not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b'{"a":' * 50_000, "not JSON"),
        (b'{"u":1,"u":2}', "a key occurs twice"),
        (b'{"u":NaN}', "NaN is not a JSON number"),
        (b'{"u":' + b"9" * 5000 + b"}", "not JSON|must map"),
        (b"{}", "must map texts to texts"),
        (b"", "not JSON"),
    ],
)
def test_hostile_headers(path: Path, raw: bytes, message: str) -> None:
    join(path, raw, split(path)[1])
    refused(path, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("flowgrad.format", "4", "direction format '4', this flowgrad reads 1 and 3. Upgrade flowgrad"),
        ("flowgrad.format", "2", "a sampler .*, not a direction. Draw from it: flowgrad sample --sampler"),
        ("flowgrad.format", GONE, "the key flowgrad.format is missing"),
        ("flowgrad.fingerprint", GONE, "the key flowgrad.fingerprint is missing"),
        ("modelspec.title", GONE, "the key modelspec.title is missing"),
        ("modelspec.title", "\ud800", "title must be a text"),
        ("flowgrad.steps", 10, "must map texts to texts"),
        ("flowgrad.steps", "ten", "flowgrad.steps is not JSON"),
        ("flowgrad.steps", "1e1", "steps must be an integer"),
        ("flowgrad.steps", "3", "intervals must be at most steps = 3"),
        ("flowgrad.eta", "1e999", "eta must be a finite number"),
        ("flowgrad.eta", "NaN", "flowgrad.eta is not JSON"),
        ("flowgrad.losses", '["a"]', "losses must be a list of finite numbers"),
        ("flowgrad.losses", "[[1]]", "losses must be a list of finite numbers"),
        ("flowgrad.model", "../../x", "cannot name a model"),
        ("flowgrad.text", "\x1b]0;owned\x07", "text must be a text without control"),
        ("flowgrad.calibration", "[]", "calibration must give"),
        ("flowgrad.calibration", '{"level":1}', "calibration must give"),
        (
            "flowgrad.calibration",
            '{"level":1,"unit":1,"strengths":3,"effect":[1],"safe":[0,1]}',
            "calibration.strengths must be",
        ),
    ],
)
def test_hostile_metadata(path: Path, key: str, value: Any, message: str) -> None:
    rewrite(path, "__metadata__", key, to=value)
    refused(path, message)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("__metadata__", [], "must map texts to texts"),
        ("extra", {}, "its tensors are"),
        ("starts", GONE, "its tensors are"),
        ("u", 3, "must give dtype"),
        ("u dtype", "BF16", "tensor u is 'BF16', not F16 or F32"),
        ("u dtype", [], "tensor u is"),
        ("starts dtype", "F32", "tensor starts is 'F32', not I32"),
        ("u shape", [4, 3, 4], "tensors of 112 bytes, the file has 400"),
        ("u shape", [4], "has the shape"),
        ("u shape", [4, 0], "has the shape"),
        ("u shape", [4, -1], "has the shape"),
        ("u shape", [4] + [1] * 6, "has the shape"),
        ("u shape", [1 << 40, 1 << 40], "truncated"),
        ("u shape", "big", "has the shape"),
        ("u shape", [True, 2], "has the shape"),
        ("u shape", [2, 6, 4, 4], "u has 2 intervals and starts 4"),
        ("u data_offsets", [0, 384], "side by side"),
        ("u data_offsets", [20, 404], "side by side"),
        ("u data_offsets", [400, 16], "side by side"),
        ("u data_offsets", [1.5, 3], "side by side"),
        ("u data_offsets", [0], "side by side"),
    ],
)
def test_hostile_tensor_entries(path: Path, keys: str, value: Any, message: str) -> None:
    rewrite(path, *keys.split(), to=value)
    refused(path, message)


def test_what_the_library_refuses_is_refused(path: Path) -> None:
    rewrite(path, "u", "data_offsets", to=[16, 400.0])
    refused(path, "invalid JSON in header", read_direction)


def test_a_later_format_is_named_even_with_other_tensors(path: Path) -> None:
    rewrite(path, "__metadata__", "flowgrad.format", to="4")
    rewrite(path, "v", to={})
    refused(path, "Upgrade flowgrad")


def test_unknown_metadata_is_ignored(path: Path) -> None:
    rewrite(path, "__metadata__", "someone.else", to="\x1b")
    assert read_direction(path).info == make_direction().info


def test_flipped_bit_is_found_by_the_hash(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    refused(path, "do not have the hash", read_direction)


@pytest.mark.parametrize(
    ("place", "values", "message"),
    [
        (0, np.array((1, 2, 3, 4), "<i4"), "starts must increase"),
        (0, np.array((0, 2, 2, 4), "<i4"), "starts must"),
        (16, np.array(np.nan, "<f2"), "u must be finite"),
    ],
)
def test_hostile_tensors(path: Path, place: int, values: np.ndarray, message: str) -> None:
    raw = bytearray(path.read_bytes())
    begin = len(raw) - 400 + place
    raw[begin : begin + values.nbytes] = values.tobytes()
    path.write_bytes(raw)
    rewrite(path, "__metadata__", "modelspec.hash_sha256", to=GONE)
    assert read_info(path).title == "Smiling"
    refused(path, message, read_direction)


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "cannot be read: No such file")
    refused(tmp_path, "not a file")
    if hasattr(os, "mkfifo"):  # a pipe is not waited for
        os.mkfifo(tmp_path / "pipe.safetensors")
        refused(tmp_path / "pipe.safetensors", "not a file")


def damages(path: Path, count: int) -> Iterator[None]:
    """The file with three other bytes at random places, so often."""
    raw, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(count):
        damaged = bytearray(raw)
        for place in random.integers(0, len(raw), size=3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        yield


def test_random_damage_never_escapes(path: Path) -> None:
    """Whatever byte is hit, the answer is a direction or a FlowgradError, never another exception."""
    for _ in damages(path, 300):
        try:
            read_direction(path)
        except FlowgradError:
            continue


# --- which model it fits ------------------------------------------------------------------------------------------

FITTING: dict[str, Any] = {
    "model": "faces64",
    "fingerprint": "abc123",
    "steps": STEPS,
    "shape": SHAPE,
    "time_convention": "t=0 noise, t=1 data",
}


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"shape": (3, 8, 8)}, ("(3, 4, 4)", "(3, 8, 8)")),
        ({"steps": 50}, ("10", "50")),
        ({"time_convention": "t=1 noise, t=0 data"}, ("t=0 noise, t=1 data", "t=1 noise, t=0 data")),
    ],
)
def test_incompatible_whatever_is_forced(changes: dict[str, Any], values: tuple[str, str]) -> None:
    for force in (False, True):
        with pytest.raises(FlowgradError) as caught:
            check_compatible(make_direction().info, **{**FITTING, **changes}, force=force)
        assert all(value in str(caught.value) for value in values)


def test_force_overrides_the_fingerprint() -> None:
    check_compatible(make_direction().info, **FITTING)
    other = {**FITTING, "fingerprint": "xyz", "model": "faces128"}
    with pytest.raises(FlowgradError, match=r"faces64 \(abc123\), not faces128 \(xyz\).*--force"):
        check_compatible(make_direction().info, **other)
    check_compatible(make_direction().info, **other, force=True)


@pytest.mark.parametrize("name", ["smiling", "a", "0", "big-smile_2.1", "a" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", "-x", "a/b", "a\\b", "A", "a b", "é", "a\n", "a" * 65, "con", "nul.x", "a.", "x.safetensors"],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a direction"):
        check_name(name)
