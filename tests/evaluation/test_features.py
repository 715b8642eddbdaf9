"""Feature sets: halves, floors, intervals, and extractors that return something else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nitrodistill.evaluation import Extractor
from nitrodistill.evaluation.features import FeatureSet, frechet_replicates, named_extractors
from nitrodistill.evaluation.intervals import Resampler


def normal(n: int, f: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed)) + shift


def filled(features: Tensor, batch_size: int = 1000) -> FeatureSet:
    found = FeatureSet("test")
    for rows in torch.arange(len(features)).split(batch_size):
        found.update(features[rows], rows)
    return found


def draws(size: int, replicates: int) -> list[Tensor]:
    return list(Resampler().counts(size, replicates))


def test_parts_are_the_whole() -> None:
    features = normal(20, 3, 0)
    one, two = filled(features, 3), filled(features)
    assert one.distance(two) == pytest.approx(0, abs=1e-10)
    assert one.count == 20
    alone = FeatureSet("test")
    alone.update(features, torch.zeros(20).long())
    assert alone.floor() is None


def test_halves_are_pairs() -> None:
    """Places 2k and 2k + 1 belong together, in whatever order they came; what has no partner is left out."""
    places = torch.tensor([5, 0, 3, 1, 4, 8, 2])
    found = FeatureSet("test")
    found.update(places[:, None].float(), places)
    first, second = found.halves()
    assert first.flatten().tolist() == [0, 2, 4]
    assert second.flatten().tolist() == [1, 3, 5]


@pytest.mark.parametrize("size", [(400, 6), (12, 40)])
def test_replicates_are_frechet_distances_of_resampled_sets(size: tuple[int, int]) -> None:
    """Few samples take another road to the same number."""
    a, b = normal(*size, 0), normal(*size, 1, 0.5)
    found, shrink = frechet_replicates(filled(a), filled(b), draws)
    assert shrink == 1
    for replicate, counts in zip(found[:3], draws(size[0], 3), strict=True):
        drawn = torch.arange(size[0]).repeat_interleave(counts.long())
        expected = filled(a[drawn]).distance(filled(b[drawn]))
        assert replicate.item() == pytest.approx(expected, rel=1e-6)


def test_the_interval_of_two_gaussians_holds_their_distance() -> None:
    """d(N(0, I), N(m, I)) = |m|^2, and the finite sample's bias is small against the interval here."""
    a, b = filled(normal(4000, 4, 0)), filled(normal(4000, 4, 1, 0.5))
    replicates, shrink = frechet_replicates(a, b, draws)
    assert shrink == pytest.approx(0.5**0.5), "2000 of 4000"
    deviation = replicates.std().item() * shrink
    assert a.distance(b) == pytest.approx(1.0, abs=2.5 * deviation)
    assert 0.01 < deviation < 0.1


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nitrodistill.evaluation.features.MAX_KEPT", 7)
    features = normal(20, 3, 0)
    found = filled(features, 5)
    assert torch.equal(found.kept(), features[:7])
    assert found.count == 20


def test_extractors_that_return_something_else_are_named() -> None:
    images = torch.zeros(2, 3, 4, 4)
    with pytest.raises(
        ValueError, match=r"'mine' made \(2, 3, 4, 4\) of 2 pictures.*flatten or average"
    ):
        Extractor("mine", lambda x: x)(images)
    with pytest.raises(ValueError, match="pictures hold NaN"):
        Extractor("mine", lambda x: x.flatten(1))(images / 0)
    found = FeatureSet("mine")
    found.update(normal(4, 3, 0), torch.arange(4))
    with pytest.raises(ValueError, match=r"made \(5,\) numbers of a picture after \(3,\)"):
        found.update(normal(4, 5, 0), torch.arange(4))
    with pytest.raises(ValueError, match="of 3 and 5 dimensions cannot be compared"):
        found.distance(filled(normal(4, 5, 0)))


def test_extractors_have_distinct_names() -> None:
    assert [e.name for e in named_extractors(torch.flatten)] == ["features"]
    mine = Extractor("mine", torch.flatten)
    assert named_extractors(mine) == (mine,)
    for given in ([], [mine, mine]):
        with pytest.raises(ValueError, match="each with another name"):
            named_extractors(given)
    with pytest.raises(ValueError, match="has no '@'"):
        Extractor("a@b", torch.flatten)
