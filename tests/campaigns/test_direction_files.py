"""15,000 mutated direction files and 4,000 of samplers: each is refused by an error of ours, or finite and valid."""

import json
import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from directions.bank.bank import read_any
from directions.bank.card import effect_table, facts, side_effects, to_card
from directions.bank.gallery import curve
from directions.bank.sampler_card import to_sampler_card
from directions.file.direction import Direction, read_direction, read_info, write_direction
from directions.file.header import DirectionInfo
from directions.file.sampler import SamplerFile, read_sampler, write_sampler
from flowgrad.errors import FlowgradError
from flowgrad.sampling.network import Coupling, NetworkSampler, NetworkSizes, restore
from flowgrad.sampling.subspace import Subspace
from tests.directions.file.test_direction import make_direction
from tests.directions.file.test_sampler_file import INFO as SAMPLER

pytestmark = pytest.mark.slow

BYTES, HEADERS, COMPACT, FIELDS = 5000, 4000, 2500, 1000  # mutants of each kind
SAMPLERS = 1000  # of each kind, of each method
MEMORY = 32 << 20  # bytes; files here have some thousands, and a header at most a million
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**64, -(2**70), 10**400, 1e308, -1e308, 5e-324, 0.5),
    *("", "x", "\x00", "\x1b[31m", "\u202e", "\ud800", "../../etc/passwd", "x" * 5000, "NaN", "[1]", "1e999", "null"),
    *([], [0], [0, 0], [1] * 2000, {}, {"u": {}}, {"a": [1.0]}, [[0, 1]], [None]),
]


@pytest.fixture(scope="module")
def seed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_direction(make_direction(), tmp_path_factory.mktemp("seed") / "smiling.safetensors")


@pytest.fixture(scope="module")
def compact_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_direction(make_direction().compact(2), tmp_path_factory.mktemp("compact") / "smiling.safetensors")


def outcome(path: Path) -> str:
    """What reading a file comes to: "refused" or "read"; anything else is raised."""
    try:
        found = read_any(path)
    except FlowgradError as error:
        assert str(error).startswith(f"{path}: ") and len(str(error)) < 1000, error
        return "refused"
    if isinstance(found, SamplerFile):
        check_sampler(found)
        assert read_sampler(write_sampler(found, path, overwrite=True)).hash == found.hash
    else:
        check_direction(found)
        assert read_direction(write_direction(found, path, overwrite=True)).info == found.info
    return "read"


def check_sampler(sampler: SamplerFile) -> None:
    """All that is shown of a sampler can be shown, and its network is made, or refused by an error of ours."""
    info = sampler.info
    assert all(np.isfinite(value).all() for value in sampler.tensors.values())
    json.dumps(info.as_dict(), allow_nan=False)
    to_sampler_card("name", info)
    if info.method == "network":
        tensors = {name: torch.tensor(value) for name, value in sampler.tensors.items()}
        with suppress(FlowgradError):
            network = restore(NetworkSizes(len(tensors["basis"]), info.layers, info.width), tensors)
            assert network.push(torch.zeros(1, *info.shapes["basis"][1:])).shape[1:] == info.shapes["basis"][1:]


def check_direction(direction: Direction) -> None:
    info = direction.info
    assert np.isfinite(direction.u).all() and direction.u.shape == (info.intervals, *info.shape)
    assert direction.starts[0] == 0 and (np.diff(direction.starts) > 0).all() and direction.starts[-1] < info.steps
    check_shown(info)


def check_shown(info: DirectionInfo) -> None:
    """All that is shown of a direction can be shown."""
    json.dumps(info.as_dict(), allow_nan=False)
    to_card("name", info)
    facts(info)
    side_effects(info)
    if info.calibration:
        effect_table(info.calibration)


