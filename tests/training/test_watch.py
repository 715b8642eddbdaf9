"""A method is held to its word: one sentence with the role's name, by the watch alone and by the trainer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nitrodistill.training import Trainer
from nitrodistill.training.watch import Watch, check_disjoint
from nitrodistill.types import Terms


def _weights(**sizes: int) -> dict[str, list[nn.Parameter]]:
    return {
        name: [nn.Parameter(torch.ones(size)) for _ in range(2)] for name, size in sizes.items()
    }


def _backward(*parameters: nn.Parameter) -> None:
    torch.stack([p.square().sum() for p in parameters]).sum().backward()


def test_a_method_that_keeps_its_word_passes_also_on_gradients_that_are_there_already():
    weights = _weights(student=3, critic=2)
    for _ in range(2):  # the second time the gradients are added to
        watch = Watch("Mine", weights, ("student", "critic"))
        for role in ("critic", "student"):
            watch.before(role)
            _backward(*weights[role])
            watch.after(role)
        watch.end()


def test_some_of_its_weights_are_enough_and_roles_that_rest_are_left_alone():
    weights = _weights(student=3, critic=2)
    watch = Watch("Mine", weights, ("student",))
    watch.before("student")
    _backward(weights["student"][1])
    watch.after("student")
    watch.end()


def test_a_role_that_is_left_out():
    watch = Watch("Mine", _weights(student=1, critic=1), ("student", "critic"))
    watch.before("critic")
    with pytest.raises(ValueError, match=r"Mine yielded no loss of 'student', which is active"):
        watch.end()


def test_a_role_that_is_misspelt_or_rests_or_comes_twice():
    weights = _weights(student=1, critic=1)
    watch = Watch("Mine", weights, ("student",))
    with pytest.raises(ValueError, match=r"loss of 'studnt', which is not active.*are student\."):
        watch.before("studnt")
    with pytest.raises(ValueError, match="loss of 'critic', which is not active at this step"):
        watch.before("critic")
    watch.before("student")
    with pytest.raises(ValueError, match="loss of 'student', a second time"):
        watch.before("student")
    with pytest.raises(ValueError, match=r"Mine.active names 'critics'.*did you mean 'critic'\?"):
        Watch("Mine", weights, ("student", "critics"))


@pytest.mark.parametrize("before", [False, True])
def test_a_loss_that_reaches_another_role(before):
    """Whether that role has a gradient already or not."""
    weights = _weights(student=3, critic=2)
    if before:
        _backward(*weights["critic"])
    watch = Watch("Mine", weights, ("student", "critic"))
    watch.before("student")
    _backward(*weights["student"], weights["critic"][1])
    with pytest.raises(ValueError, match=r"loss of 'student' also reached the weights of 'critic'"):
        watch.after("student")


def test_a_loss_that_reaches_none_of_its_own_weights():
    watch = Watch("Mine", _weights(student=3, critic=2), ("student", "critic"))
    watch.before("student")
    with pytest.raises(ValueError, match=r"loss of 'student' reaches none of its weights"):
        watch.after("student")


def test_roles_that_share_a_parameter():
    weights = _weights(student=3, critic=2)
    check_disjoint(weights)
    weights["critic"].append(weights["student"][0])
    with pytest.raises(
        ValueError, match=r"'student' and 'critic' share a parameter of shape \(3,\)"
    ):
        check_disjoint(weights)


def _fit(tiny, method):
    trainer = Trainer(method, tiny.Stream(4), tiny.config())
    return [state.step for state in trainer.fit()]


def _yielding(tiny, change):
    """A method whose losses are passed through `change(method, losses)`."""

    class Changed(tiny.Method):
        def losses(self, batch, active, draws):
            return change(self, super().losses(batch, active, draws))

    return Changed()


def _left_out(method, losses):
    yield next(losses)


def _misspelt(method, losses):
    for role, terms in losses:
        yield ("critc" if role == "critic" else role), terms


def _twice(method, losses):
    for role, terms in losses:
        yield role, Terms(1 * terms.total, terms.parts)
        yield role, terms


def _unfrozen(method, losses):
    """The student's opinion flows into a critic that nobody froze."""
    for role, terms in losses:
        if role == "student":
            method.critic_network.requires_grad_(True)
            fake = method.student_network(torch.ones(4, 4))
            terms = terms._replace(total=terms.total + method.critic_network(fake).mean())
        yield role, terms


def _detached(method, losses):
    for role, terms in losses:
        total = terms.total
        if role == "critic":
            total = terms.total.detach() + torch.ones((), requires_grad=True)
        yield role, terms._replace(total=total)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_left_out, r"Changed yielded no loss of 'critic', which is active at this step"),
        (_misspelt, r"Changed yielded a loss of 'critc', which is not active.*student, critic\."),
        (_twice, r"Changed yielded a loss of 'student', a second time"),
        (_unfrozen, r"the loss of 'student' also reached the weights of 'critic'; detach"),
        (_detached, r"the loss of 'critic' reaches none of its weights"),
    ],
)
def test_the_trainer_stops_at_the_first_step_that_breaks_the_word(tiny, change, words):
    method = _yielding(tiny, change)
    with pytest.raises(ValueError, match=words) as caught:
        _fit(tiny, method)
    assert "\n" not in str(caught.value)


def test_the_trainer_refuses_roles_that_share_a_parameter(tiny):
    method = tiny.Method()
    method.critic_network[0] = method.student_network[0]
    with pytest.raises(
        ValueError, match=r"'student' and 'critic' share a parameter of shape \(8, 4\)"
    ):
        _fit(tiny, method)
    method.student_network[0].requires_grad_(False)  # trained in neither: nothing is moved twice
    assert _fit(tiny, method) == [1, 2, 3, 4, 5, 6]


def test_a_role_that_is_active_and_not_trained_is_named_with_the_nearest(tiny):
    with pytest.raises(ValueError, match=r"active names 'critics'.*did you mean 'critic'\?"):
        _fit(tiny, tiny.Method((("student", "critics"),)))
