import hashlib
import os

import pytest

from lightning_atlas.data import Case
from lightning_atlas.data.store.hashes import file_hashes
from lightning_atlas.data.store.keys import Keys, store_key


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "memory" / "files.sqlite"


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return str(path)


def test_hashes_are_those_of_the_contents(tmp_path, memory):
    files = [write(tmp_path / name, name.encode() * 100) for name in ("a", "b")]
    expected = {file: hashlib.sha256(name.encode() * 100).hexdigest() for file, name in zip(files, "ab", strict=True)}
    assert file_hashes(files, memory) == expected
    assert file_hashes(files, memory, read=False) == expected


def test_what_is_not_known_is_left_out_where_nothing_may_be_read(tmp_path, memory):
    known, new = write(tmp_path / "known", b"1"), write(tmp_path / "new", b"2")
    file_hashes([known], memory)
    assert file_hashes([known, new], memory, read=False).keys() == {known}


def test_a_file_that_changed_is_read_again(tmp_path, memory):
    file = write(tmp_path / "a", b"before")
    before = file_hashes([file], memory)
    write(tmp_path / "a", b"after!")
    os.utime(file, ns=(0, 12345))
    assert file_hashes([file], memory, read=False) == {}
    assert file_hashes([file], memory) != before


def test_a_memory_that_cannot_be_written_costs_time_only(tmp_path):
    file = write(tmp_path / "a", b"1")
    nowhere = tmp_path / "a" / "files.sqlite"  # beneath a file
    assert file_hashes([file], nowhere) == {file: hashlib.sha256(b"1").hexdigest()}


def test_a_series_is_known_by_all_its_slices(tmp_path, memory):
    for number in range(3):
        write(tmp_path / "series" / f"{number}.dcm", bytes([number]))
    series = str(tmp_path / "series")
    before = file_hashes([series], memory)[series]
    assert file_hashes([series], memory, read=False)[series] == before
    write(tmp_path / "series" / "1.dcm", b"another")
    assert file_hashes([series], memory, read=False) == {}
    assert file_hashes([series], memory)[series] != before


@pytest.mark.parametrize(
    ("name", "header"),
    [("scan.mhd", b"ElementDataFile = scan.raw\n"), ("scan.nhdr", b"NRRD0004\ndata file: scan.raw\n\n")],
)
def test_a_header_is_known_by_its_voxels_too(tmp_path, memory, name, header):
    voxels, file = tmp_path / "scan.raw", write(tmp_path / name, header)
    write(voxels, b"before")
    before = file_hashes([file], memory)
    write(voxels, b"after!!")
    assert file_hashes([file], memory) != before


def test_the_key_of_a_case_is_known_once_its_files_were_read(tmp_path):
    case = Case("one", "train", tmp_path / "scan.nii", tmp_path / "label.nii", {"liver": 1})
    write(tmp_path / "scan.nii", b"scan")
    write(tmp_path / "label.nii", b"label")
    assert Keys([]).known(case) is None
    assert Keys([]).of(case) == Keys([]).known(case) == store_key(case, [])
