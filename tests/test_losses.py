import math
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss

from lightning_atlas import losses
from lightning_atlas.losses import sigmoid_losses, softmax_losses

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
DRAWN = torch.tensor([4 * [0], *5 * [4 * [1]], *2 * [[1, 0, 0, 0]], *2 * [[1, 1, 0, 0]], [1, 0, 0, 0]]) > 0
FULL = [NONE, IN_0, IN_1, IN_2, IN_3]


def tables(cases: int) -> tuple[torch.Tensor, torch.Tensor]:
    return STATES.repeat(cases, 1, 1), DRAWN.repeat(cases, 1, 1)


def background(cases: int) -> torch.Tensor:
    """As a mapping makes it: a coarse voxel is in a class, though not known in which."""
    inside, outside = (STATES == 1).any(1), (STATES == 0).all(1)
    column = outside.to(torch.int8) - (~inside & ~outside).to(torch.int8)
    column[COARSE] = 0
    return column.repeat(cases, 1)


def random_labels(*shape: int, rows: list[int] | None = None) -> torch.Tensor:
    choice = torch.tensor(rows or list(range(len(STATES))))
    return choice[torch.randint(len(choice), shape)].to(torch.uint8)


def random_logits(*shape: int) -> torch.Tensor:
    return (3 * torch.randn(shape)).requires_grad_()


SOFTMAX = ["cross_entropy", "dice", "marginal_dice"]
SIGMOID = ["binary_cross_entropy", "dice", "exclusion"]


