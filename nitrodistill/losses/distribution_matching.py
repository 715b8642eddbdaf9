"""Distribution matching: a loss whose gradient moves samples from the student's distribution to the data's.

    g_b = (fake_b - real_b) / mean_i |x0_bi - real_bi|
    L_b = w_b mean_i g_bi^2 / 2          with  dL_b / dx0_bi = w_b g_bi / n

`real` and `fake` are what two denoisers say of the data behind one noised x0: the teacher, and a network that
has learnt the student's own samples. Their difference is the difference of the two scores, in the data's unit
(Yin et al. 2024, DMD, eq. 7-8; DMD2, arXiv 2405.14867, section 3). g is a constant: no gradient reaches `real`
or `fake`. The value is no measure of progress. The published code is 0.5 mse(x0, (x0 - g).detach()), of
the same value and gradient but for the rounding of x0 - (x0 - g).
"""

from __future__ import annotations

from torch import Tensor

from nitrodistill.checks import check_tensor
from nitrodistill.kernels.dmd import dmd


def distribution_matching(
    x0: Tensor, real: Tensor, fake: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """The distribution-matching loss of every sample; see the module for the equation.

    Args:
        x0: the student's samples, `(B, *)`; what receives the gradient.
        real: the teacher's prediction of x0 from a noised x0, `(B, *)`, with guidance if there is any.
        fake: the fake score network's prediction from the same noised x0, `(B, *)`.
        weight: `(B,)`, a factor for every sample.

    Returns:
        `(B,)`, float64 if an input is, else float32. Where x0 equals `real` everywhere it is 0.

    Raises:
        ValueError: for unequal or empty shapes, several devices, or a weight that is not `(B,)`.
        TypeError: for tensors that are not floating point.
    """
    for name, value in (("x0", x0), ("real", real), ("fake", fake)):
        check_tensor(name, value)
    return dmd(x0, real, fake, weight=weight)
