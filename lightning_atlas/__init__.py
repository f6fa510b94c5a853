"""Transfer learning for 3D medical images.

Names are imported when they are first used: `import lightning_atlas` loads neither torch nor MONAI.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_atlas.adaptation import (
        DELTA as DELTA,
        EMA as EMA,
        L2SP as L2SP,
        LPFT as LPFT,
        AutoRGN as AutoRGN,
        BiasOnly as BiasOnly,
        ConstantSchedule as ConstantSchedule,
        CosineSchedule as CosineSchedule,
        FrozenEncoder as FrozenEncoder,
        FullFineTuning as FullFineTuning,
        GradualThaw as GradualThaw,
        HeadMultiplier as HeadMultiplier,
        HeadOnly as HeadOnly,
        HeadsFirst as HeadsFirst,
        LastStages as LastStages,
        LastStagesFirst as LastStagesFirst,
        LayerWiseDecay as LayerWiseDecay,
        LoRA as LoRA,
        NormOnly as NormOnly,
        Sawtooth as Sawtooth,
        StochasticNorm as StochasticNorm,
        SurgicalBlock as SurgicalBlock,
        Valley as Valley,
        WarmUp as WarmUp,
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
        Targets as Targets,
    )
    from lightning_atlas.inference import SlidingWindow as SlidingWindow
    from lightning_atlas.intake import (
        InputChannels as InputChannels,
        KernelSize as KernelSize,
        NearestStage as NearestStage,
        PositionEmbeddings as PositionEmbeddings,
    )
    from lightning_atlas.modules import (
        AtlasModule as AtlasModule,
        SupervisedPretraining as SupervisedPretraining,
        TransferLearning as TransferLearning,
    )
    from lightning_atlas.networks import (
        DoDNet as DoDNet,
        GenesisUNet as GenesisUNet,
        MedNeXt as MedNeXt,
        Network as Network,
        NnUNet as NnUNet,
        PooledEncoder as PooledEncoder,
        ResNetUNet as ResNetUNet,
        SegResNet as SegResNet,
        Stage as Stage,
        STUNet as STUNet,
        SwinUNETR as SwinUNETR,
        UNet as UNet,
        UniMiSS as UniMiSS,
        UniversalNetwork as UniversalNetwork,
        ValidUNet as ValidUNet,
        as_network as as_network,
    )
    from lightning_atlas.tasks import (
        Classification as Classification,
        MultiLabelClassification as MultiLabelClassification,
        MultiLabelSegmentation as MultiLabelSegmentation,
        Regression as Regression,
        Segmentation as Segmentation,
        Task as Task,
    )
    from lightning_atlas.types import Batch as Batch, Prediction as Prediction, ScanPrediction as ScanPrediction

__version__ = "0.1.0"

PUBLIC = {
    "AtlasModule": "modules",
    "AutoRGN": "adaptation",
    "Batch": "types",
    "BatchAugmentation": "data",
    "BiasOnly": "adaptation",
    "Classes": "data",
    "Classification": "tasks",
    "ColoursToSlices": "data",
    "ConstantSchedule": "adaptation",
    "Contract": "contract",
    "CosineSchedule": "adaptation",
    "DELTA": "adaptation",
    "DoDNet": "networks",
    "DrawnOn": "data",
    "EMA": "adaptation",
    "EmbeddedScan": "data",
    "FrozenEncoder": "adaptation",
    "FullFineTuning": "adaptation",
    "GenesisUNet": "networks",
    "GradualThaw": "adaptation",
    "HeadMultiplier": "adaptation",
    "HeadOnly": "adaptation",
    "HeadsFirst": "adaptation",
    "InputChannels": "intake",
    "KernelSize": "intake",
    "L2SP": "adaptation",
    "LPFT": "adaptation",
    "LastStages": "adaptation",
    "LastStagesFirst": "adaptation",
    "LayerWiseDecay": "adaptation",
    "LoRA": "adaptation",
    "Manifest": "data",
    "MedNeXt": "networks",
    "Mixture": "data",
    "MultiLabelClassification": "tasks",
    "MultiLabelSegmentation": "tasks",
    "NearestStage": "intake",
    "Network": "networks",
    "NnUNet": "networks",
    "NormOnly": "adaptation",
    "Patches": "data",
    "PlaneSplit": "data",
    "PooledEncoder": "networks",
    "PositionEmbeddings": "intake",
    "Prediction": "types",
    "RandomQuarterTurns": "data",
    "Regression": "tasks",
    "ResNetUNet": "networks",
    "RescaleAboveAir": "data",
    "STUNet": "networks",
    "Sawtooth": "adaptation",
    "ScanDataModule": "data",
    "ScanFolder": "data",
    "ScanLayout": "data",
    "ScanPrediction": "types",
    "ScanTable": "data",
    "SegResNet": "networks",
    "Segmentation": "tasks",
    "SimulatedCohort": "data",
    "SlidingWindow": "inference",
    "Splits": "data",
    "Stage": "networks",
    "StochasticNorm": "adaptation",
    "SupervisedPretraining": "modules",
    "SurgicalBlock": "adaptation",
    "SwinUNETR": "networks",
    "Targets": "data",
    "Task": "tasks",
    "TransferLearning": "modules",
    "UNet": "networks",
    "UniMiSS": "networks",
    "UniversalNetwork": "networks",
    "ValidUNet": "networks",
    "Valley": "adaptation",
    "WarmUp": "adaptation",
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
