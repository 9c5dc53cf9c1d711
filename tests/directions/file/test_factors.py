"""Compact files: few patterns miss what the singular value decomposition says; what is hostile is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from directions.file.direction import Direction, read_direction, read_info, write_direction
from directions.file.factors import Factors, factorize, missed
from flowgrad.errors import FlowgradError, UsageError
from tests.directions.file.test_direction import GONE, SHAPE, STARTS, make_direction, make_info, refused, rewrite, split

M, RANK = len(STARTS), 2
LENGTHS = np.array([0.01, 0.02, 0.17, 0.8])


def control(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(M, *SHAPE))


@pytest.fixture
def compact() -> Direction:
    return make_direction().compact(RANK)


@pytest.fixture
def path(compact: Direction, tmp_path: Path) -> Path:
    return write_direction(compact, tmp_path / "small.safetensors")


# --- mathematics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", range(1, M + 1))
def test_patterns_miss_the_other_singular_values_and_half_a_level_of_8_bits(rank: int) -> None:
    """sqrt(sum_{r > R} s_r^2) <= missed <= that + sqrt(sum_{r <= R} s_r^2 D (scale_r / 2)^2), by Eckart and Young."""
    u = control()
    weighted = np.sqrt(LENGTHS)[:, None] * u.reshape(M, -1)
    _, values, patterns = np.linalg.svd(weighted, full_matrices=False)
    whole = np.linalg.norm(weighted)
    tail = np.linalg.norm(values[rank:])
    half_levels = np.abs(patterns[:rank]).max(1) / 127 / 2
    rounding = np.linalg.norm(values[:rank] * half_levels) * np.sqrt(patterns.shape[1])
    found = missed(u, factorize(u, LENGTHS, rank).expand(), LENGTHS) * whole
    assert tail - 1e-6 * whole <= found <= tail + rounding + 1e-6 * whole
    assert rounding < 0.02 * whole


def test_a_control_is_the_weighted_sum_of_its_patterns() -> None:
    factors = factorize(control(), LENGTHS, 3)
    expected = np.einsum("jr,r...->j...", factors.weights.astype(np.float64), factors.basis)
    assert factors.basis.dtype == np.int8 and factors.basis.shape == (3, *SHAPE)
    assert factors.expand().dtype == np.float32
    assert np.abs(factors.expand() - expected).max() < 1e-5


def test_what_is_missed_is_a_share_of_the_control_over_time() -> None:
    u = np.zeros((2, 1, 3))
    u[:, 0, 0] = 3, 4
    other = u.copy()
    other[1] = 0
    assert missed(u, other, np.array([0.75, 0.25])) == pytest.approx(np.sqrt(4 / (0.75 * 9 + 4)))
    assert missed(u, u, np.array([0.5, 0.5])) == missed(0 * u, 0 * u, np.array([0.5, 0.5])) == 0


def test_a_control_of_zero_stays_zero() -> None:
    assert not factorize(np.zeros((M, *SHAPE)), LENGTHS, 2).expand().any()


@pytest.mark.parametrize(("shape", "rank", "most"), [((4, 3), 0, 3), ((4, 3), 4, 3), ((2, 3), 3, 2)])
def test_a_rank_that_a_control_cannot_have(shape: tuple[int, ...], rank: int, most: int) -> None:
    with pytest.raises(UsageError, match=f"rank must lie in 1 to {most}.*got {rank}"):
        factorize(np.ones(shape), np.full(shape[0], 1 / shape[0]), rank)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_compact_file_is_read_as_it_was_written_and_written_as_it_was_read(path: Path, compact: Direction) -> None:
    read = read_direction(path)
    assert read.info == compact.info == read_info(path) and read.info.rank == RANK and read.info.shape == SHAPE
    assert np.array_equal(read.u, compact.u) and read.starts.tolist() == list(STARTS)
    assert write_direction(read, path.with_name("again.safetensors")).read_bytes() == path.read_bytes()


def test_safetensors_writes_one_too(path: Path) -> None:
    tensors, (header, _) = load_file(path), split(path)
    assert set(tensors) == {"basis", "weights", "starts"}
    del header["__metadata__"]["modelspec.hash_sha256"]
    save_file(tensors, path, header["__metadata__"])
    assert np.array_equal(read_direction(path).u, make_direction().compact(RANK).u)


def test_six_intervals_of_256_pixels_have_less_than_a_megabyte(tmp_path: Path) -> None:
    u = np.random.default_rng(0).normal(size=(6, 3, 256, 256))
    whole = Direction.create(u, np.arange(6), make_info())
    small = write_direction(whole.compact(4), tmp_path / "small.safetensors")
    assert small.stat().st_size < 1_000_000 < write_direction(whole, tmp_path / "whole.safetensors").stat().st_size / 2


def test_a_file_never_stands_for_more_than_may_be_read() -> None:
    large = Direction.create(np.zeros((513, 1 << 17), np.float16), np.arange(513), make_info(steps=1000))
    with pytest.raises(UsageError, match="at most 67108864 numbers; this one has 67239936"):
        large.compact(1)


def test_u_must_be_what_the_file_will_keep(compact: Direction) -> None:
    assert compact.factors
    scaled = Factors(compact.factors.weights * 2, compact.factors.basis)
    whole = dataclasses.replace(compact.info, rank=0)
    for info, factors in ((compact.info, scaled), (compact.info, None), (whole, compact.factors)):
        with pytest.raises(FlowgradError, match="u is not their sum"):
            Direction(compact.u, compact.starts, info, factors)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("__metadata__ flowgrad.format", "1", "its tensors are"),
        ("__metadata__ flowgrad.format", "2", "a sampler"),
        ("__metadata__ flowgrad.steps", "3", "intervals must be at most steps"),
        ("u", {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}, "its tensors are"),
        ("basis", GONE, "its tensors are"),
        ("weights", GONE, "its tensors are"),
        ("basis", [], "must give dtype"),
        ("basis dtype", "U8", "tensor basis is 'U8', not I8"),
        ("weights dtype", "F16", "tensor weights is 'F16', not F32"),
        ("starts dtype", "I8", "tensor starts is 'I8', not I32"),
        ("basis shape", [96], "has the shape"),
        ("basis shape", [2, 48, 0], "has the shape"),
        ("basis shape", [2, 3, 4, 5], "truncated or too long"),
        ("basis shape", [1 << 40, 1 << 40], "truncated or too long"),
        ("basis shape", [1, 96], "a basis of 1, weights of 4 x 2 and 4 starts do not fit"),
        ("basis shape", [4, 24], "a basis of 4, weights of 4 x 2"),
        ("weights shape", [8], "has the shape"),
        ("weights shape", [2, 4], "a basis of 2, weights of 2 x 4"),
        ("weights shape", [8, 1], "weights of 8 x 1"),
        ("basis data_offsets", [0, 96], "side by side"),
        ("basis data_offsets", [-1, 95], "side by side"),
        ("weights data_offsets", [48, 80], "side by side"),
    ],
)
def test_hostile_compact_headers(path: Path, keys: str, value: Any, message: str) -> None:
    rewrite(path, *keys.split(), to=value)
    refused(path, message)


def save(path: Path, weights: np.ndarray, basis: np.ndarray) -> Path:
    """A compact file of these tensors, as another program may write it, without a hash."""
    needed = {"modelspec.title": "t", "flowgrad.model": "m", "flowgrad.fingerprint": "f", "flowgrad.steps": "1000"}
    tensors = {"weights": weights, "basis": basis, "starts": np.arange(len(weights), dtype=np.int32)}
    save_file(tensors, path, {**needed, "flowgrad.format": "3"})
    return path


def test_a_small_file_cannot_stand_for_a_huge_control(tmp_path: Path) -> None:
    path = save(tmp_path / "bomb.safetensors", np.ones((513, 1), np.float32), np.ones((1, 1 << 17), np.int8))
    assert path.stat().st_size < 1 << 18
    refused(path, "stands for a control of 268959744 bytes, at most 268435456")


def test_more_patterns_than_intervals_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "wide.safetensors", np.ones((1, 2), np.float32), np.ones((2, 3), np.int8))
    refused(path, "a basis of 2, weights of 1 x 2 and 1 starts do not fit")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_weights_whose_control_is_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "d.safetensors", np.full((2, 1), value, np.float32), np.full((1, 3), 127, np.int8))
    assert read_info(path).rank == 1
    refused(path, "u must be finite, 6 of 6 values", read_direction)
