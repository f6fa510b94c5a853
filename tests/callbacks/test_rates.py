from functools import partial
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_atlas.adaptation import FrozenEncoder
from lightning_atlas.adaptation.plan import AdaptationPlan
from lightning_atlas.adaptation.schedules import PolynomialSchedule
from lightning_atlas.callbacks.rates import RatesPicture, rates_picture
from lightning_atlas.networks import UNet

STEPS = [0, 10, 20]
RATES = {"encoder.0": [0.0, 0.0, 0.0], "decoder.0": [0.0, 1e-3, 5e-4], "head": [2e-3, 1e-3, 0.0]}


def heights(figure) -> list[list[float]]:
    """Return how far each strip reaches above its base at the steps, from the input down."""
    strips = figure.axes[0].collections
    tops = []
    for strip in strips:
        vertices = strip.get_paths()[0].vertices
        base = vertices[:, 1].min()
        tops.append([vertices[vertices[:, 0] == step][:, 1].max() - base for step in STEPS])
    return tops


def test_each_strip_is_the_rate_of_its_stage_on_one_scale():
    highest = 2e-3
    for top, course in zip(heights(rates_picture(STEPS, RATES)), RATES.values(), strict=True):
        assert top == pytest.approx([0.85 * rate / highest for rate in course], abs=1e-6)


def test_stages_stand_from_input_to_output_with_their_peaks():
    axes = rates_picture(STEPS, RATES, fresh={"head"}).axes[0]
    shown = sorted(zip(axes.get_yticks(), [each.get_text() for each in axes.get_yticklabels()], strict=True))
    assert [name for _, name in reversed(shown)] == ["encoder.0", "decoder.0", "head (fresh)"]
    peaks = sorted((text.get_position()[1], text.get_text()) for text in axes.texts if text.get_text() != "peak")
    assert [told for _, told in reversed(peaks)] == ["at rest", "1.00e-03", "2.00e-03"]


def test_a_run_of_one_step_and_one_that_never_moves_are_drawn():
    assert rates_picture([0], {"head": [1e-3]}).axes
    assert rates_picture([0, 1], {"head": [0.0, 0.0]}).axes


def test_it_is_there_before_the_first_step_as_a_file_and_in_tensorboard(module, data, make_trainer, tmp_path):
    network = UNet(features=(4, 6))
    module.plan = AdaptationPlan([FrozenEncoder()], network, {"head"}, 6)
    module.plan.freeze()
    module.optimizer, module.schedule = partial(torch.optim.AdamW, lr=1e-2), PolynomialSchedule()
    module.weights, module.intake = None, None
    seen = []
    before = SimpleNamespace(first=lambda: seen.append((tmp_path / "run" / "rates.png").exists()))
    module.on_train_batch_start = lambda batch, batch_idx: before.first()
    logger = TensorBoardLogger(tmp_path, "run", "")
    make_trainer(RatesPicture(), logger=logger, enable_progress_bar=False).fit(module, data)
    assert seen[0] is True
    picture = matplotlib.image.imread(tmp_path / "run" / "rates.png")
    assert picture[..., :3].std() > 0.05
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    (image,) = events.Images("rates")
    assert (image.height, image.width) == picture.shape[:2]
    (table,) = events.Tensors("stages/text_summary")
    told = table.tensor_proto.string_val[0].decode()
    assert [line.split()[0] for line in told.splitlines()[1:5]] == [stage.name for stage in network.stages()]
