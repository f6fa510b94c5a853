"""How names and axes of a published file become those of a network of this library."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.", "network.", "model.", "backbone.", "net.")
"""What DataParallel, torch.compile and modules that hold a network put before all of its names."""
PREFIXES = (*WRAPPERS, "encoder.")
"""What may stand before a name of the network: also what holds an encoder."""
HOLDERS = ("backbone.",)
"""What networks of this library put before the names of another that they hold."""
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class KeyRules:
    """Rules of one published layout, applied after what wraps all names was dropped.

    Args:
        rename: Regular expression and replacement, applied to every name in this order.
        skip: Regular expression of names that no network takes, and why.
        axes: Order of the spatial axes of kernels in the file: `ijk` as here, `kji` as in nnU-Net, or `kij` where the
            slices alone were put first.
        last_first: Regular expression of names, as they are here, of tensors whose last output comes first: of a head
            that has the background behind the classes.
    """

    rename: tuple[tuple[str, str], ...] = ()
    skip: Mapping[str, str] = field(default_factory=dict)
    axes: Literal["ijk", "kji", "kij"] = "ijk"
    last_first: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "KeyRules":
        """Read the rules of an entry.

        Raises:
            ValueError: A key, an expression or an order of axes is not one.
        """
        if unknown := set(values) - {"rename", "skip", "axes", "last_first"}:
            raise ValueError(f"rules are rename, skip, axes and last_first; found {', '.join(sorted(unknown))}")
        if (axes := values.get("axes", "ijk")) not in ("ijk", "kji", "kij"):
            raise ValueError(f"axes of kernels are ijk, kji or kij; found {axes!r}")
        rules = cls(
            rename=tuple((old, new) for old, new in values.get("rename", ())),
            skip=dict(values.get("skip", {})),
            axes=axes,
            last_first=values.get("last_first"),
        )
        for pattern in (*rules.skip, *(old for old, _ in rules.rename), rules.last_first or ""):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return rules

    def new_name(self, name: str) -> str | None:
        """Return what a name becomes, or `None` if it is skipped."""
        if self.reason(name) is not None:
            return None
        for old, new in self.rename:
            name = re.sub(old, new, name)
        return name

    def reason(self, name: str) -> str | None:
        """Return why a name is skipped, or `None` if it is not."""
        return next((why for pattern, why in self.skip.items() if re.search(pattern, name)), None)

    def apply(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors under their new names, and why each of the others is left out.

        Raises:
            ValueError: Two tensors get the same name.
        """
        wrapper = common_wrapper(tensors)
        taken: dict[str, Tensor] = {}
        skipped: dict[str, str] = {}
        for key, tensor in tensors.items():
            bare = key[len(wrapper) :]
            name = self.new_name(bare)
            if name is None:
                skipped[key] = self.reason(bare) or ""
            elif name in taken:
                raise ValueError(f"two tensors would be called {name}; one of them is {key}")
            else:
                taken[name] = self._changed(name, tensor)
        return taken, skipped

    def _changed(self, name: str, tensor: Tensor) -> Tensor:
        tensor = turned_axes(tensor, self.axes)
        return tensor.roll(1, 0) if self.last_first and re.search(self.last_first, name) else tensor


def common_wrapper(names: Mapping[str, Any]) -> str:
    """Return what wraps every one of the names: one of the known words, or several in a row."""
    wrapper = ""
    while step := next((each for each in WRAPPERS if names and all(n.startswith(wrapper + each) for n in names)), None):
        wrapper += step
    return wrapper


def turned_axes(tensor: Tensor, axes: str) -> Tensor:
    """Return a kernel whose spatial axes lie in this order with them as i, j, k; whatever is no kernel as it is.

    A 2D kernel, as of a head that works in the plane, has the axes i and j in the same order.
    """
    if tensor.ndim == 4 and axes.replace("k", "") == "ji":
        return tensor.transpose(2, 3).contiguous()
    if tensor.ndim != 5 or axes == "ijk":
        return tensor
    return tensor.permute(0, 1, *(2 + axes.index(axis) for axis in "ijk")).contiguous()


class Fit(NamedTuple):
    """How the names of a file become those of a network.

    Args:
        dropped: From the front of the file's names.
        added: To the front of what is left.
        matched: How many names have one shape on both sides then.
    """

    dropped: str = ""
    added: str = ""
    matched: int = 0

    def key(self, name: str) -> str | None:
        """Return the file's name for a name of the network; `None` where there can be none."""
        return self.dropped + name[len(self.added) :] if name.startswith(self.added) else None


def best_fit(source: Shapes, targets: Shapes) -> Fit:
    """Return the prefixes to drop and to add with which most of the source's names and shapes are those of the targets.

    Args:
        source: Shapes by the file's names.
        targets: Shapes by the network's names.
    """
    dropped, added = {""}, {"", *(each for each in HOLDERS if any(name.startswith(each) for name in targets))}
    for key in source:
        prefix = ""
        while step := next((known for known in PREFIXES if key.startswith(known, len(prefix))), None):
            prefix += step
            dropped.add(prefix)

    def fitting(fit: Fit) -> tuple[int, int, int, int]:
        names = [(key, fit.added + key[len(fit.dropped) :]) for key in source if key.startswith(fit.dropped)]
        known = [(key, name) for key, name in names if name in targets]
        matched = sum(tuple(source[key]) == tuple(targets[name]) for key, name in known)
        return matched, len(known), -len(fit.added), -len(fit.dropped)

    best = max((Fit(drop, add) for drop in sorted(dropped) for add in sorted(added)), key=fitting)
    return best._replace(matched=fitting(best)[0])
