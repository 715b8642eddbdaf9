from __future__ import annotations

import tests.models.test_families as families_test
from tests.models.families import FAMILIES
from tests.models.write_table import BEGIN, END, FEATURES, PAGE, table


def test_the_page_has_every_family_and_every_feature_and_no_failure():
    features = {name for name in vars(families_test) if name.startswith("test_")}
    assert features == set(FEATURES)
    written = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    passing = {(family, test): "yes" for family in FAMILIES for test in FEATURES}
    for family in FAMILIES:  # what cannot be guided, or pruned, is skipped
        denoiser = families_test.made(family)[0]
        if not denoiser.adapter.entries():
            passing[family, "test_guidance"] = "-"
        if not denoiser.adapter.removable(denoiser.network):
            passing[family, "test_pruning"] = "-"
    assert written == table(passing), "stale: run python tests/models/write_table.py"


def test_a_missing_result_is_no_success():
    results = table({("sd15", name): "yes" for name in list(FEATURES)[1:]})
    assert results.splitlines()[2].startswith("| sd15 | no | yes |")
