import itertools
import json
import pickle

import numpy as np
import pytest
import torchio as tio
from torchio.transforms import ToCanonical

from lightning_atlas.data.embedded import FILES, HERE
from lightning_atlas.data.labels.vocabulary import (
    FOLDER,
    atoms_of,
    canonical,
    containers,
    load_vocabulary,
    meaning,
    mirror,
    near,
    overlapping,
    side,
    vocabularies,
)

ANATOMY = json.loads((FOLDER / "anatomy.json").read_text(encoding="utf-8"))
PAIRED = [f"{pair}_{side}" for pair in ANATOMY["pairs"] for side in ("left", "right")]
ATOMS = [*ANATOMY["atoms"], *PAIRED]
NUMBERED_OTHERWISE = {"chaos_ct": [255], "pancreas_ct": [1, 3, 4, 5, 6, 7, 11, 14]}
SAROS = [
    *("subcutaneous_tissue", "muscle", "abdominal_cavity", "thoracic_cavity", "bones", "parotid_glands", "pericardium"),
    *("breast_implant", "mediastinum", "submandibular_glands", "torso", "head"),
    *("right_leg", "left_leg", "right_arm", "left_arm"),
]
UNLISTED = ("bone", "tumor", *SAROS)
"""What anatomy does not divide into all its parts, or place: all bones in one, tumors anywhere, regions of the body."""
GROUPS = [*ANATOMY["groups"], *ANATOMY["pairs"]]
SIZES = {
    "abdomenct_12organ": 13,
    "abdomenct_1k": 4,
    "chaos_ct": 1,
    "ct_org": 6,
    "kits19": 2,
    "kits23": 3,
    "lits": 2,
    "pancreas_ct": 8,
    "word": 16,
    "abdomenatlas_1.0": 9,
    "abdomenatlas_1.1": 25 + 7,
    "amos": 15,
    "btcv": 13,
    "flare22": 13,
    "flare23": 14,
    "jhh_pancreas": 4,
    "saros": 19,
    "totalsegmentator_mr": 50,
    "totalsegmentator_v1": 104,
    "totalsegmentator_v2": 117,
} | {
    f"msd_task{number:02d}_{task}": size
    for number, (task, size) in enumerate(
        [
            ("braintumour", 3),
            ("heart", 1),
            ("liver", 2),
            ("hippocampus", 2),
            ("prostate", 2),
            ("lung", 1),
            ("pancreas", 2),
            ("hepaticvessel", 2),
            ("spleen", 1),
            ("colon", 1),
        ],
        1,
    )
}
CHANNELS = {  # file of AbdomenAtlas 1.1, in the order of the folder -> channel of the released weights, from 1
    "aorta": 8, "gall_bladder": 4, "kidney_left": 3, "kidney_right": 2, "liver": 6, "pancreas": 11, "postcava": 9,
    "spleen": 1, "stomach": 7, "adrenal_gland_left": 13, "adrenal_gland_right": 12, "bladder": 21, "celiac_trunk": 25,
    "colon": 18, "duodenum": 14, "esophagus": 5, "femur_left": 23, "femur_right": 24, "hepatic_vessel": 15,
    "intestine": 19, "lung_left": 17, "lung_right": 16, "portal_vein_and_splenic_vein": 10, "prostate": 22,
    "rectum": 20,
}  # fmt: skip


@pytest.fixture
def own(tmp_path):
    def write(content):
        path = tmp_path / "names.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_every_file_has_as_many_names_as_its_dataset():
    assert vocabularies() == sorted(SIZES)
    assert {name: len(load_vocabulary(name).names) for name in SIZES} == SIZES


@pytest.mark.parametrize("name", SIZES)
def test_a_file_speaks_of_known_anatomy_and_numbers_from_one(name):
    vocabulary = load_vocabulary(name)
    assert vocabulary.name == name
    assert vocabulary.source
    numbers = NUMBERED_OTHERWISE.get(name, range(1, 1 + len(vocabulary.values)))
    assert sorted(vocabulary.values.values()) == list(numbers)
    assert sorted(vocabulary.order) == sorted(vocabulary.names)
    for each in vocabulary.names.values():
        assert {atom.partition("@")[0] for atom in each.covers | each.within | each.without} <= {*ATOMS, *UNLISTED}
        assert each.without - {*UNLISTED} <= {atom for atom in ATOMS if containers(atom) & each.covers}


@pytest.mark.parametrize("name", [name for name in SIZES if name not in ("abdomenatlas_1.0", "abdomenatlas_1.1")])
def test_names_of_a_label_map_cover_no_atom_twice(name):
    covers = [each.covers for each in load_vocabulary(name).names.values()]
    assert sum(map(len, covers)) == len(frozenset().union(*covers))


