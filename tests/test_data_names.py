"""Names of sources: every published form, and nothing that only begins like one."""

import pytest

from memalpha import scoring
from memalpha.data import SOURCES, names


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_our_sources_are_scored_under_their_own_name(source):
    expected = "longmemeval" if source == "longmemeval_s" else source
    assert names.family(source) == scoring.family(source) == expected


@pytest.mark.parametrize(
    "published, family",
    [
        ("icl_clinic150_7050shot_balance", "clinic150"),
        ("clinc150", "clinic150"),
        ("ruler_qa2_421K", "ruler_qa2"),
        ("longmemeval_s*", "longmemeval"),
        ("eventqa_65536", "eventqa"),
        ("eventqa_full", "eventqa"),
        ("factconsolidation_mh_262k", "factconsolidation"),
        ("detective_qa", "detectiveqa"),
        ("InfBench-Sum", "infbench_sum"),
        ("pubmed-rct", "pubmed_rct"),
        ("recsys_redial_full", "recsys"),
    ],
)
def test_published_names_lead_to_their_family(published, family):
    assert names.family(published) == family


# The benchmark documents their published names only as the name, and something after it.
OPEN = ("detectiveqa", "eventqa", "recsys")
FOLLOWED = ("{}_dates", "{}_12shots")
NOT_OF_IT = [
    form.format(family)
    for family in sorted(names.PUBLISHED_FORMS)
    for form in ("{}x", "my_{}", "{}_", "icl_{}_1shot_", *(FOLLOWED if family not in OPEN else ()))
]


@pytest.mark.parametrize("source", NOT_OF_IT)
def test_a_name_that_only_holds_a_family_is_not_of_it(source):
    assert names.family(source) == source
    with pytest.raises(ValueError, match="unknown source"):
        scoring.family(source)


@pytest.mark.parametrize("family", OPEN)
def test_any_word_may_follow_a_family_of_open_names(family):
    for source in (form.format(family) for form in FOLLOWED):
        assert names.family(source) == scoring.family(source) == family


@pytest.mark.parametrize("source", ["squad_dates", "hotpotqa_2", "lme_train_x", "booksum_short"])
def test_sources_without_variants_have_none(source):
    assert names.family(source) == source
    with pytest.raises(ValueError, match=f"unknown source '{source}'; known sources: squad"):
        scoring.score(source, "x", ("x",))


def test_the_groups_name_families():
    for group in (names.LABELLED, names.JUDGED, names.SUMMARIES):
        assert all(names.family(name) == name for name in group)
    assert {scoring.category(name) for name in names.LABELLED} == {"labels"}
    assert {scoring.category(name) for name in names.SUMMARIES} == {"summary"}
    assert {name for name, (_, metric) in scoring.METRICS.items() if metric is None} == set(
        names.JUDGED
    )
