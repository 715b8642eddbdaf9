"""The moving averages of a run: of the roles that ask for one, and the networks that follow a role."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from nitrodistill.method import Frozen
from nitrodistill.models.wrappers import role_in
from nitrodistill.settings import nearest
from nitrodistill.training.ema import EMA
from nitrodistill.training.roles import TrainedRole

START_LEFT = 0.1
"""Of the first weights in an average; a run that leaves more of them is warned of."""

_log = logging.getLogger(__name__)


class Averages:
    """All averages, which start at the weights.

    Args:
        trained: role -> its prepared module.
        frozen: what the method uses and does not train.

    Attributes:
        roles: role -> the average of its weights, of those whose `ema_decay` is above 0.

    Raises:
        ValueError: if a network follows a role that is not trained, or has no average to follow, or is of another
            kind.
    """

    def __init__(self, trained: Mapping[str, TrainedRole], frozen: Mapping[str, Frozen]) -> None:
        self.roles: dict[str, EMA] = {
            name: EMA(role.module, role.config.ema_decay)
            for name, role in trained.items()
            if role.config.ema_decay > 0
        }
        self._followers: dict[str, tuple[str, EMA]] = {}
        for name, entry in frozen.items():
            if not entry.follows:
                continue
            _check_trained(name, entry.follows, trained)
            average = EMA(trained[entry.follows].module, entry.decay, into=entry.module)
            average.restart()
            self._followers[name] = (entry.follows, average)
        self._drawn = [
            self._to_follow(name, role, trained)
            for name, role in trained.items()
            if role.role.follows
        ]

    def warn_of_start(self, updates: Mapping[str, int]) -> None:
        """Warns of averages that hold much of the first weights, as of the teacher's, after so many updates."""
        for role, average in self.roles.items():
            left = average.decay ** updates[role]
            if left > START_LEFT:
                _log.warning(
                    "the average of %s will be %.0f%% its first weights after all %d updates (ema_decay %g); take "
                    "an ema_decay of %.2g or less, or more steps.",
                    role,
                    100 * left,
                    updates[role],
                    average.decay,
                    max(0.0, 1 - 3 / max(updates[role], 1)),
                )

    def update(self, role: str) -> None:
        """Moves what averages a role one step towards its weights."""
        if role in self.roles:
            self.roles[role].update()
        for followed, average in (*self._followers.values(), *self._drawn):
            if followed == role:
                average.update()

    def files(self) -> dict[str, EMA]:
        """Name of the file in a checkpoint -> the averages in it."""
        followers = {name: average for name, (_, average) in self._followers.items()}
        return {f"{name}.ema": average for name, average in self.roles.items()} | followers

    def _to_follow(
        self, name: str, follower: TrainedRole, trained: Mapping[str, TrainedRole]
    ) -> tuple[str, EMA]:
        """What draws a trained role to another one."""
        role = follower.role
        _check_trained(name, role.follows, trained)
        if role.follows_average and role.follows not in self.roles:
            raise ValueError(
                f"{name!r} follows the average of {role.follows!r}, which keeps none; set its optimizer's "
                "ema_decay."
            )
        if role.decay > 0 and role_in(follower.module) is not None:  # a copy is exact
            _log.warning(
                "%s is drawn to %s by its LoRA factors: A and B are averaged, which is not the average of B A.",
                name,
                role.follows,
            )
        source = self.roles[role.follows] if role.follows_average else None
        module = trained[role.follows].module
        return role.follows, EMA(module, role.decay, into=follower.module, source=source)

    def applied(self, role: str) -> AbstractContextManager[None]:
        """Puts the average of a role's weights in their place, where there is one, for a `with` block."""
        return self.roles[role].applied() if role in self.roles else nullcontext()


def _check_trained(name: str, follows: str, trained: Mapping[str, TrainedRole]) -> None:
    if follows not in trained:
        raise ValueError(
            f"{name!r} follows {follows!r}, which is not trained; {nearest(follows, trained)}"
        )