def test_words_of_the_anatomy_are_told_apart_and_known():
    assert len(set(ATOMS)) == len(ATOMS)
    assert not set(ATOMS) & set(GROUPS)
    words = {*ATOMS, *GROUPS}
    mentioned = [*ANATOMY["groups"].values(), *ANATOMY["within"].values(), ANATOMY["within"], *ANATOMY["overlaps"]]
    assert {word for each in mentioned for word in each} <= words
    assert set(ANATOMY["aliases"].values()) | {*ANATOMY["without_side"], *ANATOMY["without_counterpart"]} <= words
    assert not {word.lower() for word in words} & set(ANATOMY["aliases"])
    assert all(atoms_of(word) <= set(ATOMS) for word in words)


@pytest.mark.parametrize("word", [*ATOMS, *GROUPS])
def test_a_word_is_found_in_other_spellings(word):
    assert canonical(word) == word
    assert canonical(word.upper().replace("_", " ")) == word
    words = word.split("_")
    if sides := [each for each in words if each in ("left", "right")]:
        rest = [each for each in words if each not in sides]
        assert canonical(" ".join(sides + rest)) == word
        assert canonical("-".join([*rest, sides[0][0].upper()])) == word


@pytest.mark.parametrize("atom", ATOMS)
def test_containers_are_apart_and_end(atom):
    around = containers(atom)
    assert not any(overlapping(a, b) for a, b in itertools.combinations(around, 2))
    seen = {atom}
    while around:
        assert not around & seen
        seen |= around
        around = frozenset().union(*map(containers, around))


def test_the_template_of_32_channels():
    vocabulary = load_vocabulary("abdomenatlas_1.1")
    assert {name: vocabulary.order.index(name) + 1 for name in vocabulary.values} == CHANNELS
    assert vocabulary.values == {name: value for value, name in enumerate(CHANNELS, 1)}
    lesions = "kidney_tumor liver_tumor pancreas_tumor hepatic_vessel_tumor lung_tumor colon_tumor kidney_cyst"
    assert vocabulary.order[25:] == tuple(lesions.split())
    assert load_vocabulary("abdomenatlas_1.0").values == dict(list(vocabulary.values.items())[:9])


@pytest.mark.parametrize(
    ("scan", "name"), [("abdomen_ct", "totalsegmentator_v2"), ("abdomen_mr", "totalsegmentator_mr")]
)
def test_values_are_those_of_real_label_maps(scan, name):
    written = json.loads((HERE / f"{scan}.json").read_text(encoding="utf-8"))
    assert written.items() <= load_vocabulary(name).values.items()


def test_datasets_number_the_same_organ_differently():
    organs = ["kidney_right", "kidney_left", "liver", "aorta", "inferior_vena_cava", "duodenum"]
    values = {
        name: [meaning(organ, load_vocabulary(name)).value for organ in organs]
        for name in ("amos", "btcv", "flare22", "totalsegmentator_v1", "totalsegmentator_v2", "totalsegmentator_mr")
    }
    assert values == {
        "amos": [2, 3, 6, 8, 9, 13],
        "btcv": [2, 3, 6, 8, 9, None],
        "flare22": [2, 13, 1, 5, 6, 12],
        "totalsegmentator_v1": [2, 3, 5, 7, 8, 56],
        "totalsegmentator_v2": [2, 3, 5, 52, 63, 19],
        "totalsegmentator_mr": [2, 3, 5, 23, 24, 14],
    }


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("totalsegmentator_v1", [17, 24, 18, 21, 24]), ("totalsegmentator_v2", [24, 26, 18, 23, 26])],
)
def test_the_five_tasks_part_the_names(name, sizes):
    vocabulary = load_vocabulary(name)
    assert list(vocabulary.groups) == ["organs", "vertebrae", "cardiac", "muscles", "ribs"]
    assert [len(group) for group in vocabulary.groups.values()] == sizes
    assert sorted(itertools.chain(*vocabulary.groups.values())) == sorted(vocabulary.names)


