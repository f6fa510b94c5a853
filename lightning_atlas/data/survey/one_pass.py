"""Check the scans of a dataset and measure them, from one reading of each.

By what they are prepared follows from the measures of all of them, so a new recipe reads them a second time, for its
stores. A recipe that is there reads them once.
"""

from collections.abc import Sequence

from lightning_atlas.data.cases import Case
from lightning_atlas.data.store.reading import read_case
from lightning_atlas.data.survey.checks import Report, report_on
from lightning_atlas.data.survey.damage import Inspection, Seen, inspect_case
from lightning_atlas.data.survey.fingerprint import CaseFingerprint, Fingerprint, of_each
from lightning_atlas.data.survey.fingerprint_case import measured


def check_and_measure(
    cases: Sequence[Case], processes: int = 0, progress: bool = True
) -> tuple[Report, Fingerprint | None]:
    """Return all that is wrong with a dataset, and what its sound scans are like, with a bar.

    Args:
        cases: Each sound one is read once; one with a defect is read on, or again, for whatever else it has.
        processes: How many work side by side; 0 takes as many as there are processors, but one for few cases.
        progress: Show the bar.
    """
    found = of_each(_checked, cases, "check and measure", processes, progress)
    report = report_on(cases, [inspection for inspection, _ in found])
    sound = tuple(each for _, each in found if each is not None and each.subject not in report.bad_subjects)
    return report, Fingerprint(sound) if sound else None


def _checked(case: Case, picture: bool) -> tuple[Inspection, CaseFingerprint | None]:
    """Check a case and measure it from one reading; what a reading stops at, the check says in its own words."""
    seen = Seen()
    try:
        subject, drawing = read_case(case, seen)
    except ValueError as error:
        inspection = inspect_case(case)
        if not inspection.bad:
            found, remedy = f"cannot be used: {error}", "correct what is said of it, or take it out"
            inspection.defect(next(iter(case.channels.values())), found, remedy)
        return inspection, None
    inspection = inspect_case(case, seen)
    return inspection, None if inspection.bad else measured(case, subject, drawing, picture)
