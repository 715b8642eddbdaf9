"""Holds a method to its word: it yields what is active, and each loss reaches its own role alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from nitrodistill.settings import nearest
from nitrodistill.training.parallel import local

_Marks = list[tuple[int, int] | None]


class Watch:
    """Compares the losses of one micro-batch with what was announced.

    The gradients are recognised by their identity and version, so that nothing waits for the device.

    Args:
        method: its class's name, for messages.
        weights: role -> its trained parameters.
        active: the roles of this step.

    Raises:
        ValueError: if a role that is active is not trained.
    """

    def __init__(
        self, method: str, weights: Mapping[str, Sequence[nn.Parameter]], active: Sequence[str]
    ) -> None:
        for role in active:
            if role not in weights:
                raise ValueError(
                    f"{method}.active names {role!r}, which trainable() does not; {nearest(role, weights)}"
                )
        self._method, self._weights, self._active = method, weights, active
        self._waiting = list(active)
        self._marks = {role: _marks(parameters) for role, parameters in weights.items()}

    def before(self, role: str) -> None:
        """Call with the role of each loss, before its backward pass.

        Raises:
            ValueError: if the role is not active at this step, or has had its loss.
        """
        if role in self._waiting:
            self._waiting.remove(role)
            return
        why = "a second time" if role in self._active else "which is not active at this step"
        raise ValueError(
            f"{self._method} yielded a loss of {role!r}, {why}; active are {', '.join(self._active)}."
        )

    def after(self, role: str) -> None:
        """Call after the backward pass of a role's loss.

        Raises:
            ValueError: if it reached the weights of another role, or none of its own.
        """
        marks = {name: _marks(parameters) for name, parameters in self._weights.items()}
        for name, found in marks.items():
            moved = found != self._marks[name]
            if moved and name != role:
                raise ValueError(
                    f"{self._method}: the loss of {role!r} also reached the weights of {name!r}; detach what "
                    "that role made, or put the forward pass and the yield inside of `frozen_within(module)`."
                )
            if not moved and name == role:
                raise ValueError(
                    f"{self._method}: the loss of {role!r} reaches none of its weights; it must use the module "
                    "that its Role holds now, with gradients on."
                )
        self._marks = marks

    def end(self) -> None:
        """Call when the method has yielded all.

        Raises:
            ValueError: if an active role had no loss.
        """
        if self._waiting:
            raise ValueError(
                f"{self._method} yielded no loss of {self._waiting[0]!r}, which is active at this step; yield one "
                "for each role of active(step), whatever the batch holds."
            )


def check_disjoint(weights: Mapping[str, Sequence[nn.Parameter]]) -> None:
    """Checks that no parameter is trained in two roles.

    Raises:
        ValueError: naming the roles.
    """
    owners: dict[int, str] = {}
    for role, parameters in weights.items():
        for parameter in parameters:
            other = owners.setdefault(id(parameter), role)
            if other != role:
                raise ValueError(
                    f"the roles {other!r} and {role!r} share a parameter of shape {tuple(parameter.shape)}; two "
                    "optimizers would move it. Give one of them its own copy, or freeze it there."
                )


def _marks(parameters: Sequence[nn.Parameter]) -> _Marks:
    """Changes whenever a gradient is set or added to."""
    return [None if p.grad is None else (id(p.grad), local(p.grad)._version) for p in parameters]
