from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from nitrodistill.method import Draws, Role


def test_draws_depend_on_the_index_alone_not_on_the_batch():
    whole = Draws(3, 11, torch.arange(10)).normal("noise", (4, 2))
    part = Draws(3, 11, torch.tensor([7, 2])).normal("noise", (4, 2))
    assert torch.equal(part, whole[[7, 2]])


@pytest.mark.parametrize(
    "other",
    [
        Draws(4, 11, torch.arange(10)),
        Draws(3, 12, torch.arange(10)),
        Draws(3, 11, torch.arange(10, 20)),
    ],
)
def test_seed_step_index_and_name_all_matter(other):
    draws = Draws(3, 11, torch.arange(10))
    assert not torch.equal(draws.uniform("t"), other.uniform("t"))
    assert not torch.equal(draws.uniform("t"), draws.uniform("u"))
    assert torch.equal(draws.uniform("t"), Draws(3, 11, torch.arange(10)).uniform("t"))


def test_draws_have_their_distributions():
    draws = Draws(0, 0, torch.arange(4000))
    normal = draws.normal("n", (2,)).flatten().double().numpy()
    uniform = draws.uniform("u").double().numpy()
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


def test_the_global_generator_is_not_touched():
    before = torch.random.get_rng_state()
    Draws(0, 0, torch.arange(3)).normal("n", (8,))
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_samples_no_draws():
    assert Draws(0, 0, torch.arange(0)).normal("n", (4, 2)).shape == (0, 4, 2)


def test_a_role_is_read_anew_after_bind():
    class Owner:
        module: nn.Module = nn.Linear(1, 1)

    owner, wrapped = Owner(), nn.Sequential(nn.Linear(1, 1))
    role = Role(owner, "module")
    role.bind(wrapped)
    assert role.module is wrapped
    assert owner.module is wrapped
    with pytest.raises(TypeError, match=r"points at an nn\.Module"):
        _ = Role(owner, "__doc__").module


def test_purposes_and_stages_never_coincide():
    index = torch.arange(4)
    purposes = ("training", "pairs", "previews", "evaluation")
    found = [Draws(0, 0, index, purpose=p).normal("noise", (3,)) for p in purposes]
    found += [Draws(0, 0, index, stage=stage).normal("noise", (3,)) for stage in (1, 2)]
    rows = torch.cat(found)
    assert len(rows.unique(dim=0)) == len(rows)


def test_what_is_shared_is_the_same_for_all_samples_and_none_of_theirs():
    one, two = (Draws(0, 5, torch.tensor(rows)) for rows in ([0, 1], [7, 8, 9]))
    assert torch.equal(one.shared.uniform("step"), two.shared.uniform("step"))
    assert one.shared.normal("noise", (3,)).shape == (1, 3)
    assert not torch.equal(one.shared.uniform("step"), one.uniform("step")[:1])
    later = Draws(0, 6, torch.tensor([0])).shared
    assert not torch.equal(one.shared.uniform("step"), later.uniform("step"))


def test_pairs_have_the_key_that_stores_were_drawn_with():
    """The Philox stream of blake2b("seed/step/name") and the sample's number, as in version 1 of the store."""
    key = int.from_bytes(hashlib.blake2b(b"3/0/noise", digest_size=8).digest(), "little")
    philox = np.random.Philox(key=np.array([key, 11], np.uint64))
    known = np.random.Generator(philox).standard_normal((2, 2), dtype=np.float32)
    drawn = Draws(3, 0, torch.tensor([11]), purpose="pairs").normal("noise", (2, 2))
    np.testing.assert_array_equal(drawn[0].numpy(), known)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])  # of odd sizes a generator keeps a half word
def test_each_sample_has_a_generator_of_its_own(shape):
    numbers, rows = (5, 0, 5, -1), {"normal": [], "uniform": []}
    draws = Draws(3, 11, torch.tensor(numbers), stage=2)
    key = hashlib.blake2b(b"training/2/3/11/x", digest_size=8).digest()
    for number in numbers:
        words = np.array([int.from_bytes(key, "little"), number % 2**64], np.uint64)
        for name, kind in (("normal", "standard_normal"), ("uniform", "random")):
            generator = np.random.Generator(np.random.Philox(key=words))
            rows[name].append(getattr(generator, kind)(shape, dtype=np.float32))
    for name, expected in rows.items():
        found = getattr(draws, name)("x", shape)
        np.testing.assert_array_equal(found.numpy(), np.stack(expected), strict=True)
