"""Arrays on disk, mapped into memory; the last ones stay mapped."""

from collections import OrderedDict
from pathlib import Path
from threading import Lock

import numpy as np

MAPPED_BYTES = 2**28
"""So much stays mapped: to map a file and to fault its pages in takes longer than to read a patch. The pages count as
resident memory, so this is also how much that may grow, for any number of subjects."""

open_maps: OrderedDict[tuple[Path, str], np.ndarray] = OrderedDict()
_lock = Lock()


def mapped(folder: Path, name: str) -> np.ndarray:
    """Return an array of a folder, of which only what is looked at is read; a write would not reach the disk."""
    with _lock:
        if (key := (folder, name)) in open_maps:
            open_maps.move_to_end(key)
            return open_maps[key]
        # copy on write: torch takes no array that cannot be written to
        array = np.asarray(np.load(folder / name, mmap_mode="c"))
        open_maps[key] = array
        room = MAPPED_BYTES - sum(each.nbytes for each in open_maps.values())
        while room < 0 and len(open_maps) > 1:
            room += open_maps.popitem(last=False)[1].nbytes
        return array
