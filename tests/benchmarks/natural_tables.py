"""What `bench_natural.py` compares, and the tables and the picture of its results."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MOST = 10
"""Drawn planes that are all of them; what is left over is scored."""
SHARES = (20, 40, 60, 80, 100)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
CAPTION = (
    "All scans are one patient: one scan, its warps and its planes. Mean Dice over classes [lowest, highest seed]; "
    "the seeds share one pre-training. A rate with * is the highest or the lowest that was tried."
)


class Arm(NamedTuple):
    """A start.

    Args:
        family: `R3D`, in a ResUNet, or `UNet`.
        weights: Of which pre-training, or a published name; `None` is from scratch.
        inflation: How 2D kernels become 3D ones.
        times: So many times the steps; then with all drawn planes only.
    """

    family: str
    weights: str | None = None
    inflation: str | None = None
    times: int = 1


ARMS = {
    "R3D from scratch": Arm("R3D"),
    "R3D from pictures as volumes": Arm("R3D", "vdt.ckpt"),
    "R3D from 2D, centre": Arm("R3D", "flat.pt", "centre"),
    "U-Net from scratch": Arm("UNet"),
    "U-Net from CT (starter)": Arm("UNet", "starter_abdomen_ct"),
    "R3D from scratch, 4 x steps": Arm("R3D", times=4),
    "R3D from pictures, 4 x steps": Arm("R3D", "vdt.ckpt", times=4),
    "R3D from 2D, centre, 4 x steps": Arm("R3D", "flat.pt", "centre", times=4),
    "R3D from 2D, mean": Arm("R3D", "flat.pt", "mean"),
}
SHORT_ARMS = tuple(ARMS)[:3]
SCRATCH = {"R3D": "R3D from scratch", "UNet": "U-Net from scratch"}
COPY = "nearest drawn plane copied"


def means(results: Sequence[Mapping[str, Any]], arm: str, where: str) -> dict[int, list[float]]:
    """Return the scores of an arm by share, of each seed once."""
    own = [each for each in results if each["arm"] == arm]
    return {
        share: [each[where] for each in own if each["share"] == share]
        for share in sorted({each["share"] for each in own})
    }


def reaches(found: Mapping[int, Sequence[float]], wanted: float) -> str:
    """Say at which share the mean is as high as wanted, between two shares on a line."""
    before: tuple[int, float] | None = None
    for share, values in sorted(found.items()):
        mean = statistics.mean(values)
        if mean >= wanted and before is None:
            return f"{share} % or fewer"
        if mean >= wanted and before is not None:
            return f"{before[0] + (wanted - before[1]) / (mean - before[1]) * (share - before[0]):.0f} %"
        before = share, mean
    return "not reached"


def report(results: Sequence[Mapping[str, Any]], where: str) -> str:
    """Return a line for each arm, with the share at which it is as good as its family's scratch with all planes."""
    shares = sorted({each["share"] for each in results})
    lines = [f"{where}: mean Dice; columns are the share of {MOST} drawn planes"]
    titles = "".join(f"{share} %".rjust(22) for share in shares)
    lines.append(f"{'start':<30}{'rate':>10}{titles}  as good as scratch at 100 %")
    for arm in (name for name in ARMS if any(each["arm"] == name for each in results)):
        found, scratch = means(results, arm, where), SCRATCH[ARMS[arm].family]
        rate = next(each["rate"] for each in results if each["arm"] == arm)
        told = f"{rate:.0e}{'*' if rate in (RATES[0], RATES[-1]) else ' '}"
        wanted = means(results, scratch, where).get(100)
        compared = (
            "" if arm == scratch or ARMS[arm].times > 1 or not wanted else reaches(found, statistics.mean(wanted))
        )
        lines.append(f"{arm:<30}{told:>10}{_cells(found, shares)}  {compared}".rstrip())
    lines.append(f"{COPY:<30}{'-':>9} {_cells(copied(results, where), shares)}".rstrip())
    return "\n".join(lines)


def copied(results: Sequence[Mapping[str, Any]], where: str) -> dict[int, list[float]]:
    """Return by share what copies of the nearest drawn plane score, of each seed once."""
    key = f"{where}, copy"
    return {
        share: list({each["seed"]: each[key] for each in results if each["share"] == share and key in each}.values())
        for share in sorted({each["share"] for each in results})
    }


def _cells(found: Mapping[int, Sequence[float]], shares: Sequence[int]) -> str:
    told = (found.get(share) for share in shares)
    return "".join(
        (f"{statistics.mean(some):.3f} [{min(some):.3f}, {max(some):.3f}]" if some else "").rjust(22) for some in told
    )


def still_rising(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what each arm gained in the last quarter of its steps, with all planes."""
    lines = ["gained in the last quarter of the steps, with all planes:"]
    for arm in (name for name in ARMS if any((each["arm"], each["share"]) == (name, 100) for each in results)):
        own = [each for each in results if (each["arm"], each["share"]) == (arm, 100)]
        gains = [each["curve"][str(each["steps"])] - each["curve"][str(round(0.75 * each["steps"]))] for each in own]
        lines.append(f"  {arm:<32}{statistics.mean(gains):+.3f}")
    return lines


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw Dice over the share of planes, over the steps at the smallest and the largest share, and over more steps."""
    from matplotlib.figure import Figure

    from lightning_atlas.callbacks.pictures import write_picture

    where, names = "held-out planes", [name for name in ARMS if any(each["arm"] == name for each in results)]
    shares = sorted({each["share"] for each in results})
    figure = Figure(figsize=(16, 4.6), dpi=130, layout="constrained")
    first, *others = figure.subplots(1, 4, sharey=True)
    colours = {key: f"C{number}" for number, key in enumerate(dict.fromkeys(ARMS[name][:3] for name in ARMS))}
    styles: dict[str, Any] = {
        name: {
            "color": colours[ARMS[name][:3]],
            "linestyle": "-" if ARMS[name].family == "R3D" else "--",
            "marker": "o",
            "markersize": 3.5,
            "label": name,
        }
        for name in names
    }
    for name in (name for name in names if ARMS[name].times == 1):
        found = means(results, name, where)
        first.plot(list(found), [statistics.mean(some) for some in found.values()], **styles[name])
        ends = ([pick(some) for some in found.values()] for pick in (min, max))
        first.fill_between(list(found), *ends, alpha=0.12, color=styles[name]["color"])
    copies = copied(results, where)
    if any(copies.values()):
        middle = [statistics.mean(some) if some else float("nan") for some in copies.values()]
        first.plot(list(copies), middle, color="black", linestyle=":", label=COPY)
    for place, share, times in zip(others, (shares[0], shares[-1], shares[-1]), (False, False, True), strict=True):
        for name in (name for name in names if (ARMS[name].times > 1) == times):
            curves = [each["curve"] for each in results if (each["arm"], each["share"]) == (name, share)]
            steps = sorted(map(int, curves[0])) if curves else []  # a table may be asked for before all runs are done
            place.plot(steps, [statistics.mean(each[str(step)] for each in curves) for step in steps], **styles[name])
        longer = ", four times the steps" if times else ""
        place.set_title(f"{share} % of the drawn planes{longer}", fontsize=10)
        place.set_xlabel("optimizer steps")
    first.set_title("at the end; bands: lowest and highest seed", fontsize=10)
    first.set_xlabel(f"percent of {MOST} drawn planes")
    first.set_ylabel("mean Dice on planes that no run saw")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    write_picture(figure, path)
