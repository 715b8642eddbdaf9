"""Noise schedules: what a timestep means in signal and noise."""

from nitrodistill.schedules.continuous import KarrasSchedule, RectifiedFlow
from nitrodistill.schedules.discrete import DiscreteSchedule
from nitrodistill.schedules.zero_terminal_snr import ZeroTerminalSNR

__all__ = ["DiscreteSchedule", "KarrasSchedule", "RectifiedFlow", "ZeroTerminalSNR"]
