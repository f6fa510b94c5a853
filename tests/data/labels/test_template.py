"""The 32-channel template, and which of its channels each dataset has drawn.

The Universal Model (Liu et al. 2023, arXiv:2301.00785) published, for each of its datasets, the channels that are
annotated. Here the same follows from what the datasets' names mean; where the two differ, the reason stands below.
"""

import numpy as np
import pytest

from lightning_atlas.data.labels.classes import Classes, match_classes, template_classes
from lightning_atlas.data.labels.vocabulary import load_vocabulary
from lightning_atlas.intake.zoo import find

PUBLISHED = {
    "btcv": [*range(1, 15)],
    "pancreas_ct": [1, 3, 4, 5, 6, 7, 11, 14],
    "chaos_ct": [6],
    "lits": [6, 27],
    "kits23": [2, 3, 26, 32],
    "word": [6, 1, 3, 2, 7, 4, 5, 11, 14, 18, 19, 12, 13, 20, 21, 23, 24],
    "abdomenct_1k": [6, 2, 3, 1, 11],
    "amos": [*range(1, 10), 11, 12, 13, 14, 21, 22],
    "msd_task03_liver": [6, 27],
    "msd_task06_lung": [30],
    "msd_task07_pancreas": [11, 28],
    "msd_task08_hepaticvessel": [15, 29],
    "msd_task09_spleen": [1],
    "msd_task10_colon": [31],
    "ct_org": [6, 21, 16, 17, 2, 3],
    "abdomenct_12organ": [6, 2, 3, 1, 11, 8, 9, 7, 4, 5, 12, 13, 25],
    "flare22": [6, 2, 1, 11, 8, 9, 12, 13, 4, 5, 7, 14, 3],
}
UNDIVIDED = {"kits23": {2, 3}, "abdomenct_1k": {2, 3}, "word": {12, 13}, "ct_org": {2, 3, 16, 17}}
"""One name for both sides: coarse here until `prepare --split-sides` has divided it, as the authors had done."""
DIFFERENT = {
    "btcv": {14},  # duodenum: in the labels of Gibson et al. only
    "word": {23, 24},  # femoral heads of its own definition
    "amos": {22},  # prostate and uterus in one
    "msd_task08_hepaticvessel": {27, 29},  # its tumors lie in the liver; the authors gave them a channel of their own
}


def channels(vocabulary):
    """The numbers, from 1, of the template's classes that dense labels of a dataset draw."""
    names = tuple(load_vocabulary(vocabulary).names)
    classes = match_classes([(names, vocabulary)], Classes(template="abdomenatlas_1.1", exclusive=False))
    states = np.eye(len(names), dtype=np.int8)
    drawn = classes.table(states, np.ones_like(states, dtype=bool), names, vocabulary).drawn
    return {1 + number for number in np.flatnonzero(drawn.any(0))}


@pytest.mark.parametrize("vocabulary", PUBLISHED)
def test_a_dataset_draws_the_channels_that_were_published(vocabulary):
    differing = channels(vocabulary) ^ set(PUBLISHED[vocabulary])
    assert differing == UNDIVIDED.get(vocabulary, set()) | DIFFERENT.get(vocabulary, set())


def test_a_tumor_counts_as_its_organ():
    names = tuple(load_vocabulary("lits").names)
    classes = match_classes([(names, "lits")], Classes(template="abdomenatlas_1.1", exclusive=False))
    lesion = np.array([[0, 1]], np.int8)
    table = classes.table(lesion, np.ones_like(lesion, dtype=bool), names, "lits")
    inside = {name for name, state in zip(classes.names, table.states[0], strict=True) if state == 1}
    assert inside == {"liver", "liver_tumor"}


def test_the_softmax_variant_reads_an_organ_without_its_tumor():
    names = tuple(load_vocabulary("lits").names)
    classes = match_classes([(names, "lits")], Classes(template="abdomenatlas_1.1"))
    lesion = np.array([[0, 1]], np.int8)
    table = classes.table(lesion, np.ones_like(lesion, dtype=bool), names, "lits")
    assert [name for name, state in zip(classes.names, table.states[0], strict=True) if state == 1] == ["liver_tumor"]


def test_a_group_of_a_vocabulary_is_a_template():
    organs, whole = template_classes("abdomenatlas_1.1/organs"), template_classes("abdomenatlas_1.1")
    assert list(organs) == list(whole)[:25]
    assert list(whole)[25:] == list(template_classes("abdomenatlas_1.1/tumors"))
    assert len(template_classes("totalsegmentator_v1/organs")) == 17


def test_an_unknown_group_is_told_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"no group 'bones'; it has abdomenatlas_1.1/organs, abdomenatlas_1.1/tumors"):
        template_classes("abdomenatlas_1.1/bones")


def test_names_beside_a_template_are_refused():
    with pytest.raises(ValueError, match="names or a template"):
        Classes({"liver": ["liver"]}, template="btcv")


@pytest.mark.parametrize("entry", ["suprem_unet", "suprem_segresnet", "clip_driven_universal_swin_unetr"])
def test_published_weights_have_the_classes_of_the_template(entry):
    assert list(find(entry).contract.classes) == list(template_classes("abdomenatlas_1.1"))
