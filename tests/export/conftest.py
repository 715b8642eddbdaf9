"""Students to export."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nitrodistill.models import DiffusersDenoiser, Pipeline


@pytest.fixture(scope="session")
def trained() -> Callable[[Pipeline], DiffusersDenoiser]:
    """`trained(pipeline)`: a student that differs from its teacher."""

    def make(pipeline: Pipeline) -> DiffusersDenoiser:
        student = pipeline.denoiser.copy()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in student.module.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        student.module.train()
        return student

    return make