def softmax_of(logits: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    found = softmax_losses(logits, label, *tables(len(label)), background(len(label)))
    assert list(found) == SOFTMAX
    return found


def sigmoid_of(logits: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    found = sigmoid_losses(logits, label, *tables(len(label)))
    assert list(found) == SIGMOID
    return found


KINDS = pytest.mark.parametrize(("of", "outputs"), [(softmax_of, CLASSES + 1), (sigmoid_of, CLASSES)])


def gradient_of(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]


def naive_dice(p: torch.Tensor, truth: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    if not (truth & where).any():
        return torch.zeros((), dtype=torch.float64)
    return 1 - 2 * p[truth & where].sum() / (p[where].sum() + (truth & where).sum())


def naive_losses(p: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of one case's float64 probabilities of the tables' classes, by volumes of every class."""
    states, drawn = (table[label.long()].movedim(-1, 0) for table in (STATES, DRAWN))
    found = dict.fromkeys(SIGMOID, torch.zeros((), dtype=torch.float64))
    for c in range(CLASSES):
        truth = states[c] == 1
        found["dice"] = found["dice"] + naive_dice(p[c], truth, drawn[c]) / CLASSES
        for name, where, values in (
            ("binary_cross_entropy", drawn[c], -torch.where(truth, p[c], 1 - p[c]).log()),
            ("exclusion", (states[c] == 0) & ~drawn[c], p[c]),
        ):
            found[name] = found[name] + (values[where].mean() / CLASSES if where.any() else 0)
    return found


def naive_cross_entropy(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    states = torch.cat([background(1)[0, :, None], STATES], 1)
    terms = []
    for voxel in torch.cartesian_prod(*map(torch.arange, label.shape)).tolist():
        i, j, k = voxel
        in_set = [c for c, state in enumerate(states[int(label[i, j, k])]) if state != 0]
        if len(in_set) < len(p):
            terms.append(-p[in_set, i, j, k].sum().log())
    return sum(terms, torch.zeros(())) / max(len(terms), label.shape[0] * label.shape[1])


@pytest.mark.parametrize("seed", range(3))
def test_the_losses_equal_loops_over_voxels_and_classes(seed: int):
    torch.manual_seed(seed)
    label = random_labels(2, 3, 4, 5)
    for of, outputs in ((softmax_of, CLASSES + 1), (sigmoid_of, CLASSES)):
        logits = random_logits(2, outputs, 3, 4, 5)
        exact = logits.double()
        p = exact.softmax(1) if of is softmax_of else exact.sigmoid()
        cases = [naive_losses(case[-CLASSES:], rows) for case, rows in zip(p, label, strict=True)]
        expected = {name: torch.stack([case[name] for case in cases]) for name in SIGMOID}
        if of is softmax_of:
            expected["cross_entropy"] = torch.stack([naive_cross_entropy(*case) for case in zip(p, label, strict=True)])
        for name, loss in of(logits, label).items():
            if name != "marginal_dice":
                torch.testing.assert_close(loss.double(), expected[name].double(), rtol=1e-6, atol=1e-6)
                if expected[name].requires_grad:
                    torch.testing.assert_close(gradient_of(loss, logits), gradient_of(expected[name], logits))


def test_annotated_everywhere_the_losses_are_the_ordinary_ones():
    label = random_labels(2, 6, 5, 4, rows=FULL)
    assert all(set(case.flatten().tolist()) == set(FULL) for case in label)
    target = label.long() - NONE
    softmax_dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0)
    sigmoid_dice = DiceLoss(sigmoid=True, smooth_nr=0, smooth_dr=0)
    volumes = F.one_hot(target, CLASSES + 1).movedim(-1, 1)[:, 1:].float()

    logits = random_logits(2, CLASSES + 1, 6, 5, 4)
    expected = F.cross_entropy(logits, target), *[softmax_dice(logits, target[:, None])] * 2
    pairs = [(logits, *pair) for pair in zip(softmax_of(logits, label).values(), expected, strict=True)]
    logits = random_logits(2, CLASSES, 6, 5, 4)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, volumes)
    expected = cross_entropy, sigmoid_dice(logits, volumes), 0 * logits.sum()
    pairs += [(logits, *pair) for pair in zip(sigmoid_of(logits, label).values(), expected, strict=True)]
    for leaf, ours, theirs in pairs:
        torch.testing.assert_close(ours.mean(), theirs, rtol=1e-6, atol=1e-6)
        gradients = [gradient_of(loss, leaf) for loss in (ours.mean(), theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_an_absent_class_leaves_the_ordinary_dice_gradient():
    label, logits = random_labels(1, 6, 5, 4, rows=[NONE, IN_0, IN_2]), random_logits(1, CLASSES + 1, 6, 5, 4)
    ordinary = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0)
    expected = gradient_of(ordinary(logits, (label.long() - NONE)[:, None]), logits)
    for name in ("dice", "marginal_dice"):
        torch.testing.assert_close(gradient_of(softmax_of(logits, label)[name], logits), expected, rtol=1e-5, atol=1e-8)


@KINDS
def test_gradients_are_exactly_zero_where_nobody_drew(of, outputs: int):
    label, logits = random_labels(3, 4, 4, 4), random_logits(3, outputs, 4, 4, 4)
    unknown = (label == UNKNOWN).unsqueeze(1).expand_as(logits)
    for loss in of(logits, label).values():
        gradient = gradient_of(loss, logits)
        assert (gradient[unknown] == 0).all()
        if loss.any():
            assert (gradient[~unknown] != 0).any()


@KINDS
def test_losses_are_in_single_precision_where_the_default_is_half_of_it(of, outputs: int):
    logits, label = random_logits(2, outputs, 4, 5, 6), random_labels(2, 4, 5, 6)
    expected = of(logits.bfloat16(), label)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = of(logits.bfloat16(), label)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {name: each.dtype for name, each in found.items()} == dict.fromkeys(expected, torch.float32)
    assert all(torch.equal(each, expected[name]) for name, each in found.items())


def test_with_sigmoid_the_gradient_of_an_undrawn_class_is_exactly_zero():
    label, logits = random_labels(3, 4, 4, 4), random_logits(3, CLASSES, 4, 4, 4)
    drawn = DRAWN[label.long()].movedim(-1, 1)
    found = sigmoid_of(logits, label)
    for name in ("binary_cross_entropy", "dice"):
        gradient = gradient_of(found[name], logits)
        assert (gradient[~drawn] == 0).all()
        assert (gradient[drawn] != 0).any()


@pytest.mark.parametrize(("row", "in_set"), [(REST_OF_0, [0, 2, 3, 4]), (REST_OF_0_AND_1, [0, 3, 4]), (COARSE, [3, 4])])
def test_a_set_gets_the_gradient_of_a_network_whose_classes_are_merged(row: int, in_set: list[int]):
    label, logits = torch.full((1, 3, 3, 3), row), random_logits(1, CLASSES + 1, 3, 3, 3)
    ours = gradient_of(softmax_of(logits, label)["cross_entropy"], logits)

    others = [c for c in range(CLASSES + 1) if c not in in_set]
    merged = torch.cat([logits[:, in_set].logsumexp(1, keepdim=True), logits[:, others]], 1)
    target = torch.zeros(1, 3, 3, 3, dtype=torch.long)
    torch.testing.assert_close(ours, gradient_of(F.cross_entropy(merged, target), logits))

    p = logits.detach().softmax(1) / 27
    inside = p[:, in_set] - p[:, in_set] / (27 * p[:, in_set].sum(1, keepdim=True))
    torch.testing.assert_close(ours[:, in_set], inside)
    torch.testing.assert_close(ours[:, others], p[:, others])
    assert (ours[:, in_set] < 0).all()


def test_marginal_dice_is_that_of_a_network_whose_classes_are_merged():
    """A dataset of class 0, class 1 and a coarse one of the last two; then one of class 0 alone."""
    ordinary = DiceLoss(reduction="none", smooth_nr=0, smooth_dr=0)
    for rows, merged in (
        ([NONE, IN_0, IN_1, COARSE], [[0], [1], [2], [3, 4]]),
        ([REST_OF_0, ONLY_0_DRAWN], [[0, 2, 3, 4], [1]]),
    ):
        choice = torch.randint(len(rows), (2, 5, 4, 4))
        states, drawn = (torch.stack([table[[UNKNOWN, *rows]]] * 2) for table in (STATES, DRAWN))
        logits = random_logits(2, CLASSES + 1, 5, 4, 4)
        p = torch.stack([logits.softmax(1)[:, group].sum(1) for group in merged[1:]], 1)
        truth = F.one_hot(choice, len(rows)).movedim(-1, 1)[:, 1:].float()
        column = background(2)[:, [UNKNOWN, *rows]]
        found = softmax_losses(logits, choice + 1, states, drawn, column)["marginal_dice"]
        expected = ordinary(p, truth).sum((1, 2, 3, 4)) / CLASSES
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*[gradient_of(loss, logits) for loss in (found, expected)])


def test_marginal_dice_does_not_merge_what_other_rows_tell_apart():
    """The coarse voxels count only for the classes that they are known not to be in."""
    label, logits = random_labels(1, 5, 4, 4, rows=[*FULL, COARSE]), random_logits(1, CLASSES + 1, 5, 4, 4)
    p, coarse = logits.softmax(1)[0].double(), label[0] == COARSE
    known = [torch.ones_like(coarse)] * 2 + [~coarse] * 2
    expected = sum(naive_dice(p[1 + c], label[0] == IN_0 + c, known[c]) for c in range(CLASSES)) / CLASSES
    torch.testing.assert_close(softmax_of(logits, label)["marginal_dice"][0].double(), expected)


def test_exclusion_lowers_only_what_is_known_to_be_absent_but_undrawn():
    label, logits = random_labels(2, 4, 4, 4, rows=[ONLY_0_DRAWN, IN_1, COARSE, PART]), torch.zeros(2, CLASSES, 4, 4, 4)
    loss = sigmoid_of(logits.requires_grad_(), label)["exclusion"]
    torch.testing.assert_close(loss, torch.full((2,), 3 / 8))  # a half for each class but the first, which all drew
    known_absent = (STATES == 0) & ~DRAWN
    assert torch.equal(gradient_of(loss, logits) > 0, known_absent[label.long()].movedim(-1, 1))


@KINDS
def test_a_split_batch_has_the_same_mean_and_gradient(of, outputs: int):
    label, logits = random_labels(4, 3, 4, 5), random_logits(4, outputs, 3, 4, 5)
    label[1] = UNKNOWN
    label[2, 1:] = UNKNOWN
    whole = torch.stack([*of(logits, label).values()]).mean()
    halves = [torch.stack([*of(logits[part], label[part]).values()]) for part in (slice(0, 2), slice(2, 4))]
    split = torch.stack([half.mean() for half in halves]).mean()
    torch.testing.assert_close(whole, split)
    torch.testing.assert_close(*[gradient_of(loss, logits) for loss in (whole, split)])


@KINDS
def test_a_case_with_nothing_observed_is_zero_and_stays_in_the_graph(of, outputs: int):
    label, logits = random_labels(2, 3, 3, 3, rows=[UNKNOWN]), random_logits(2, outputs, 3, 3, 3)
    for loss in of(logits, label).values():
        assert (loss == 0).all()
        assert (gradient_of(loss, logits) == 0).all()


def test_few_observed_voxels_are_averaged_over_a_plane():
    logits, label = torch.zeros(1, CLASSES + 1, 6, 5, 4), torch.zeros(1, 6, 5, 4, dtype=torch.uint8)
    label[0, 0, 0, :3] = IN_1
    assert softmax_of(logits, label)["cross_entropy"].item() == pytest.approx(3 * math.log(CLASSES + 1) / 30)
    label[0, :, :, :2] = IN_1
    assert softmax_of(logits, label)["cross_entropy"].item() == pytest.approx(math.log(CLASSES + 1))


def test_a_perfect_prediction_costs_nothing_on_any_mixture_of_rows():
    label = random_labels(2, 4, 4, 4)
    output = torch.tensor([3, 0, 1, 2, 3, 4, 1, 4, 3, 4, 2])[label.long()]
    volumes = F.one_hot(output, CLASSES + 1).movedim(-1, 1).float()
    for found in (softmax_of(200 * volumes, label), sigmoid_of(400 * volumes[:, 1:] - 200, label)):
        for loss in found.values():
            torch.testing.assert_close(loss, torch.zeros(2), rtol=0, atol=1e-6)


def test_the_wrongest_prediction_has_the_ordinary_loss_and_gradient():
    label, mixed = random_labels(1, 4, 4, 4, rows=FULL), random_labels(1, 4, 4, 4)
    for scale in (1e2, 1e4, 0.0):
        logits = (scale * torch.randn(1, CLASSES + 1, 4, 4, 4) - 6e4).requires_grad_()
        expected, found = F.cross_entropy(logits, label.long() - NONE), softmax_of(logits, label)["cross_entropy"]
        torch.testing.assert_close(found, expected[None])
        torch.testing.assert_close(gradient_of(found, logits), gradient_of(expected, logits))
        every = [*softmax_of(logits, mixed).values(), *sigmoid_of(logits[:, 1:], mixed).values()]
        assert all(loss.isfinite().all() for loss in every)


def test_a_class_weighs_the_same_however_many_others_were_drawn():
    label, logits = random_labels(1, 5, 5, 5, rows=FULL), random_logits(1, CLASSES, 5, 5, 5)
    states, drawn = tables(1)
    found = [sigmoid_losses(logits, label, states, drawn & (torch.arange(CLASSES) == c)) for c in range(CLASSES)]
    for name, whole in sigmoid_losses(logits, label, states, drawn).items():
        if name != "exclusion":
            torch.testing.assert_close(whole, sum(each[name] for each in found))


def test_dice_sees_neither_undrawn_voxels_nor_absent_classes():
    logits, label = (
        random_logits(1, CLASSES, 5, 5, 5),
        random_labels(1, 5, 5, 5, rows=[UNKNOWN, NONE, IN_0, ONLY_0_DRAWN]),
    )
    gradient = gradient_of(sigmoid_of(logits, label)["dice"], logits)
    assert (gradient[:, 1:] == 0).all()
    assert (gradient[:, 0][label == UNKNOWN] == 0).all()
    assert (gradient[:, 0][label == ONLY_0_DRAWN] < 0).all()
    assert (gradient[:, 0][label == NONE] > 0).all()


def test_order_and_padding_of_the_tables_do_not_matter():
    label, logits = random_labels(1, 4, 4, 4), random_logits(1, CLASSES + 1, 4, 4, 4)
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(len(STATES) - 1)])
    moved = order.argsort()[label.long()]
    states, drawn, column = (
        torch.cat([table[:, order], table[:, :1].expand(-1, 3, *table.shape[2:])], 1)
        for table in (*tables(1), background(1))
    )
    torch.testing.assert_close(softmax_losses(logits, moved, states, drawn, column), softmax_of(logits, label))
    torch.testing.assert_close(sigmoid_losses(logits[:, 1:], moved, states, drawn), sigmoid_of(logits[:, 1:], label))


def test_tables_without_sets_give_what_tables_with_sets_give():
    """Where every row is one output less is computed; an unused row that is a set leads the other way."""
    label, logits = random_labels(2, 4, 4, 4, rows=[UNKNOWN, *FULL]), random_logits(2, CLASSES + 1, 4, 4, 4)
    states, drawn, column = (table[:, : len(FULL) + 1] for table in (*tables(2), background(2)))
    plain, general = softmax_losses(logits, label, states, drawn, column), softmax_of(logits, label)
    for name in ("cross_entropy", "dice"):
        torch.testing.assert_close(plain[name], general[name])
        torch.testing.assert_close(gradient_of(plain[name], logits), gradient_of(general[name], logits))


@KINDS
def test_neither_pieces_nor_memory_order_matter(of, outputs: int, monkeypatch):
    label, logits = random_labels(2, 4, 5, 6), random_logits(2, outputs, 4, 5, 6)
    expected = of(logits, label)
    for size, order in ((7, torch.contiguous_format), (10**6, torch.channels_last_3d), (40, torch.channels_last_3d)):
        monkeypatch.setattr(losses, "PIECE_CPU", size)
        found = of(logits.contiguous(memory_format=order), label.movedim(3, 1).contiguous().movedim(1, 3))
        torch.testing.assert_close(found, expected)
        for name, loss in found.items():
            torch.testing.assert_close(gradient_of(loss, logits), gradient_of(expected[name], logits))


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_ends_at_the_logits(of, outputs: int, dtype: torch.dtype):
    label, logits = random_labels(1, 4, 4, 4), random_logits(1, outputs, 4, 4, 4).detach().to(dtype).requires_grad_()
    exact = logits.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = of(logits, label)
    for name, expected in of(exact, label).items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], expected)
        assert torch.equal(gradient_of(found[name], logits), gradient_of(expected, exact).to(dtype))


@KINDS
def test_nothing_of_the_size_of_the_logits_is_kept(of, outputs: int):
    label, logits = random_labels(1, 40, 40, 40), random_logits(1, outputs, 40, 40, 40)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.update({x.data_ptr(): x.nbytes}) or x, lambda x: x):
        of(logits, label)
    del kept[logits.data_ptr()]
    assert sum(kept.values()) < label.nbytes + 20_000 < logits.nbytes / 10


def test_small_probabilities_are_not_swallowed_by_a_large_sum():
    label = torch.full((1, 64, 64, 48), NONE)
    label[:, 0] = IN_0
    p = torch.full((1, 1, 64, 64, 48), 3e-3)
    p[:, :, :32] = 0.9
    found = sigmoid_losses(p.logit(), label, STATES[None, :, :1], DRAWN[None, :, :1])["dice"].item()
    assert found == pytest.approx(1 - 2 * 0.9 / (32 * 0.903 + 1), rel=1e-6)


COMPILED = """
import sys, torch
from lightning_atlas.losses import sigmoid_losses, softmax_losses
tables = torch.tensor([[[-1, -1], [0, 0], [1, 0], [0, 1], [0, -1]]], dtype=torch.int8).repeat(2, 1, 1)
batch = torch.randint(5, (2, 6, 5, 4)), tables, tables >= 0
background = torch.tensor([[-1, 1, 0, 0, -1]], dtype=torch.int8).repeat(2, 1)
for loss, outputs, more in ((softmax_losses, 3, (background,)), (sigmoid_losses, 2, ())):
    logits = torch.randn(2, outputs, 6, 5, 4, requires_grad=True)
    compiled = torch.compile(loss, backend=sys.argv[1], fullgraph=True)
    found = [torch.stack([*each(logits, *batch, *more).values()]) for each in (compiled, loss)]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*[torch.autograd.grad(each.sum(), logits)[0] for each in found])
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_in_one_graph_the_losses_are_the_same(backend: str):
    """In a process without the tests' type checks, which a compiler cannot read."""
    if backend == "inductor" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        pytest.skip("inductor needs a C++ compiler")
    subprocess.run([sys.executable, "-c", COMPILED, backend], check=True)


@pytest.mark.gpu
@KINDS
def test_a_gpu_gives_what_the_processor_gives(of, outputs: int):
    function = softmax_losses if of is softmax_of else sigmoid_losses
    label, logits = random_labels(2, 70, 66, 64), random_logits(2, outputs, 70, 66, 64)
    more = [*tables(2), *([background(2)] if of is softmax_of else [])]
    there = logits.detach().cuda().requires_grad_()
    for name, loss in function(there, *(each.cuda() for each in (label, *more))).items():
        expected = function(logits, label, *more)[name]
        torch.testing.assert_close(loss.cpu(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient_of(loss, there).cpu(), gradient_of(expected, logits), rtol=1e-4, atol=1e-9)
