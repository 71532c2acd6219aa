"""The page of a comparison: statistics against SciPy, its contents, no request to the network."""

import html.parser
import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from tests.test_report import write_run
from vit_jax import provenance
from vit_jax.errors import UserError
from vit_jax.report import report
from vit_jax.reporting.comparison import difference, lower_is_better
from vit_jax.reporting.curves import training_hours
from vit_jax.reporting.groups import Group
from vit_jax.reporting.paper_tables import best_of, paper_table
from vit_jax.reporting.runs import Curve, RunRecord

METRIC = "zeroshot/a/top1"
GOOD, BAD = (0.71, 0.74, 0.7, 0.75), (0.5, 0.52, 0.49, 0.54)


def group(name, values, seeds=None, metric=METRIC):
    seeds = range(len(values)) if seeds is None else seeds
    pairs = zip(values, seeds, strict=True)
    return Group(
        name, [RunRecord(name, {"seed": seed}, {metric: Curve([1], [x])}) for x, seed in pairs]
    )


def test_pairs_of_seeds_equal_scipy():
    found = difference(group("a", GOOD), group("b", BAD), METRIC)
    expected = stats.ttest_rel(GOOD, BAD)
    interval = expected.confidence_interval(0.95)
    assert found.paired
    np.testing.assert_allclose(found.interval, (interval.low, interval.high), rtol=1e-12)
    np.testing.assert_allclose(found.mean, np.mean(GOOD) - np.mean(BAD), rtol=1e-12)
    assert found.is_noise is False


def test_other_seeds_equal_scipy():
    found = difference(group("a", GOOD), group("b", BAD, seeds=range(10, 14)), METRIC)
    interval = stats.ttest_ind(GOOD, BAD, equal_var=False).confidence_interval(0.95)
    assert not found.paired
    np.testing.assert_allclose(found.interval, (interval.low, interval.high), rtol=1e-12)


def test_noise_and_too_few_seeds():
    assert difference(group("a", GOOD), group("b", (0.7, 0.76, 0.73, 0.7)), METRIC).is_noise
    one = difference(group("a", GOOD[:1]), group("b", BAD), METRIC)
    assert (one.interval, one.is_noise) == (None, None)
    assert difference(group("a", GOOD), group("b", BAD, metric="x"), METRIC) is None
    same = difference(group("a", GOOD), group("b", GOOD), METRIC)
    assert same.is_noise
    np.testing.assert_allclose(same.interval, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("zeroshot/loss/top1", False),
        ("validation_loss/a/loss", True),
        ("retrieval/a/image_to_text_median_rank", True),
        ("zeroshot/a/ece", True),
        ("zeroshot/a/mean_per_class_recall", False),
    ],
)
def test_direction_of_a_metric(metric, lower):
    assert lower_is_better(metric) is lower


def test_training_hours():
    """Ten steps of 360 examples at 1 example per second are an hour, ten at 2 half of it."""
    run = RunRecord("a", {"batch_size": 360}, {"examples_per_second": Curve([10, 20], [1.0, 2.0])})
    np.testing.assert_allclose(training_hours(run, np.array([0, 5, 10, 20])), [0, 0.5, 1, 1.5])


@pytest.fixture
def runs(tmp_path):
    folders = []
    for name, values in (("bad", BAD), ("<b>good", GOOD)):
        for seed, value in enumerate(values):
            config = {"seed": seed, "batch_size": 8, "optim": {"name": name}}
            rows = [
                {"step": step, "loss": 3.0 - step, "examples_per_second": 4.0} for step in (1, 2)
            ]
            rows.append({"step": 2, METRIC: value})
            folders.append(str(write_run(tmp_path / f"{name},seed={seed}", config, rows)))
    return folders


class Links(html.parser.HTMLParser):
    """Collects what a browser would load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        """Notes sources, and links of style sheets."""
        self.found += [v for k, v in attrs if k == "src" or (k == "href" and tag == "link")]


def test_the_page_tells_the_difference_and_loads_nothing(runs, tmp_path, capsys):
    path = tmp_path / "report.html"
    provenance.record(runs[0])
    starts = pathlib.Path(runs[0]) / "provenance" / "starts.jsonl"
    start = {**json.loads(starts.read_text()), "changes": "1234.diff", "commit": "abcdef0123456789"}
    starts.write_text(starts.read_text() + json.dumps(start) + "\n")
    (starts.parent / "1234.diff").write_text("-x < 1\n+x < 2\n" + "y" * 30_000)
    assert report(runs, html=str(path)) == []
    assert str(path) in capsys.readouterr().out
    page = path.read_text()
    parser = Links()
    parser.feed(page)
    assert parser.found == []
    assert path.stat().st_size < 5e6
    assert "8 runs in 2 variants" in page
    assert "&lt;b&gt;good" in page
    assert "<b>good" not in page.partition("<body>")[2].partition("<h2>Curves")[0]
    assert "8 x cpu" in page
    assert "<td>bad,seed=0</td><td>2</td>" in page  # two starts
    assert "abcdef0123 and changes" in page
    assert "<summary>Uncommitted changes of bad,seed=0</summary>" in page
    assert "-x &lt; 1\n+x &lt; 2\nyyy" in page
    assert "10,014 more characters in" in page
    mean = np.mean(GOOD) - np.mean(BAD)
    assert f'<span class="better">{mean:+.4f} [' in page


def test_tables_for_papers(runs, capsys):
    """Two variants of four seeds: mean and standard deviation, the best in bold."""
    report(runs, table="latex")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        r"\begin{tabular}{lrr}", r"\toprule", r" & bad (4 seeds) & <b>good (4 seeds) \\",
    ]  # fmt: skip
    good, bad = (f"{np.mean(x):.4f} ± {np.std(x, ddof=1):.4f}" for x in (GOOD, BAD))
    assert lines[4:] == [rf"zeroshot/a/top1 & {bad} & \textbf{{{good}}} \\", r"\bottomrule",
                         r"\end{tabular}"]  # fmt: skip
    report(runs, table="markdown")
    assert capsys.readouterr().out.splitlines() == [
        "| metric | bad (4 seeds) | &lt;b&gt;good (4 seeds) |",
        "| --- | ---: | ---: |",
        f"| zeroshot/a/top1 | {bad} | **{good}** |",
    ]


def test_names_in_tables_are_escaped_and_differ():
    groups = [group("a_1|x", (0.5,)), group("a_1|x", (0.5,)), group("b", (0.75,), metric="p/a/ece")]
    text = paper_table(groups, "latex")
    assert r" & a\_1|x & a\_1|x \#2 & b \\" in text
    assert "textbf" not in text
    assert "| a_1&#124;x | a_1&#124;x #2 | b |" in paper_table(groups, "markdown")
    assert best_of([group("a", (0.3,)), group("b", (0.2,))], METRIC) == [True, False]
    lower = [group("a", (0.3,), metric="p/a/loss"), group("b", (0.2,), metric="p/a/loss")]
    assert best_of(lower, "p/a/loss") == [False, True]
    with pytest.raises(UserError, match="no table: expected runs with metrics of evaluations"):
        paper_table([group("a", (0.3,), metric="loss")], "latex")


def test_a_baseline_that_is_better(runs):
    (line,) = report(runs[:4], baseline=runs[4:])
    assert line == "bad: zeroshot/a/top1 is worse by 0.2125"
    assert report(runs[4:], baseline=runs[:4]) == []
    with pytest.raises(UserError, match="--baseline: expected runs that differ by their seed"):
        report(runs[:1], baseline=runs[3:5])
