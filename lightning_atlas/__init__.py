"""Transfer learning for 3D medical images.

Names are imported when they are first used: `import lightning_atlas` loads neither torch nor MONAI.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_atlas.adaptation import (
        ConstantSchedule as ConstantSchedule,
        CosineSchedule as CosineSchedule,
        FrozenEncoder as FrozenEncoder,
        FullFineTuning as FullFineTuning,
        HeadOnly as HeadOnly,
        LayerWiseDecay as LayerWiseDecay,
    )
    from lightning_atlas.contract import Contract as Contract
    from lightning_atlas.data import (
        BatchAugmentation as BatchAugmentation,
        Classes as Classes,
        ColoursToSlices as ColoursToSlices,
        DrawnOn as DrawnOn,
        EmbeddedScan as EmbeddedScan,
        Manifest as Manifest,
        Mixture as Mixture,
        Patches as Patches,
        PlaneSplit as PlaneSplit,
        RandomQuarterTurns as RandomQuarterTurns,
        RescaleAboveAir as RescaleAboveAir,
        ScanDataModule as ScanDataModule,
        ScanFolder as ScanFolder,
        ScanLayout as ScanLayout,
        ScanTable as ScanTable,
        SimulatedCohort as SimulatedCohort,
        Splits as Splits,
    )
    from lightning_atlas.inference import SlidingWindow as SlidingWindow
    from lightning_atlas.modules import (
        AtlasModule as AtlasModule,
        SupervisedPretraining as SupervisedPretraining,
        TransferLearning as TransferLearning,
    )
    from lightning_atlas.networks import (
        GenesisUNet as GenesisUNet,
        MedNeXt as MedNeXt,
        Network as Network,
        NnUNet as NnUNet,
        ResNetUNet as ResNetUNet,
        SegResNet as SegResNet,
        Stage as Stage,
        STUNet as STUNet,
        SwinUNETR as SwinUNETR,
        UNet as UNet,
        UniversalNetwork as UniversalNetwork,
        as_network as as_network,
    )
    from lightning_atlas.tasks import (
        MultiLabelSegmentation as MultiLabelSegmentation,
        Segmentation as Segmentation,
        Task as Task,
    )
    from lightning_atlas.types import Batch as Batch, Prediction as Prediction

__version__ = "0.1.0"

PUBLIC = {
    "AtlasModule": "modules",
    "Batch": "types",
    "BatchAugmentation": "data",
    "Classes": "data",
    "ColoursToSlices": "data",
    "ConstantSchedule": "adaptation",
    "Contract": "contract",
    "CosineSchedule": "adaptation",
    "DrawnOn": "data",
    "EmbeddedScan": "data",
    "FrozenEncoder": "adaptation",
    "FullFineTuning": "adaptation",
    "GenesisUNet": "networks",
    "HeadOnly": "adaptation",
    "LayerWiseDecay": "adaptation",
    "Manifest": "data",
    "Mixture": "data",
    "MedNeXt": "networks",
    "MultiLabelSegmentation": "tasks",
    "Network": "networks",
    "NnUNet": "networks",
    "Patches": "data",
    "PlaneSplit": "data",
    "Prediction": "types",
    "RandomQuarterTurns": "data",
    "RescaleAboveAir": "data",
    "ResNetUNet": "networks",
    "ScanDataModule": "data",
    "ScanFolder": "data",
    "ScanLayout": "data",
    "ScanTable": "data",
    "STUNet": "networks",
    "SegResNet": "networks",
    "Segmentation": "tasks",
    "SimulatedCohort": "data",
    "SlidingWindow": "inference",
    "Splits": "data",
    "Stage": "networks",
    "SupervisedPretraining": "modules",
    "SwinUNETR": "networks",
    "Task": "tasks",
    "TransferLearning": "modules",
    "UNet": "networks",
    "UniversalNetwork": "networks",
    "as_network": "networks",
}
"""Public name: the part of the package that defines it."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
