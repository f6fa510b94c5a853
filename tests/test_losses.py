import math

import pytest
import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss

from lightning_atlas.losses import drawn_dice_loss, set_cross_entropy

CLASSES = 4
UNKNOWN, NONE, IN_0, IN_1, IN_2, IN_3, ONLY_0_DRAWN, REST_OF_0, REST_OF_0_AND_1, COARSE, PART = range(11)
STATES = torch.tensor(
    [
        [-1, -1, -1, -1],  # nobody drew here
        [0, 0, 0, 0],
        *torch.eye(CLASSES, dtype=torch.int8).tolist(),
        [1, 0, 0, 0],  # the others follow, but nobody decided on them
        [0, -1, -1, -1],
        [0, 0, -1, -1],
        [0, 0, -1, -1],  # inside a class that the recipe splits into its last two
        [0, 1, 0, 0],  # part of class 1, known from another name
    ],
    dtype=torch.int8,
)
DRAWN = torch.tensor(
    [
        [0, 0, 0, 0],
        *[[1, 1, 1, 1]] * 5,
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
    ],
    dtype=torch.bool,
)
FULL = [NONE, IN_0, IN_1, IN_2, IN_3]


def tables(cases: int) -> tuple[torch.Tensor, torch.Tensor]:
    return STATES.repeat(cases, 1, 1), DRAWN.repeat(cases, 1, 1)


def background_tables(cases: int) -> tuple[torch.Tensor, torch.Tensor]:
    """With the background's column as a mapping makes it: a coarse voxel is in a class, though not known in which."""
    states, drawn = tables(cases)
    inside, outside = (states == 1).any(2, keepdim=True), (states == 0).all(2, keepdim=True)
    background = outside.to(torch.int8) - (~inside & ~outside).to(torch.int8)
    background[:, COARSE] = 0
    return torch.cat([background, states], 2), torch.cat([drawn.all(2, keepdim=True), drawn], 2)


def random_labels(*shape: int, rows: list[int] | None = None) -> torch.Tensor:
    choice = torch.tensor(rows or list(range(len(STATES))))
    return choice[torch.randint(len(choice), shape)].to(torch.uint8)


def random_logits(*shape: int) -> torch.Tensor:
    return (3 * torch.randn(shape)).requires_grad_()


