"""Networks that can return outputs of coarser levels besides the one on the grid of the image."""

from torch import nn

from lightning_atlas.networks.base import Network, output_layer, resize_output


class DeeplySupervised(Network):
    """A network whose head has a layer for each of several levels; all of them have the same outputs.

    Source: Dou et al., "3D deeply supervised network for automated segmentation of volumetric medical images", 2017,
    https://doi.org/10.1016/j.media.2017.05.001.
    """

    def coarser_outputs(self) -> list[str]:
        """Return the names of the layers that give the outputs of coarser levels; empty where there are none."""
        raise NotImplementedError

    def output_layers(self) -> list[str]:
        """Return the names of all layers that give outputs, that of the finest level last."""
        return [*self.coarser_outputs(), output_layer(self)]

    def output_axes(self) -> dict[str, int]:
        """Return the names of the tensors with an entry for each output, and the axis along which these lie."""
        axes = {}
        for name in self.output_layers():
            layer = self.get_submodule(name)
            axes |= {f"{name}.weight": int(isinstance(layer, nn.ConvTranspose3d)), f"{name}.bias": 0}
        return axes

    def resize(self, outputs: int) -> None:
        """Give every level that many outputs, freshly initialised, unless it has them already."""
        for name in self.output_layers():
            resize_output(self, outputs, name)
