"""What `inspect --rank` prints for a person."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_atlas.ranking.order import SCORES


def in_words(found: Mapping[str, Any]) -> list[str]:
    """Return the report as lines for a person."""
    cases = " and ".join(f"{count} of {split}" for split, count in found["cases"].items() if count)
    rows = found["ranked"]
    return [
        f"data: {found['data']}",
        f"looked at: {found['windows']} windows of {cases} (never of test); intervals of 95 % over {found['units']}",
        "",
        *_table(rows),
        "",
        *_told_apart(found["not_distinguishable"], len(rows)),
        *(line for row in rows for line in _compatibility(row)),
        f"caution: {found['caution']}",
        _cost(rows, found["device"]),
    ]


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [["weights", "network", *SCORES.values()]]
    for row in rows:
        scores = [row["scores"][key] for key in SCORES]
        lines.append([row["weights"], row["network"], *("-" if each is None else _score(each) for each in scores)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _score(score: Mapping[str, Any]) -> str:
    return f"{score['place']}. {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _told_apart(pairs: Mapping[str, Sequence[Sequence[str]]], count: int) -> list[str]:
    lines = ["more is better; a place is one more than the number of weights whose interval lies wholly above"]
    for key, named in SCORES.items():
        if len(pairs[key]) == count * (count - 1) // 2:
            lines.append(f"not distinguishable by {named}: all of them")
        elif pairs[key]:
            lines.append(f"not distinguishable by {named}: {'; '.join(' and '.join(each) for each in pairs[key])}")
    return lines


def _compatibility(row: Mapping[str, Any]) -> list[str]:
    if row["sha256"] is None:
        return [f"{row['weights']}: {row['network']} as it is initialised"]
    contract = "the file does not say what the weights expect of an image" if not row["contract_stated"] else ""
    told = [
        f"{each['says']} ({'adopted' if each['adopted'] else 'allowed' if each['allowed'] else 'a fit would refuse'})"
        for each in row["differences"]
    ]
    fresh = f"{len(row['fresh'])} tensors fresh" if row["fresh"] else "no tensor fresh"
    why = "no voxel is known of every class" if row["head"] else "the weights bring no head of named classes"
    head = "" if row["scores"]["leep"] else f"; no LEEP: {why}"
    return [
        f"{row['weights']}: fills {row['encoder_share']:.0%} of the encoder, {fresh}{head}; "
        f"licence {row['licence'] or 'not stated'}",
        *(f"  {each}" for each in told or [contract or "the data are what the weights expect"]),
    ]


def _cost(rows: Sequence[Mapping[str, Any]], device: str) -> str:
    costs = [row["cost"] for row in rows]
    seconds, scores = (sum(each[key] for each in costs) for key in ("seconds_features", "seconds_scores"))
    voxels = max(each["voxels_seen"] for each in costs)
    return (
        f"cost: {seconds:.1f} s for features and {scores:.1f} s for scores on {device}; up to {voxels:,} voxels "
        f"through each network, {max(each['voxels_scored'] for each in costs):,} of them scored"
    )
