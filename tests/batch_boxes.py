"""What several folders of tests ask of a batch."""

from lightning_atlas.types import Batch, Boxes


def boxes_of(batch: Batch) -> list[Boxes]:
    """Return the boxes of each image; a batch without any is a failure."""
    assert "boxes" in batch
    return batch["boxes"]