def campaign(path: Path, mutants: int, mutate: Callable[[bytes, random.Random], bytes]) -> None:
    raw, draw, counts = path.read_bytes(), random.Random(0), Counter[str]()
    target = path.with_name(f"{mutate.__name__}-{path.name}")
    tracemalloc.start()
    for _ in range(mutants):
        target.write_bytes(mutate(raw, draw))
        counts[outcome(target)] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY
    assert counts["refused"] and counts["read"], counts
    print(f"\n{mutate.__name__} of {path.stem}: {dict(counts)}, at most {peak >> 10} KiB")  # noqa: T201


# --- bytes -----------------------------------------------------------------------------------------------------------


def mutate_bytes(raw: bytes, draw: random.Random) -> bytes:
    """Flip, cut, insert, repeat or swap a few bytes; sometimes only where texts and spaces are."""
    mutant = bytearray(raw)
    for _ in range(draw.randint(1, 3)):
        place, length = draw.randrange(len(mutant)), draw.randint(1, 16)
        kind = draw.randrange(6)
        if kind == 0:
            mutant[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            mutant[place] = draw.randrange(256)
        elif kind == 2:
            del mutant[place : place + length]
        elif kind == 3:
            mutant[place:place] = draw.randbytes(length)
        elif kind == 4:
            mutant[place:place] = mutant[place : place + length]
        else:  # the length of the header: close to what it was, or anything
            (was,) = struct.unpack("<Q", raw[:8])
            claimed = draw.choice([was + draw.randint(-9, 9), draw.getrandbits(20), draw.getrandbits(64)])
            mutant[:8] = struct.pack("<Q", claimed % (1 << 64))
        if not mutant:
            return b""
    return bytes(mutant)


# --- the header's JSON -----------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys to every value within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((*path, key), *places(item, (*path, key)))]


def change(value: Any, place: tuple[Any, ...], draw: random.Random) -> None:
    """Replace, remove or double what lies at a place; numbers also by their neighbours."""
    *outer, last = place
    for key in outer:
        value = value[key]
    item = value[last]
    kind = draw.randrange(4)
    if kind == 0 and isinstance(value, dict):
        del value[last]
    elif kind == 1 and isinstance(value, dict):
        value[f"{last}x"] = item
    elif kind == 2 and isinstance(item, (int, float)):
        value[last] = draw.choice([item + 1, item - 1, -item, item * 2, item / 2])
    else:
        value[last] = draw.choice(STRANGE)


def mutate_header(raw: bytes, draw: random.Random) -> bytes:
    """Change one or two values of the header, or of the JSON that is written within its texts."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    del header["__metadata__"]["modelspec.hash_sha256"]
    for _ in range(draw.randint(1, 2)):
        metadata = header.get("__metadata__")
        written = [key for key, text in metadata.items() if is_list(text)] if isinstance(metadata, dict) else []
        if written and draw.random() < 0.5:
            key = draw.choice(written)
            inner = {"value": json.loads(metadata[key])}
            change(inner, draw.choice(places(inner)), draw)
            metadata[key] = json.dumps(inner.get("value"))
        elif header:
            change(header, draw.choice(places(header)), draw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def is_list(text: object) -> bool:
    """Whether a text of the metadata is JSON that holds other values."""
    try:
        return isinstance(text, str) and isinstance(json.loads(text), (dict, list))
    except ValueError:
        return False


@pytest.mark.parametrize(("mutate", "mutants"), [(mutate_bytes, BYTES), (mutate_header, HEADERS)])
def test_mutants_are_refused_or_valid(seed_file: Path, mutate: Callable[..., bytes], mutants: int) -> None:
    campaign(seed_file, mutants, mutate)


@pytest.mark.parametrize("mutate", [mutate_bytes, mutate_header])
def test_mutants_of_compact_files_are_refused_or_valid(compact_file: Path, mutate: Callable[..., bytes]) -> None:
    campaign(compact_file, COMPACT, mutate)


@pytest.fixture(scope="module")
def samplers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sampler that draws by rejection, with an energy of every kind, and one that draws by a network."""
    folder, sizes = tmp_path_factory.mktemp("samplers"), NetworkSizes(4, 2, 3)
    basis = torch.linalg.qr(torch.randn(48, 4, generator=torch.Generator().manual_seed(0)))[0].T
    made = NetworkSampler(Subspace(basis.reshape(4, 3, 4, 4)), Coupling(sizes)).tensors()
    tensors = {name: value.numpy() for name, value in made.items()}
    shapes = {name: value.shape for name, value in tensors.items()}
    network = replace(SAMPLER, method="network", layers=2, width=3, parent="", parent_hash="", shapes=shapes)
    files = {"rejection": SamplerFile(SAMPLER), "network": SamplerFile(network, tensors)}
    return {name: write_sampler(file, folder / f"{name}.safetensors") for name, file in files.items()}


@pytest.mark.parametrize("method", ["rejection", "network"])
@pytest.mark.parametrize("mutate", [mutate_bytes, mutate_header])
def test_mutants_of_samplers_are_refused_or_valid(
    samplers: dict[str, Path], mutate: Callable[..., bytes], method: str
) -> None:
    campaign(samplers[method], SAMPLERS, mutate)


# --- values that have the right type ---------------------------------------------------------------------------------

NUMBERS = st.one_of(st.floats(-2, 2), st.floats(), st.sampled_from([0.0, -0.0, 1e6, -1e6, 1e308, 5e-324]))
LISTS = st.lists(NUMBERS, max_size=4)
CALIBRATIONS = st.fixed_dictionaries(
    {"level": NUMBERS, "unit": NUMBERS, "strengths": LISTS, "effect": LISTS, "safe": st.lists(NUMBERS, max_size=3)},
    optional={
        **dict.fromkeys(("error", "identity", "kept"), LISTS),
        **{name: st.dictionaries(st.text(max_size=5), LISTS, max_size=2) for name in ("judged", "side_effects")},
        "photos": st.integers(),
        "source": st.text(max_size=5),
    },
)
SHORT = st.fixed_dictionaries(  # of one to three strengths, whose lists are as long: most of these are nearly valid
    {
        "level": st.floats(0, 1),
        "unit": st.floats(0, 2),
        "strengths": st.lists(st.floats(-2, 2), min_size=3, max_size=3, unique=True).map(sorted),
        "effect": st.lists(st.floats(-1, 1), min_size=3, max_size=3),
        "safe": st.tuples(st.floats(-1, 0), st.floats(0, 1)),
    },
    optional={"kept": st.lists(st.floats(0, 1), min_size=3, max_size=3)},
)
TEXTS = st.fixed_dictionaries({}, optional={
    f"{place}.{name}": st.text(max_size=300)
    for place, names in {
        "modelspec": ("title", "description", "date", "license", "tags", "thumbnail"),
        "flowgrad": ("text", "source_text", "model", "guide", "inversion", "forward", "seed", "losses", "keep"),
    }.items()
    for name in names
})  # fmt: skip
HYPOTHESIS: Counter[str] = Counter()


@settings(max_examples=FIELDS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calibration=st.one_of(SHORT, SHORT, CALIBRATIONS), texts=st.one_of(st.just({}), st.just({}), TEXTS))
def test_values_of_fields_are_refused_or_valid(
    seed_file: Path, calibration: dict[str, Any], texts: dict[str, str]
) -> None:
    raw = seed_file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] |= {**texts, "flowgrad.calibration": json.dumps(calibration)}
    text = json.dumps(header).encode()
    path = seed_file.with_name("fields.safetensors")
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    found = outcome(path)
    HYPOTHESIS[found] += 1
    if found == "read" and (drawn := read_info(path).calibration) and HYPOTHESIS["drawn"] < 50:
        HYPOTHESIS["drawn"] += 1
        assert curve(drawn.strengths, drawn.effect, drawn.safe).startswith("data:image/svg+xml")


def test_hypothesis_reached_both_answers() -> None:
    if not HYPOTHESIS:
        pytest.skip("runs after the test of fields")
    assert HYPOTHESIS["refused"] > FIELDS // 10 and HYPOTHESIS["read"] > FIELDS // 10, HYPOTHESIS
    print(f"\nfields: {dict(HYPOTHESIS)}")  # noqa: T201
