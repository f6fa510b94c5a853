"""What networks keep besides parameters, such as running statistics: the same in every process."""

from collections import defaultdict

import torch
from torch import Tensor, distributed, nn


def share_buffers(network: nn.Module) -> None:
    """Give every process the buffers of the first one, as `DistributedDataParallel` does before each forward pass.

    Args:
        network: Changed in place; where there is one process, nothing happens.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    alike: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for buffer in network.buffers():
        alike[buffer.dtype].append(buffer)
    for buffers in alike.values():  # one message for each kind of number
        flat = torch.cat([each.detach().flatten() for each in buffers])
        distributed.broadcast(flat, src=0)
        for buffer, first in zip(buffers, flat.split([each.numel() for each in buffers]), strict=True):
            buffer.copy_(first.view_as(buffer))
