import pytest

from lightning_atlas.adaptation import LastStagesFirst
from lightning_atlas.networks import ValidUNet


def test_the_last_convolution_and_the_head_move_first_and_then_everything():
    stages = ValidUNet(features=(2, 3)).stages()
    adaptation = LastStagesFirst(share=0.4)
    course = [adaptation.multipliers(stages, set(), step, 10) for step in range(10)]
    assert course[:4] == [[0.0] * 5 + [1.0, 1.0]] * 4
    assert course[4:] == [[1.0] * 7] * 6
    assert adaptation.always_zero(stages, set(), 10) == set()


def test_what_no_weights_gave_moves_from_the_first_step():
    stages = ValidUNet(features=(2, 3)).stages()
    assert LastStagesFirst().multipliers(stages, {"encoder.0.1"}, 0, 10) == [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(("settings", "told"), [({"count": 0}, "at least one stage"), ({"share": 1.5}, "share")])
def test_settings_out_of_range_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        LastStagesFirst(**settings)