def test_a_coarse_name_is_the_union_of_its_parts():
    lungs = [meaning(name, load_vocabulary("abdomenatlas_1.1")).covers for name in ("lung_left", "lung_right")]
    lobes = [name for name in load_vocabulary("totalsegmentator_v2").names if "lobe" in name]
    assert [len(each) for each in lungs] == [2, 3]
    assert lungs[0] | lungs[1] == set(lobes) == meaning("lung").covers
    assert len(meaning("ribs").covers) == 24
    assert meaning("vertebrae", load_vocabulary("totalsegmentator_mr")).covers == {
        atom for atom in ATOMS if atom.startswith("vertebrae_") and atom != "vertebrae_S1"
    }
    zones = load_vocabulary("msd_task05_prostate").names
    assert zones["PZ"].covers | zones["TZ"].covers == meaning("prostate").covers
    assert meaning("prostate/uterus", load_vocabulary("amos")).covers == meaning("prostate").covers | {"uterus"}


def test_a_femoral_head_is_a_part_of_a_femur_and_an_atom_of_its_own():
    head = meaning("left femur", load_vocabulary("abdomenatlas_1.1"))
    assert head.covers == {"femur_left@abdomenatlas"}
    assert head.part_of == "femur_left"
    assert head.within == containers("femur_left@abdomenatlas") == {"femur_left"}
    assert atoms_of("femur@AbdomenAtlas") == {"femur_left@abdomenatlas", "femur_right@abdomenatlas"}
    assert overlapping("femur_left@abdomenatlas", "femur_left")
    assert not overlapping("femur_left@abdomenatlas", "hip_left")
    assert meaning("femur_left", load_vocabulary("totalsegmentator_v2")).covers == {"femur_left"}


def test_lesions_lie_in_their_organs():
    liver = load_vocabulary("msd_task03_liver").names
    assert liver["liver"].covers == liver["cancer"].within == {"liver"}
    assert liver["liver"].without == liver["cancer"].covers == {"liver_tumor"}
    assert meaning("kidney_tumor").within == meaning("kidney").covers
    assert meaning("lung_tumor").within == meaning("lung").covers
    assert not meaning("liver", load_vocabulary("abdomenatlas_1.1")).without


def test_totalsegmentators_colon_holds_the_rectum():
    """Its voxels go down behind the prostate, where no colon is."""
    values = load_vocabulary("totalsegmentator_v2").values
    label = ToCanonical()(tio.LabelMap(HERE / FILES["abdomen_ct"][1])).data.numpy()[0]
    colon, prostate = (np.argwhere(label == values[name]) for name in ("colon", "prostate"))
    beside = colon[colon[:, 2] <= prostate[:, 2].max()]
    assert len(beside)
    assert beside[:, 1].mean() < prostate[:, 1].mean()
    for name in ("totalsegmentator_v1", "totalsegmentator_v2", "totalsegmentator_mr"):
        assert meaning("colon", load_vocabulary(name)).covers == {"colon", "rectum"}
    assert meaning("colon", load_vocabulary("abdomenatlas_1.1")).covers == {"colon"}


@pytest.mark.parametrize(
    ("name", "atom"),
    [
        ("Right Kidney", "kidney_right"),
        ("R_kidney", "kidney_right"),
        ("leftKidney", "kidney_left"),
        ("left lung upper lobe", "lung_upper_lobe_left"),
        ("left rib 1", "rib_left_1"),
        ("RAG", "adrenal_gland_right"),
        ("IVC", "inferior_vena_cava"),
        ("gall bladder", "gallbladder"),
        ("Arota", "aorta"),
        ("celiac_truck", "celiac_trunk"),
        ("Liver tumour", "liver_tumor"),
        ("left clavicle", "clavicula_left"),
    ],
)
def test_spellings(name, atom):
    assert meaning(name).covers == {atom}


def test_a_name_that_nobody_knows_is_an_atom_of_its_own():
    assert canonical("tissue") is None
    assert meaning("tissue").covers == {"tissue"}
    assert overlapping("tissue", "liver")
    assert meaning("tissue", load_vocabulary("btcv")) == meaning("tissue")


@pytest.mark.parametrize("scan", FILES)
def test_names_of_the_embedded_scans_are_known(scan):
    names = json.loads((HERE / f"{scan}.json").read_text(encoding="utf-8"))
    assert [name for name in names if canonical(name) is None] == (["tissue"] if scan == "chest_ct" else [])


def test_overlapping_goes_both_ways_and_organs_are_apart():
    for a, b in itertools.combinations(ATOMS, 2):
        assert overlapping(a, b) == overlapping(b, a)
    assert all(overlapping(atom, atom) for atom in ATOMS)
    organs = load_vocabulary("btcv").names.values()
    shared = {
        tuple(sorted((a, b)))
        for one, other in itertools.combinations(organs, 2)
        for a, b in itertools.product(one.covers, other.covers)
        if overlapping(a, b)
    }
    assert shared == {("liver", "portal_vein_and_splenic_vein")}  # by its branches, which are vessels of the liver
    assert overlapping("kidney_tumor", "kidney_left")
    assert not overlapping("kidney_tumor", "liver")
    assert overlapping("hepatic_vessel", "liver_tumor")


