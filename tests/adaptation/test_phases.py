import pytest

from lightning_atlas.adaptation import LPFT, GradualThaw, HeadsFirst, LastStagesFirst, Sawtooth, Valley, WarmUp
from lightning_atlas.networks import ValidUNet
from lightning_atlas.networks.base import Stage

STAGES = [
    Stage("a", "encoder", ()),
    Stage("b", "encoder", ()),
    Stage("c", "decoder", ()),
    Stage("d", "head", ()),
]


def course(adaptation, stage, steps, fresh=()):
    place = [each.name for each in STAGES].index(stage)
    return [adaptation.multipliers(STAGES, fresh, step, steps)[place] for step in range(steps)]


def test_a_warm_up_climbs_in_equal_steps_and_reaches_the_peak_at_its_end():
    assert course(WarmUp(0.2), "a", 20) == pytest.approx([0.25, 0.5, 0.75, 1.0] + [1.0] * 16)


def test_heads_first_lets_the_body_rest_and_then_everything_moves():
    adaptation = HeadsFirst(0.3)
    assert course(adaptation, "c", 10) == [0.0] * 3 + [1.0] * 7
    assert course(adaptation, "c", 10, fresh={"c"}) == [1.0] * 10
    assert course(adaptation, "d", 10) == [1.0] * 10


def test_probe_then_fine_tuning_lowers_the_rate_of_everything():
    adaptation = LPFT(0.5, rate_after=0.1)
    assert course(adaptation, "a", 4) == [0.0, 0.0, 0.1, 0.1]
    assert course(adaptation, "d", 4) == [1.0, 1.0, 0.1, 0.1]


def test_stages_thaw_one_after_another_from_the_output():
    starts = {stage.name: course(GradualThaw(0.6), stage.name, 100).index(1.0) for stage in STAGES}
    assert starts == {"d": 0, "c": 20, "b": 40, "a": 60}
    assert all(set(course(GradualThaw(0.6), name, 100)[start:]) == {1.0} for name, start in starts.items())
    assert course(GradualThaw(0.6), "a", 100, fresh={"a"}) == [1.0] * 100


@pytest.mark.parametrize(
    ("fresh", "starts"),
    [({"d"}, {"d": 0, "c": 20, "b": 40, "a": 60}), ({"c", "d"}, {"d": 0, "c": 0, "b": 30, "a": 60})],
)
def test_what_is_new_thaws_alone_first(fresh, starts):
    found = {stage.name: course(GradualThaw(0.6), stage.name, 100, fresh).index(1.0) for stage in STAGES}
    assert found == starts


def nnunet_sawtooth(epoch, decoder, climb, epochs, power=0.9):
    """The published phases, written down phase by phase: (rate of the decoder, rate of the encoder)."""
    half = decoder // 2
    if epoch < half:
        return (epoch + 1) / half, 0.0
    if epoch < decoder:
        return (1 - (epoch - half) / (decoder - half)) ** power, 0.0
    if epoch < decoder + climb:
        return (epoch - decoder + 1) / climb, (epoch - decoder + 1) / climb
    rest = (1 - (epoch - decoder - climb) / (epochs - decoder - climb)) ** power
    return rest, rest


def test_the_sawtooth_is_the_published_one():
    expected = [nnunet_sawtooth(epoch, 50, 50, 1000) for epoch in range(1000)]
    assert course(Sawtooth(), "c", 1000) == pytest.approx([decoder for decoder, _ in expected])
    assert course(Sawtooth(), "a", 1000) == pytest.approx([encoder for _, encoder in expected])


def test_the_valley_begins_at_the_peak_and_falls():
    decoder, encoder = course(Valley(0.1, 0.1), "c", 100), course(Valley(0.1, 0.1), "a", 100)
    assert decoder[0] == 1.0
    assert decoder[:10] == sorted(decoder[:10], reverse=True)
    assert encoder[:10] == [0.0] * 10
    assert decoder[10:] == encoder[10:]
    assert encoder[19] == 1.0
    assert encoder[20:] == sorted(encoder[20:], reverse=True)


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


@pytest.mark.parametrize("kind", [WarmUp, HeadsFirst, GradualThaw, LPFT, Valley, Sawtooth])
def test_every_rate_is_a_share_and_the_whole_moves_at_the_end_even_of_a_single_step(kind):
    for steps in (1, 2, 3, 10, 37):
        for step in range(steps):
            assert all(0 <= each <= 1 for each in kind().multipliers(STAGES, set(), step, steps))
        assert all(each > 0 for each in kind().multipliers(STAGES, set(), steps - 1, steps))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: WarmUp(1.5), r"share of WarmUp is 1\.5"),
        (lambda: HeadsFirst(-0.1), "share of HeadsFirst"),
        (lambda: LPFT(rate_after=0.0), "rate_after of LPFT"),
        (lambda: Sawtooth(0.6, 0.6), r"both of Sawtooth is 1\.2"),
        (lambda: HeadsFirst(1.0), r"share of HeadsFirst is 1\.0, and what rests .* would never move"),
        (lambda: LastStagesFirst(1.0), r"share of LastStagesFirst is 1\.0, and what rests"),
        (lambda: LPFT(1.0), r"share of LPFT is 1\.0, and what rests"),
        (lambda: GradualThaw(1.0), r"share of GradualThaw is 1\.0, and what rests"),
        (lambda: Valley(1.0, 0.0), r"decoder of Valley is 1\.0, and what rests"),
    ],
)
def test_shares_outside_the_run_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
