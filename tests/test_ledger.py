"""Verdicts follow from the stored tables, and what the ledger points at is there."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from docutils.nodes import make_id

from fpmc import ledger
from fpmc.experiments import __main__ as experiments
from fpmc.experiments import command, looks
from fpmc.ledger import page, rules
from fpmc.metrics import Estimate
from tests.notebooks.regenerate import stored

ROOT = Path(__file__).parents[1]
CLAIMS = ledger.read()
BY_TABLES = [claim for claim in CLAIMS if claim.tests]
LIVE = [claim for claim in CLAIMS if claim.live]
NUMBER = r"\d+(?:\.\d+)?(?:e[-+]?\d+)?"


def name(claim):
    return claim.id


def printed(chapter):
    """What a chapter's stored notebook shows, in one line, tables without their rules."""
    cells = nbformat.read(stored(ROOT / "book" / f"{chapter}.md"), 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    return " ".join(" ".join(texts).replace("|", " ").split())


@pytest.mark.parametrize("claim", BY_TABLES, ids=name)
class TestVerdictsFromTables:
    def test_the_verdict_follows_from_its_rule(self, claim):
        found = ledger.points(claim)
        yes, n = ledger.counted(claim, found)
        assert ledger.judge(claim, found) == claim.verdict, f"as claimed in {yes} of {n}"

    def test_one_point_is_shown(self, claim):
        assert ledger.shown(claim, ledger.points(claim)) in ledger.points(claim)
        assert claim.what


@pytest.mark.parametrize("claim", LIVE, ids=name)
class TestVerdictsFromChapters:
    def test_the_chapter_prints_what_is_quoted(self, claim):
        text = printed(claim.chapter)
        for quote in claim.quotes:
            assert quote in text, f"{claim.chapter} no longer prints {quote!r}"

    def test_the_number_is_among_what_is_quoted(self, claim):
        quoted = {float(x) for x in re.findall(NUMBER, " ".join(claim.quotes))}
        assert {float(x) for x in re.findall(NUMBER, claim.number)} <= quoted
        assert claim.number
        assert claim.what


@pytest.mark.parametrize("claim", CLAIMS, ids=name)
class TestPlaces:
    def test_the_chapter_has_the_section(self, claim):
        if not claim.chapter:
            assert claim.verdict == "not tested"
            return
        text = (ROOT / "book" / f"{claim.chapter}.md").read_text()
        assert re.search(rf"^#+ {re.escape(claim.section)}$", text, re.MULTILINE)
        assert f"book/{claim.chapter}" in (ROOT / "_toc.yml").read_text()
        as_typeset = claim.section.replace("'", "’")
        assert page.anchor(claim.section) == make_id(as_typeset)

    def test_the_commands_can_be_run(self, claim):
        for line in ledger.again(claim):
            first, *words = shlex.split(line)
            if first == "make":
                settings = dict(word.split("=", 1) for word in words[1:])
                assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
                given = ["--data", settings["DATA"], *shlex.split(settings["ARGS"])]
                command.parse(given, list(experiments.STAGES), "")
            elif words[1] == "fpmc.run":
                assert (ROOT / words[2]).is_file()
            else:
                assert words[1] == looks.__name__
                assert words[2].partition("/")[0] in line

    def test_the_paper_is_in_the_bibliography(self, claim):
        assert f"{{{claim.paper}," in (ROOT / "book" / "references.bib").read_text()


def test_every_paper_has_claims_and_most_are_tested():
    for verdicts in page.counts(CLAIMS).values():
        assert sum(verdicts.values()) > verdicts["not tested"]
    assert sum(sum(verdicts.values()) for verdicts in page.counts(CLAIMS).values()) == len(CLAIMS)


def test_the_tables_number_the_claims_once():
    numbers = [row["no."] for paper in ledger.PAPERS for row in page.rows(CLAIMS, paper)]
    assert numbers == [f"{i}." for i in range(1, len(CLAIMS) + 1)]
    named = {no for row in page.commands(CLAIMS) for no in row["claims"].split(", ")}
    tested = {f"{i}." for i, c in enumerate(CLAIMS, 1) if c.verdict != "not tested"}
    assert named == tested


TABLE = [
    {"method": "a", "sigma": 1.0, "mse": Estimate(1.0, 0.1, 9)},
    {"method": "a", "sigma": 2.0, "mse": Estimate(1.9, 0.1, 9)},
    {"method": "a", "sigma": 3.0, "mse": Estimate(5.0, 0.1, 9)},
    {"method": "b", "sigma": 1.0, "mse": Estimate(2.0, 0.1, 9)},
    {"method": "b", "sigma": 2.0, "mse": Estimate(2.0, 0.1, 9)},
    {"method": "b", "sigma": 3.0, "mse": Estimate(2.0, 0.1, 9)},
]
A, B = {"method": "a"}, {"method": "b"}


def signs(points):
    return [point.holds for point in points]


class TestRules:
    def test_less_and_more_are_opposites(self):
        assert signs(rules.less(TABLE, 2.0, first=A, second=B)) == [True, None, False]
        assert signs(rules.more(TABLE, 2.0, first=A, second=B)) == [False, None, True]
        assert signs(rules.less(TABLE, 2.0, first=B, second=A)) == [False, None, True]

    def test_more_errors_tell_less(self):
        assert signs(rules.less(TABLE, 0.5, first=A, second=B)) == [True, True, False]
        assert signs(rules.less(TABLE, 50.0, first=A, second=B)) == [None, None, None]

    def test_a_bound_and_a_factor(self):
        assert signs(rules.less(TABLE, 2.0, first=A, second=1.5)) == [True, False, False]
        assert signs(rules.less(TABLE, 2.0, first=A, second=B, times=3.0)) == [True, True, True]

    def test_what_rounding_moves_is_the_same(self):
        table = [{"method": m, "sigma": 1.0, "mse": x} for m, x in (("a", 1.0), ("b", 1.00001))]
        assert signs(rules.less(table, 2.0, first=A, second=B)) == [None]

    def test_the_ratio_has_the_error_of_a_ratio(self):
        first, *_ = rules.less(TABLE, 2.0, first=A, second=B)
        assert first.number == 0.5
        assert first.number.standard_error == pytest.approx(0.5 * (0.1**2 + 0.05**2) ** 0.5)

    def test_rising_and_peaking(self):
        assert signs(rules.rises(TABLE, 2.0, first=A)) == [True, True]
        assert signs(rules.rises(TABLE, 2.0, first=B)) == [None, None]
        (peak,) = rules.peaks(TABLE, 2.0, first=A, within=[2.5, 3.5])
        assert (peak.number, peak.holds) == (3.0, True)
        assert signs(rules.peaks(TABLE, 2.0, first=A, within=[0.5, 2.5])) == [False]

    def test_samples_are_compared_one_by_one(self):
        claim = next(claim for claim in CLAIMS if claim.id == "samples-nearer")
        far = replace(claim, show={"data": "digits"})
        point = ledger.shown(far, ledger.points(far))
        alone = rules.rows("digits", "samples")
        mse = {row["method"]: row["mse"] for row in alone if row["schedule"] in ("", "found")}
        assert point.number == pytest.approx(mse["pspc_flex"] / mse["optimal"], rel=1e-4)

    def test_shares_decide(self):
        claim = ledger.read()[11]
        points = [ledger.Point({}, 1.0, holds) for holds in (True, True, None, False)]
        assert ledger.judge(claim, points) == "holds in part"
        assert ledger.judge(claim, points[:2]) == "holds"
        assert ledger.judge(claim, points[2:]) == "does not hold"
        assert ledger.judge(replace(claim, level=True, holds=0.75), points) == "holds"
        assert ledger.judge(replace(claim, fails=0.5), points) == "does not hold"


GOOD = """
[[claim]]
id = "one"
paper = "niedoba2026"
where = "Section 1"
says = "So it is."
verdict = "not tested"
but = "For now."
"""
TEST = 'tests = [{table = "denoising", data = ["digits"], rule = "less", first = {}, second = 1}]\n'


class TestFiles:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("claim = ", "not a file of claims"),
            ("", "not a file of claims"),
            (GOOD + GOOD, "got one more than once"),
            (GOOD.replace('where = "Section 1"\n', ""), "one: got no where"),
            (GOOD + "chaptr = 'fpmc'", "one: a field: got 'chaptr', wanted one of id"),
            (GOOD.replace("niedoba2026", "niedoba"), "one: paper: got 'niedoba', wanted one of"),
            (GOOD.replace("not tested", "true"), "one: verdict: got 'true', wanted one of holds"),
            (GOOD.replace("not tested", "holds"), "one: a verdict takes tests or quotes"),
            (GOOD.replace('but = "For now."', ""), "'not tested' only a reason"),
            (GOOD + TEST, "'not tested' only a reason"),
            (GOOD + "holds = 0.2\nfails = 0.5", "got fails 0.5 and holds 0.2"),
        ],
    )
    def test_a_wrong_file_is_one_error(self, tmp_path, text, says):
        path = tmp_path / "claims.toml"
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(says)):
            ledger.read(path)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (("less", "lesser"), "one: rule: got 'lesser', wanted one of less, more"),
            (("second", "sceond"), "one: test 0: .*second"),
            (("first = {}", 'first = {method = "x"}'), "no rows of digits/denoising are as test 0"),
            (("first = {}", 'first = {column = "x"}'), "one: test 0: 'x'"),
        ],
    )
    def test_a_wrong_test_is_one_error(self, tmp_path, change, says):
        path = tmp_path / "claims.toml"
        path.write_text(GOOD.replace("not tested", "holds") + TEST.replace(*change))
        with pytest.raises(ValueError, match=says):
            ledger.points(ledger.read(path)[0])

    def test_what_is_shown_is_one_point(self):
        claim = replace(BY_TABLES[0], show={})
        with pytest.raises(ValueError, match="show: got 4 points, wanted one"):
            ledger.shown(claim, ledger.points(claim))
        with pytest.raises(ValueError, match="got no points"):
            ledger.judge(claim, [])
        with pytest.raises(ValueError, match="paper: got 'x', wanted one of"):
            page.rows(CLAIMS, "x")

    def test_numbers_are_told_to_their_error(self):
        assert page.told(Estimate(0.12834, 0.0027, 9)) == "0.1283 ± 0.0027"
        assert page.told(Estimate(5.8031, 0.12, 9)) == "5.80 ± 0.12"
        assert page.told(22.59) == "22.6"
