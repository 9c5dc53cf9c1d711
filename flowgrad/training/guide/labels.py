"""Tables of labels: columns become probabilities for the values of attributes."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flowgrad.errors import FlowgradError, UsageError
from flowgrad.training.guide.config import (
    AttributeConfig,
    BalanceConfig,
    CategoryConfig,
    GuideConfig,
    NumberConfig,
    TableConfig,
)

Part = Literal["all", "even", "odd"]


@dataclass(frozen=True)
class Labels:
    """File names (N) and, for each, the probability of every value of all attributes (N, V), side by side."""

    files: list[str]
    probabilities: Tensor

    def rows(self, chosen: Sequence[int]) -> "Labels":
        """Return only these rows, in this order."""
        return Labels([self.files[row] for row in chosen], self.probabilities[list(chosen)])


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header; FlowgradError if it cannot be read or has no rows."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlowgradError(f"cannot read the table {path} ({error}): give a CSV file with a header.") from error
    if not rows:
        raise FlowgradError(f"the table {path} has no rows: give a CSV file with a header and one row per image.")
    return rows


def split_rows(table: Sequence[Mapping[str, str]], config: TableConfig, split: str, part: Part = "all") -> list[int]:
    """Return the positions of a split's rows, or of every second of them from the first ("even") or second ("odd").

    A table without a split column is all training; UsageError if nothing is left.
    """
    if config.split is None:
        found = list(range(len(table)))
    else:
        _check_columns(table, [config.split])
        found = [row for row, entry in enumerate(table) if entry[config.split] == split]
    found = found[{"all": 0, "even": 0, "odd": 1}[part] :: 1 if part == "all" else 2]
    if not found:
        raise UsageError(f"no row of the table has {config.split} = {split!r}: correct the config's `table` section.")
    return found


def read_labels(table: Sequence[Mapping[str, str]], config: GuideConfig) -> Labels:
    """Turn every row of a table into probabilities; UsageError names a column that is missing or not a number."""
    _check_columns(table, [config.table.file, *_columns_of(config)])
    files = [entry[config.table.file] for entry in table]
    columns = [attribute_probabilities(table, attribute) for attribute in config.attributes.values()]
    return Labels(files, torch.cat(columns, 1))


def attribute_probabilities(table: Sequence[Mapping[str, str]], config: AttributeConfig) -> Tensor:
    """Probability of each of an attribute's values (N, values); a row of zeros is unknown."""
    if isinstance(config, NumberConfig):
        return range_probabilities(_numbers(table, config.column), config)
    if isinstance(config, CategoryConfig):
        entries = np.array([entry[config.column] for entry in table])
        return torch.from_numpy(np.stack([entries == value for value in config.values], 1)).float()
    levels = torch.stack([_numbers(table, column) for column in config.columns.values()], 1).nan_to_num(0).clamp(0, 1)
    if config.threshold is not None:
        return (levels >= config.threshold).float()
    return levels / levels.sum(1, keepdim=True).clamp(min=1.0)


def range_probabilities(numbers: Tensor, config: NumberConfig) -> Tensor:
    """Probability that a number (N,), an uncertain estimate, lies in each range (N, ranges); NaN is unknown.

    With softness s, the estimate of a number near a limit L is blurred by a logistic of scale s * L / 2.
    """
    columns = []
    for low, high in config.ranges.values():
        if config.softness == 0:
            columns.append(((numbers >= low) & (numbers <= high)).float())
        else:
            columns.append(_above(numbers, low, config.softness) - _above(numbers, high + 1, config.softness))
    inside = torch.stack(columns, 1).nan_to_num(0).clamp(0, 1)
    limits = list(config.ranges.values())
    if config.softness > 0:  # the outermost limits are the table's, not a matter of estimate
        inside[:, 0] += 1 - _above(numbers, limits[0][0], config.softness).nan_to_num(1)
        inside[:, -1] += _above(numbers, limits[-1][1] + 1, config.softness).nan_to_num(0)
    return inside


def sampling_weights(labels: Labels, config: GuideConfig, spans: Mapping[str, slice]) -> Tensor:
    """How often to draw each image (N,), mean 1: combinations of values weigh count ** -power, up to the limit."""
    balance: BalanceConfig = config.balance
    cell = torch.zeros(len(labels.files), dtype=torch.long)
    for name in balance.attributes:
        rows = labels.probabilities[:, spans[name]]
        likely = torch.where(rows.sum(1) > 0, rows.argmax(1), rows.shape[1])
        cell = cell * (rows.shape[1] + 1) + likely
    _, position, counts = torch.unique(cell, return_inverse=True, return_counts=True)
    weights = counts.double()[position] ** -balance.power
    weights = (weights / weights.mean()).clamp(max=balance.limit)
    return weights / weights.mean()


def _above(numbers: Tensor, limit: float, softness: float) -> Tensor:
    scale = max(softness * abs(limit) / 2, 1e-3)
    return torch.sigmoid((numbers - (limit - 0.5)) / scale)


def _columns_of(config: GuideConfig) -> list[str]:
    return [column for attribute in config.attributes.values() for column in attribute.table_columns]


def _check_columns(table: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in table[0]:
            raise UsageError(f"the table has no column {column!r} (it has: {', '.join(table[0])}): correct the config.")


def _numbers(table: Sequence[Mapping[str, str]], column: str) -> Tensor:
    try:
        return torch.tensor([float(entry[column] or "nan") for entry in table])
    except (TypeError, ValueError) as error:
        raise UsageError(f"column {column!r} of the table must hold numbers or nothing ({error}).") from error
