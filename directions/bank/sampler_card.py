"""What a sampler's file says, as rows for tables and as a Markdown card; needs the standard library alone."""

from math import prod

from directions.file.sampler import MEASURES, SamplerInfo
from flowgrad.markdown import plain, table


def asked(info: SamplerInfo) -> str:
    """What the samples shall be like, in one line."""
    return "; ".join(f"{term.words}{'' if term.weight == 1 else f' (x {term.weight:g})'}" for term in info.terms)


def sampler_facts(info: SamplerInfo) -> list[tuple[str, str]]:
    """What there is to know of a sampler beside its measurements, as (label, text) in reading order."""
    intervals = f"N = {info.steps}, {len(info.starts)} intervals"
    found = [
        ("asks for", asked(info)),
        ("method", _method(info)),
        ("model", f"{info.model} ({info.fingerprint}), {intervals}"),
        ("guide", f"{info.guide} ({info.guide_fingerprint})" if info.guide else ""),
        ("classifier", f"{info.classifier} ({info.classifier_fingerprint})" if info.classifier else ""),
        ("judge", info.judge),
        ("draws on", f"{info.parent} ({info.parent_hash})" if info.parent else ""),
        ("pool", f"{info.pool} samples, seed {info.seed}; worth {info.effective:.0f} under the energy"),
        ("tags", ", ".join(info.tags)),
        ("date", info.date),
        ("licence", info.license),
        ("description", info.description),
    ]
    return [(label, text) for label, text in found if text]


def _method(info: SamplerInfo) -> str:
    if info.method == "network":
        dimensions = f"on {info.shapes['basis'][0]} of {prod(info.shapes['basis'][1:])} numbers of a latent"
        explains = f"they explain {info.explained:.0%} of the energy's variance"
        return f"a network of {info.layers} layers, {info.updates} updates, {dimensions}; {explains}"
    return f"{info.method}, {info.acceptance:.1%} of proposals accepted"


HEADS = {
    "natural": "mean, guide",
    "wanted": "of the sampler",
    "before": "arg-max, judge",
    "after": "of the sampler, judge",
}


def measured_table(info: SamplerInfo) -> tuple[list[str], list[list[str]]]:
    """Head and rows of what each class's share is before and after; columns without a figure are left out."""
    shown = [measure for measure in MEASURES if any(measure in row for row in info.measured.values())]
    rows = [
        [name, *(f"{row[measure]:.1%}" if measure in row else "" for measure in shown)]
        for name, row in info.measured.items()
    ]
    return ["class", *(HEADS[measure] for measure in shown)], rows


def to_sampler_card(name: str, info: SamplerInfo) -> str:
    """Return a Markdown card: what it asks for, how it draws, and what the model's samples are before and after."""
    parts = [
        f"# {plain(info.title)}",
        f"![Samples of {info.model} above, of the sampler below]({name}.png)",
        f"`flowgrad sample --sampler {name}`",
        "\n".join(f"* **{label}**: {plain(text)}" for label, text in sampler_facts(info)),
    ]
    if info.measured:
        head, rows = measured_table(info)
        where = f"On {info.pool} samples, weighted by the energy for the sampler's shares."
        if info.method == "network":
            where = f"Of {info.pool} samples, and of draws from the network."
        parts += ["## Measured", where, table(head, [[plain(row[0]), *row[1:]] for row in rows], numbers=True)]
    return "\n\n".join(parts) + "\n"
