"""Metrics have names that people read, in one order."""

from __future__ import annotations

from nitrodistill.evaluation import info
from nitrodistill.evaluation.catalogue import ordered


def test_a_further_extractor_is_in_the_label() -> None:
    assert info("fd_real").label == "FD to real"
    assert info("fd_real@clip").label == "FD to real (clip)"
    assert info("fd_real@clip").best == "low"


def test_an_unknown_metric_speaks_for_itself() -> None:
    assert (info("mine").label, info("mine").best) == ("mine", "none")


def test_the_catalogue_gives_the_order() -> None:
    names = ["mine", "denoise_ms", "fd_real@dino", "fd_real", "alignment", "fd_real@clip"]
    assert ordered(names) == [
        "alignment",
        "fd_real",
        "fd_real@clip",
        "fd_real@dino",
        "denoise_ms",
        "mine",
    ]