@pytest.mark.parametrize("word", [*ATOMS, *GROUPS])
def test_the_mirror_image_of_a_mirror_image_is_the_thing_itself(word):
    other = mirror(word)
    if other is None:
        assert side(word) is None or word in ANATOMY["without_counterpart"]
    else:
        assert mirror(other) == word
        assert {side(word), side(other)} == {"left", "right"}
        assert len(atoms_of(word)) == len(atoms_of(other)) or word.startswith("lung_")


def test_sides():
    assert mirror("R_kidney") == "L_kidney"
    assert mirror("Left Kidney") == "Right Kidney"
    assert mirror("RAG") == "adrenal_gland_left"
    assert mirror("femur_left@abdomenatlas") == "femur_right@abdomenatlas"
    assert mirror("left_widget") == "right_widget"
    assert [mirror(name) for name in ("liver", "class_l", "vertebrae_L1", "left_to_right")] == [None] * 4
    assert side("heart_ventricle_left") is side("left atrium") is None
    assert side("lung_upper_lobe_left") == "left"
    assert mirror("lung_upper_lobe_left") is None
    assert mirror("lung_lower_lobe_left") == "lung_lower_lobe_right"


def test_near_names():
    names = ["liver", "spleen", "kidney_left", "kidney_right", "gall_bladder"]
    assert near("livr", names) == ["liver"]
    assert near("kidney", names)[:2] == ["kidney_left", "kidney_right"]
    assert near("gallbladder", names)[0] == "gall_bladder"
    assert near("xyz", names) == []


def test_an_unknown_vocabulary_is_told_with_near_names():
    with pytest.raises(ValueError, match=r"near: totalsegmentator_mr, totalsegmentator_v1, totalsegmentator_v2"):
        load_vocabulary("TotalSegmentator")
    with pytest.raises(ValueError, match=r"near: abdomenatlas_1\.\d"):
        load_vocabulary("abdomen-atlas 1.1")
    assert load_vocabulary("AbdomenAtlas 1.1").name == "abdomenatlas_1.1"


def test_a_vocabulary_of_ones_own(own):
    names = {
        "Leber": {"value": 1, "is": "liver", "without": ["liver_tumor"]},
        "Darm": {"value": 2, "of": ["small_bowel", "colon"]},
        "Herd": "liver_tumor",
        "kidney": 7,
        "Schaft": {"part_of": "femur_left"},
    }
    vocabulary = load_vocabulary(own({"dataset": "Klinik", "names": names}))
    assert vocabulary.values == {"Leber": 1, "Darm": 2, "kidney": 7}
    assert vocabulary.order == tuple(names)
    assert meaning("darm", vocabulary).covers == {"small_bowel", "colon"}
    assert meaning("Herd", vocabulary).within == {"liver"}
    assert meaning("Schaft", vocabulary).covers == atoms_of("femur_left@klinik")
    assert meaning("KIDNEYS", vocabulary) == meaning("kidney", vocabulary)
    assert meaning("spleen", vocabulary) == meaning("spleen")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds list, not an object"),
        ({}, "has no names"),
        ({"names": {"liver": 0}}, "liver has the value 0"),
        ({"names": {"liver": True}}, "liver has the value True"),
        ({"names": {"liver": 1, "spleen": 1}}, "value 1 is given to two names"),
        ({"names": {"liver": {"values": 1}}}, "write a value, or"),
        ({"names": {"liver": {"is": "liver", "of": ["liver"]}}}, "write a value, or"),
        ({"names": {"gut": {"of": "colon"}}}, "write a value, or"),
        ({"names": {"femur@x": 1}}, "a name has no @"),
        ({"names": {"head": {"part_of": "femur"}}}, "of which of femur_left, femur_right"),
        ({"names": {"a": {"part_of": "liver"}, "b": {"part_of": "liver"}}}, "part_of liver is given to two names"),
        ({"names": {"liver": 1}, "order": ["spleen"]}, "order or groups name spleen"),
    ],
)
def test_a_bad_file_is_told(own, content, told):
    with pytest.raises(ValueError, match=told) as error:
        load_vocabulary(own(content))
    assert "names.json" in str(error.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        load_vocabulary(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["abdomenatlas_1.1", "totalsegmentator_v2"])
def test_a_vocabulary_goes_to_another_process(name):
    vocabulary = load_vocabulary(name)
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
