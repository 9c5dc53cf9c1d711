"""Random numbers from keys: repeatable, and unrelated for neighbouring keys."""

import torch

from flowgrad.seeds import generator


def draw(*key: int) -> float:
    return float(torch.rand(1, generator=generator(*key)))


def test_a_key_gives_the_same_numbers_again() -> None:
    assert draw(3, 1) == draw(3, 1)


def test_different_keys_give_different_numbers() -> None:
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)]
    assert len({draw(*key) for key in keys}) == len(keys)
