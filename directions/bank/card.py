"""What a direction's file says, as numbers for tables and as a Markdown card; needs the standard library alone."""

from collections.abc import Iterator

from directions.file.calibration import Calibration, at_strength
from directions.file.header import DirectionInfo
from flowgrad.markdown import plain, table

ANSWERS_SHOWN = 2  # of a judge, those that move most
NOTABLE = 0.1  # share of the wanted effect from which another text's change is worth saying


def target(info: DirectionInfo) -> str:
    """The text that a direction raises, with its source, as it is written on the command line."""
    return f"{info.text} - {info.source_text}" if info.source_text else info.text


def side_effects(info: DirectionInfo, strength: float = 1.0) -> dict[str, float]:
    """Changes of other texts' log-odds at a strength, the largest first; empty without a calibration."""
    if info.calibration is None:
        return {}
    others = {text: values for text, values in info.calibration.side_effects.items() if text != target(info)}
    found = {text: at_strength(info.calibration, values, strength) for text, values in others.items()}
    return dict(sorted(found.items(), key=lambda pair: -abs(pair[1])))


def is_notable(info: DirectionInfo, change: float) -> bool:
    """Whether a side effect at strength 1 is large beside the effect itself."""
    return info.calibration is not None and abs(change) >= NOTABLE * abs(info.calibration.level)


def is_safe(calibration: Calibration | None, strength: float) -> bool:
    """Whether a strength lies within the range measured as safe; True where nothing was measured."""
    low, high = calibration.safe if calibration else (strength, strength)
    return low - 1e-6 <= strength <= high + 1e-6


def facts(info: DirectionInfo) -> list[tuple[str, str]]:
    """What there is to know of a direction beside its measurements, as (label, text) in reading order."""
    keep = "; ".join(info.keep)
    found = [
        ("text", target(info)),
        ("keeps", keep),
        ("model", f"{info.model} ({info.fingerprint}), N = {info.steps}, {info.intervals} intervals"),
        ("patterns", f"{info.rank}, in 8 bits, which every interval sums" if info.rank else ""),
        ("guide", f"{info.guide} ({info.guide_fingerprint})" if info.guide else ""),
        ("trained on", f"{info.images} images, {info.iterations} iterations of {info.optimizer}, eta {info.eta:g}"),
        ("trajectory", f"{info.inversion}, {info.forward} forward, seed {info.seed}"),
        ("tags", ", ".join(info.tags)),
        ("date", info.date),
        ("licence", info.license),
        ("description", info.description),
    ]
    return [(label, text) for label, text in found if text]


def in_words(text: str, change: float) -> str:
    """The change of a text's log-odds in words; the change of "one - other" is that of one against the other."""
    one, contrast, other = text.partition(" - ")
    if not contrast:
        return f"{'more' if change > 0 else 'less'} “{text}” ({change:+.1f})"
    more, less = (one, other) if change > 0 else (other, one)
    return f"more “{more}”, less “{less}” ({abs(change):.1f})"


def to_card(name: str, info: DirectionInfo) -> str:
    """Return a Markdown card: what it does, how far it may be pushed, and how it was made."""
    parts = [
        f"# {plain(info.title)}",
        f"![Samples of {info.model}, before and after]({name}.png)",
        f"`flowgrad apply-direction {name} photo.jpg --strength 1.0`",
        "\n".join(f"* **{label}**: {plain(text)}" for label, text in facts(info)),
    ]
    if info.calibration:
        parts += ["## Measured", *_measured(info, info.calibration)]
    return "\n\n".join(parts) + "\n"


def effect_table(calibration: Calibration) -> tuple[list[str], list[list[str]]]:
    """Head and rows of what each strength did; columns that were not measured are left out."""
    columns = {"strength": [f"{s:+.2f}" for s in calibration.strengths]}
    errors = calibration.error or (0.0,) * len(calibration.effect)
    columns["effect (log-odds)"] = [
        f"{effect:+.2f}" + (f" ± {error:.2f}" if error else "")
        for effect, error in zip(calibration.effect, errors, strict=True)
    ]
    if calibration.identity:
        columns["identity distance"] = [f"{distance:.2f}" for distance in calibration.identity]
        columns["same person"] = [f"{100 * share:.0f} %" for share in calibration.kept]
    answers = sorted(calibration.judged, key=lambda name: min(calibration.judged[name]) - max(calibration.judged[name]))
    for name in answers[:ANSWERS_SHOWN]:
        columns[f"judged {name}"] = [f"{100 * p:.0f} %" for p in calibration.judged[name]]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _measured(info: DirectionInfo, calibration: Calibration) -> Iterator[str]:
    (low, high), source = calibration.safe, plain(calibration.source)
    yield f"On {calibration.photos} {source} that it was not trained on; safe from {low:g} to {high:g}."
    yield table(*effect_table(calibration), numbers=True)
    if others := side_effects(info):
        rows = [(plain(text), f"{change:+.2f}") for text, change in others.items()]
        yield table(("side effect at strength 1", "change (log-odds)"), rows, numbers=True)