def losses_of(logits: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cases = len(label)
    cross_entropy = set_cross_entropy(logits, label, background_tables(cases)[0])
    return cross_entropy, drawn_dice_loss(logits.softmax(1), label, *tables(cases))


def naive_cross_entropy(logits: torch.Tensor, label: torch.Tensor, states: torch.Tensor) -> list[torch.Tensor]:
    losses = []
    for case in range(len(label)):
        terms = []
        for voxel in torch.cartesian_prod(*map(torch.arange, label.shape[1:])).tolist():
            i, j, k = voxel
            in_set = [c for c, state in enumerate(states[case, int(label[case, i, j, k])]) if state != 0]
            p = logits[case, :, i, j, k].double().softmax(0)
            if len(in_set) < len(p):
                terms.append(-p[in_set].sum().log())
        losses.append(sum(terms, torch.zeros(())) / max(len(terms), label.shape[1] * label.shape[2]))
    return losses


def naive_dice_loss(p: torch.Tensor, label: torch.Tensor, states: torch.Tensor, drawn: torch.Tensor) -> list:
    losses = []
    for case in range(len(label)):
        loss = torch.zeros(())
        for c in range(states.shape[2]):
            where = drawn[case, label[case].long(), c]
            truth = states[case, label[case].long(), c][where].double()
            predicted = p[case, c][where].double()
            if truth.sum() > 0:
                loss = loss + 1 - 2 * (predicted * truth).sum() / (predicted.sum() + truth.sum())
        losses.append(loss / states.shape[2])
    return losses


def test_both_losses_equal_loops_over_voxels_and_classes():
    for seed in range(3):
        torch.manual_seed(seed)
        label, logits = random_labels(2, 3, 4, 5), random_logits(2, CLASSES + 1, 3, 4, 5)
        states, drawn = tables(2)
        expected_ce = torch.stack(naive_cross_entropy(logits, label, background_tables(2)[0]))
        expected_dice = torch.stack(naive_dice_loss(logits.softmax(1)[:, 1:], label, states, drawn))
        expected = torch.autograd.grad((expected_ce + 2 * expected_dice).sum(), logits)[0]
        cross_entropy, dice = losses_of(logits, label)
        torch.testing.assert_close(cross_entropy.double(), expected_ce.double(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(dice.double(), expected_dice.double(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.autograd.grad((cross_entropy + 2 * dice).sum(), logits)[0], expected)


def test_annotated_everywhere_the_losses_are_the_ordinary_ones():
    label, logits = random_labels(2, 6, 5, 4, rows=FULL), random_logits(2, CLASSES + 1, 6, 5, 4)
    assert all(set(case.flatten().tolist()) == set(FULL) for case in label)
    target = label.long() - NONE
    ordinary_dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0)
    expected = F.cross_entropy(logits, target), ordinary_dice(logits, target[:, None])
    for ours, theirs in zip(losses_of(logits, label), expected, strict=True):
        torch.testing.assert_close(ours.mean(), theirs, rtol=1e-6, atol=1e-6)
        gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours.mean(), theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_an_absent_class_leaves_the_ordinary_dice_gradient():
    label, logits = random_labels(1, 6, 5, 4, rows=[NONE, IN_0, IN_2]), random_logits(1, CLASSES + 1, 6, 5, 4)
    ordinary = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0)
    gradients = [
        torch.autograd.grad(loss, logits, retain_graph=True)[0]
        for loss in (losses_of(logits, label)[1].mean(), ordinary(logits, (label.long() - NONE)[:, None]))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("term", [0, 1])
def test_gradients_are_exactly_zero_where_nobody_drew(term: int):
    label, logits = random_labels(3, 4, 4, 4), random_logits(3, CLASSES + 1, 4, 4, 4)
    gradient = torch.autograd.grad(losses_of(logits, label)[term].sum(), logits)[0]
    unknown = (label == UNKNOWN).unsqueeze(1).expand_as(logits)
    assert (gradient[unknown] == 0).all()
    assert (gradient[~unknown] != 0).any()


@pytest.mark.parametrize(("row", "in_set"), [(REST_OF_0, [0, 2, 3, 4]), (REST_OF_0_AND_1, [0, 3, 4]), (COARSE, [3, 4])])
def test_a_set_gets_the_gradient_of_a_network_whose_classes_are_merged(row: int, in_set: list[int]):
    label, logits = torch.full((1, 3, 3, 3), row), random_logits(1, CLASSES + 1, 3, 3, 3)
    ours = torch.autograd.grad(losses_of(logits, label)[0].sum(), logits)[0]

    others = [c for c in range(CLASSES + 1) if c not in in_set]
    merged = torch.cat([logits[:, in_set].logsumexp(1, keepdim=True), logits[:, others]], 1)
    target = torch.zeros(1, 3, 3, 3, dtype=torch.long)
    torch.testing.assert_close(ours, torch.autograd.grad(F.cross_entropy(merged, target), logits)[0])

    p = logits.detach().softmax(1) / 27
    inside = p[:, in_set] - p[:, in_set] / (27 * p[:, in_set].sum(1, keepdim=True))
    torch.testing.assert_close(ours[:, in_set], inside)
    torch.testing.assert_close(ours[:, others], p[:, others])
    assert (ours[:, in_set] < 0).all()


def test_a_split_batch_has_the_same_mean_and_gradient():
    label, logits = random_labels(4, 3, 4, 5), random_logits(4, CLASSES + 1, 3, 4, 5)
    label[1] = UNKNOWN
    label[2, 1:] = UNKNOWN
    whole = torch.stack(losses_of(logits, label)).mean()
    halves = [torch.stack(losses_of(logits[part], label[part])) for part in (slice(0, 2), slice(2, 4))]
    split = torch.stack([half.mean() for half in halves]).mean()
    torch.testing.assert_close(whole, split)
    torch.testing.assert_close(*[torch.autograd.grad(loss, logits)[0] for loss in (whole, split)])


def test_a_case_with_nothing_observed_is_zero_and_stays_in_the_graph():
    label, logits = random_labels(2, 3, 3, 3, rows=[UNKNOWN]), random_logits(2, CLASSES + 1, 3, 3, 3)
    for loss in losses_of(logits, label):
        assert (loss == 0).all()
        assert (torch.autograd.grad(loss.sum(), logits)[0] == 0).all()


def test_few_observed_voxels_are_averaged_over_a_plane():
    logits, label = torch.zeros(1, CLASSES + 1, 6, 5, 4), torch.zeros(1, 6, 5, 4, dtype=torch.uint8)
    label[0, 0, 0, :3] = IN_1
    torch.testing.assert_close(losses_of(logits, label)[0].item(), 3 * math.log(CLASSES + 1) / 30)
    label[0, :, :, :2] = IN_1
    torch.testing.assert_close(losses_of(logits, label)[0].item(), math.log(CLASSES + 1))


def test_a_perfect_prediction_costs_nothing_on_any_mixture_of_rows():
    label = random_labels(2, 4, 4, 4)
    output = torch.tensor([3, 0, 1, 2, 3, 4, 1, 4, 3, 4, 2])[label.long()]
    logits = 200 * F.one_hot(output, CLASSES + 1).movedim(-1, 1).float()
    cross_entropy, dice = losses_of(logits, label)
    assert (cross_entropy.abs() < 1e-6).all()
    torch.testing.assert_close(dice, torch.zeros(2), rtol=0, atol=1e-6)


def test_a_class_weighs_the_same_however_many_others_were_drawn():
    label, p = random_labels(1, 5, 5, 5, rows=FULL), torch.rand(1, CLASSES, 5, 5, 5)
    states, drawn = tables(1)
    alone = [drawn_dice_loss(p, label, states, drawn & (torch.arange(CLASSES) == c)) for c in range(CLASSES)]
    torch.testing.assert_close(drawn_dice_loss(p, label, states, drawn), sum(alone))


def test_dice_sees_neither_undrawn_voxels_nor_absent_classes():
    label = random_labels(1, 5, 5, 5, rows=[UNKNOWN, NONE, IN_0, ONLY_0_DRAWN])
    p = torch.rand(1, CLASSES, 5, 5, 5, requires_grad=True)
    gradient = torch.autograd.grad(drawn_dice_loss(p, label, *tables(1)).sum(), p)[0]
    assert (gradient[:, 1:] == 0).all()
    assert (gradient[:, 0][label == UNKNOWN] == 0).all()
    assert (gradient[:, 0][label == ONLY_0_DRAWN] < 0).all()
    assert (gradient[:, 0][label == NONE] > 0).all()


def test_order_and_padding_of_the_tables_do_not_matter():
    label, logits = random_labels(1, 4, 4, 4), random_logits(1, CLASSES + 1, 4, 4, 4)
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(len(STATES) - 1)])
    moved = order.argsort()[label.long()]
    states, drawn = background_tables(1)
    states = torch.cat([states[:, order], states[:, :1].repeat(1, 3, 1)], 1)
    drawn = torch.cat([drawn[:, order], drawn[:, :1].repeat(1, 3, 1)], 1)
    cross_entropy, dice = losses_of(logits, label)
    torch.testing.assert_close(set_cross_entropy(logits, moved, states), cross_entropy)
    torch.testing.assert_close(drawn_dice_loss(logits.softmax(1), moved, states[..., 1:], drawn[..., 1:]), dice)


def test_reduced_precision_ends_at_the_logits():
    label, logits = random_labels(1, 4, 4, 4), random_logits(1, CLASSES + 1, 4, 4, 4).detach().bfloat16()
    expected = losses_of(logits.float(), label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = set_cross_entropy(logits, label, background_tables(1)[0])
        assert found.dtype == torch.float32
        assert torch.equal(found, expected[0])
        found = drawn_dice_loss(logits.float().softmax(1), label, *tables(1))
    assert torch.equal(found, expected[1])


def test_small_probabilities_are_not_swallowed_by_a_large_sum():
    label = torch.full((1, 64, 64, 48), NONE)
    label[:, 0] = IN_0
    p = torch.full((1, 1, 64, 64, 48), 3e-3)
    p[:, :, :32] = 1
    states, drawn = STATES[None, :, :1], DRAWN[None, :, :1]
    plane = 64 * 48
    found = drawn_dice_loss(p, label, states, drawn).item()
    assert found == pytest.approx(1 - 2 * plane / (32 * plane * 1.003 + plane), rel=1e-6)
