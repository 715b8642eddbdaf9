"""The moving averages of a run: of the roles that ask for one, and the frozen networks that follow a role."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from nitrodistill.method import Frozen
from nitrodistill.settings import nearest
from nitrodistill.training.ema import EMA
from nitrodistill.training.roles import TrainedRole


class Averages:
    """All averages, which start at the weights.

    Args:
        trained: role -> its prepared module.
        frozen: what the method uses and does not train.

    Attributes:
        roles: role -> the average of its weights, of those whose `ema_decay` is above 0.

    Raises:
        ValueError: if a network follows a role that is not trained, or is of another kind.
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
            if entry.follows not in trained:
                raise ValueError(
                    f"{name!r} follows {entry.follows!r}, which is not trained; "
                    f"{nearest(entry.follows, trained)}"
                )
            average = EMA(trained[entry.follows].module, entry.decay, into=entry.module)
            average.restart()
            self._followers[name] = (entry.follows, average)

    def update(self, role: str) -> None:
        """Moves what averages a role one step towards its weights."""
        if role in self.roles:
            self.roles[role].update()
        for followed, average in self._followers.values():
            if followed == role:
                average.update()

    def files(self) -> dict[str, EMA]:
        """Name of the file in a checkpoint -> the averages in it."""
        followers = {name: average for name, (_, average) in self._followers.items()}
        return {f"{name}.ema": average for name, average in self.roles.items()} | followers

    def applied(self, role: str) -> AbstractContextManager[None]:
        """Puts the average of a role's weights in their place, where there is one, for a `with` block."""
        return self.roles[role].applied() if role in self.roles else nullcontext()
