"""What a person should know of prepared scans before they are trained on."""

from collections.abc import Sequence

from lightning_atlas.data.box_targets import BoxTargets
from lightning_atlas.data.cases import Case
from lightning_atlas.data.labels.classes import ClassMap
from lightning_atlas.data.labels.vocabulary import load_vocabulary, meaning
from lightning_atlas.data.patches import Opened, Patches
from lightning_atlas.data.targets import Targets

MOST = 8
"""Lines on unusual files."""


def unusual_files(opened: Sequence[Opened]) -> list[str]:
    """Return the first lines that the preparation of scans left, and how many more there are."""
    lines = [note for each in opened for note in each.prepared.notes]
    return [*lines[:MOST], *([f"{len(lines) - MOST} more notes"] if len(lines) > MOST else [])]


def taken_for_whole(cases: Sequence[Case], classes: ClassMap) -> list[str]:
    """Return a line for each name that the recipe takes for more than its dataset means by it."""
    told = []
    for names, vocabulary in {(case.names, case.vocabulary): None for case in cases}:
        loaded = None if vocabulary is None else load_vocabulary(vocabulary)
        for name in names:
            part, taken = meaning(name, loaded).part_of, classes.meaning(name, vocabulary).part_of
            if part and not taken:
                told.append(f"classes: {name} of {vocabulary}, a part of {part}, is taken for all of it (assume_equal)")
    return told


def not_taught(
    opened: Sequence[Opened], targets: Targets | None, boxes: BoxTargets | None, patches: Patches
) -> list[str]:
    """Return a line on the training scans whose target is not known, and for each class too large for the patches.

    Args:
        opened: The training scans.
        targets: What is to be predicted of each as a whole.
        boxes: What is to be found in each.
        patches: What training sees at a time.
    """
    told = []
    if targets is not None and (unknown := sum(not each.is_known for each in opened)):
        told.append(f"{unknown} of {len(opened)} training scans are left out: their target is not known")
    if boxes is not None and opened:
        found = [each.boxes for each in opened if each.boxes is not None]
        told += boxes.too_large(found, opened[0].classes.names, patches.size)
    return told
