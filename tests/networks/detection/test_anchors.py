import torch
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape

from lightning_atlas.networks.detection.anchors import grid_anchors


def test_anchors_are_those_of_monai_where_it_need_not_round():
    shapes = [(8.0, 4.0, 6.0), (12.0, 12.0, 2.0)]
    generator = AnchorGeneratorWithAnchorShape(feature_map_scales=(1, 2), base_anchor_shapes=shapes)
    grids = (6, 4, 3), (3, 2, 3)
    theirs = generator(torch.zeros(1, 1, 24, 16, 6), [torch.zeros(1, 1, *grid) for grid in grids])[0]
    ours = [
        grid_anchors(grid, reduction, [[scale * side for side in sides] for sides in shapes], torch.device("cpu"))
        for grid, reduction, scale in zip(grids, ((4, 4, 2), (8, 8, 2)), (1, 2), strict=True)
    ]
    assert torch.equal(torch.cat(ours), theirs)


def test_an_anchor_of_an_odd_side_keeps_it():
    found = grid_anchors((2, 2), (1, 3), [(3.0, 5.0)], torch.device("cpu"))
    assert found.tolist()[:2] == [[-1.0, -1.0, 2.0, 4.0], [-1.0, 2.0, 2.0, 7.0]]
