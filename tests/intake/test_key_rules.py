import pytest
import torch
from torch.nn import functional as F

from lightning_atlas.intake.key_rules import Fit, KeyRules, best_fit, common_wrapper, turned_axes

ONE = (1,)


@pytest.mark.parametrize(
    ("names", "wrapper"),
    [
        (["module.a", "module.b"], "module."),
        (["module.backbone.a", "module.b"], "module."),
        (["backbone.module.a", "backbone.module.b"], "backbone.module."),
        (["module.a", "b"], ""),
        (["encoder.a", "encoder.b"], ""),
        ([], ""),
    ],
)
def test_a_wrapper_is_what_stands_before_every_name(names, wrapper):
    assert common_wrapper(dict.fromkeys(names)) == wrapper


@pytest.mark.parametrize("wrapper", ["", "module.", "module.backbone."])
def test_rules_see_the_names_without_their_wrapper(wrapper):
    rules = KeyRules(rename=(("^blocks", "layers"), (r"\.fc(\d)", r".linear\1")), skip={"^head": "another task"})
    names = ["blocks.0.fc1", "head.weight", "norm"]
    taken, skipped = rules.apply({wrapper + name: torch.full(ONE, float(each)) for each, name in enumerate(names)})
    assert {name: tensor.item() for name, tensor in taken.items()} == {"layers.0.linear1": 0.0, "norm": 2.0}
    assert skipped == {f"{wrapper}head.weight": "another task"}


def test_two_tensors_never_get_one_name():
    with pytest.raises(ValueError, match="two tensors would be called a; one of them is b"):
        KeyRules(rename=(("b", "a"),)).apply({"a": torch.ones(1), "b": torch.ones(1)})


@pytest.mark.parametrize(("axes", "theirs"), [("kji", (0, 1, 4, 3, 2)), ("kij", (0, 1, 4, 2, 3))])
def test_a_turned_kernel_does_to_an_image_what_the_kernel_does_to_the_image_in_its_own_axes(axes, theirs):
    image, kernel = torch.randn(2, 3, 4, 5, 6), torch.randn(7, 3, 1, 2, 3)
    expected = F.conv3d(image.permute(theirs), kernel)
    result = F.conv3d(image, turned_axes(kernel, axes)).permute(theirs)
    torch.testing.assert_close(result, expected)
    taken, _ = KeyRules(axes=axes).apply({"kernel": kernel, "bias": torch.ones(7), "counter": torch.tensor(3)})
    assert torch.equal(taken["kernel"], turned_axes(kernel, axes))
    assert (taken["bias"].shape, taken["counter"].shape) == ((7,), ())


@pytest.mark.parametrize(("axes", "theirs"), [("kji", (0, 1, 3, 2)), ("kij", (0, 1, 2, 3))])
def test_a_flat_kernel_is_turned_in_its_plane(axes, theirs):
    image, kernel = torch.randn(2, 3, 4, 5), torch.randn(7, 3, 1, 3)
    expected = F.conv2d(image.permute(theirs), kernel)
    torch.testing.assert_close(F.conv2d(image, turned_axes(kernel, axes)).permute(theirs), expected)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"renames": []}, "rules are rename, skip, axes and last_first; found renames"),
        ({"rename": [["(", ""]]}, r"'\(' is no regular expression"),
        ({"axes": "zyx"}, "ijk, kji or kij; found 'zyx'"),
    ],
)
def test_rules_that_could_not_be_applied_are_refused(values, told):
    with pytest.raises(ValueError, match=told):
        KeyRules.from_dict(values)


@pytest.mark.parametrize(
    ("source", "targets", "fit"),
    [
        (["module.net.a"], ["b"], Fit()),
        (["module.net.a"], ["net.a", "a"], Fit("module.", "", 1)),
        (["module.a", "module.b", "x"], ["a", "b"], Fit("module.", "", 2)),
        (["module.a", "module.b"], ["backbone.a", "backbone.b", "head"], Fit("module.", "backbone.", 2)),
        (["encoder.module.a"], ["encoder.a"], Fit()),
    ],
)
def test_a_fit_drops_and_adds_what_matches_most_and_nothing_without_need(source, targets, fit):
    found = best_fit(dict.fromkeys(source, ONE), dict.fromkeys(targets, ONE))
    assert found == fit
    assert sum(found.key(name) in source for name in targets) == fit.matched


def test_a_shape_counts_more_than_a_name():
    targets = {"net.a": ONE, "a": ONE}
    assert best_fit({"module.net.a": ONE}, targets).dropped == "module."
    assert best_fit({"module.net.a": (2,)}, targets | {"a": (2,)}).dropped == "module.net."
