from __future__ import annotations

import pytest
import torch

from nitrodistill.toy.scenes import captions
from tools.toy.loop import seeded
from tools.toy.measure import edge, random_captions


def test_edge_of_a_ramp_is_its_slope():
    ramp = torch.arange(32.0).expand(2, 3, 32, 32) * 0.01
    assert edge(ramp) == pytest.approx(0.01, rel=1e-5)


def test_captions_are_drawn_from_the_grammar():
    drawn = random_captions(2000, seeded(0))
    assert set(drawn) <= set(captions())
    assert len(set(drawn)) > 320
