"Same or not against brute force and scikit-learn: rates, thresholds, intervals, pictures."

import json
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from triplet_fashion.verification import (
    Verification,
    calibrate_threshold,
    fit_threshold,
    pair_distances,
    verification_report,
)

few = settings(max_examples=60, deadline=None, derandomize=True)


def test_scikit_learn_agrees_on_pairs(referee):
    r = referee
    report = verification_report(r['same'], r['different'])
    assert report.auc == pytest.approx(r['auc'], abs=1e-12)
    np.testing.assert_allclose(
        np.unique(np.stack([report.fmr, 1 - report.fnmr]), axis=1),
        np.unique(r['roc'], axis=1),
        atol=1e-12,
    )
    for rate, miss in r['fnmr_at'].items():
        assert report.fnmr_at(float(rate)) == pytest.approx(miss)
    for at, (precision, recall, f1) in r['decided'].items():
        assert report.decisions(float(at)) == pytest.approx((precision, recall, f1), abs=1e-12)
    assert report.decisions(report.best_f1).f1 == pytest.approx(r['f1'], abs=1e-12)
    t = calibrate_threshold(r['same'], r['different'], fmr='f1')
    right, wrong = (r['same'] < t).sum(), (r['different'] < t).sum()
    assert 2 * right / (right + wrong + len(r['same'])) == pytest.approx(
        r['f1']
    ) and t == pytest.approx(r['f1_threshold'], abs=0.5)


@few
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
)
def test_verification_is_brute_force(same, different):
    report = verification_report(same, different)
    s, d = np.array(same), np.array(different)
    auc = np.mean([(a < b) + 0.5 * (a == b) for a in s for b in d])
    assert report.auc == pytest.approx(auc)
    thresholds = np.arange(-1, 11.5, 0.5)
    right = [((s < t).mean() + (d >= t).mean()) / 2 for t in thresholds]
    assert report.accuracy == pytest.approx(max(right))
    t = report.threshold
    assert ((s < t).mean() + (d >= t).mean()) / 2 == pytest.approx(max(right))
    worst = np.maximum(report.fmr, report.fnmr).min()
    assert (
        report.eer <= worst + 1e-12
        and report.eer >= np.minimum(report.fmr, report.fnmr).max() - 1e-12
    )
    for rate in (0, 0.1, 0.5, 1):
        t = calibrate_threshold(s, d, fmr=rate)
        assert (d < t).mean() <= rate
        larger = [
            u for u in thresholds if u > t and not np.array_equal(s < u, s < t)
        ]  # no larger one would find more
        assert all((d < u).mean() > rate for u in larger)


def test_verification_by_hand():
    report = verification_report(np.arange(100), np.arange(100) + 50.0)
    assert report.eer == pytest.approx(0.25, abs=0.01) and report.auc == pytest.approx(
        0.875, abs=0.01
    )
    assert calibrate_threshold(np.arange(100), np.arange(100) + 50.0, fmr='eer') == pytest.approx(
        75, abs=1
    )
    assert (
        verification_report([0, 1], [2, 3]).eer == 0
        and verification_report([2, 3], [0, 1]).eer == 1
    )
    assert calibrate_threshold([0, 1], [2, 3]) == 1.5
    for text in (repr(report), report._repr_html_()):
        assert 'EER' in text and 'threshold' in text


def test_fit_threshold_judges_on_other_products():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(40), 5)
    x = rng.normal(size=(40, 8))[y] + rng.normal(size=(200, 8)) * 0.4
    a, b = (fit_threshold(x, y, fmr=0.05, seed=3) for _ in range(2))
    assert (
        float(a) == a.value == b.value
        and a.interval == b.interval
        and a.interval[0] <= a.value <= a.interval[1]
    )
    assert not np.intersect1d(np.unique(a.fitted.products[0]), np.unique(a.judged.products[0])).size
    assert not np.intersect1d(a.fitted.products[1], a.judged.products[1]).size and a.products == [
        20,
        20,
    ]
    assert (
        a.value == calibrate_threshold(a.fitted.same, a.fitted.different, 0.05)
        and a.judged.threshold == a.value
    )
    assert a.fitted.at(a.value)[0] <= 0.05 and 0 < a.judged.at(a.value)[0] < 0.15
    note = json.loads(json.dumps(a.note()))
    assert (
        note['value'] == a.value
        and note['metric'] == 'cosine'
        and note['rule'] == 0.05
        and note['judged_on'] == 20
    )
    for rule in (None, 'eer', 'f1'):
        assert fit_threshold(x, y, fmr=rule).rule == rule
    assert '95 % interval' in repr(a) and 'judged on' in a._repr_html_()
    with pytest.raises(ValueError, match='two others to be judged on'):
        fit_threshold(x[:15], y[:15])
    few, wide = (
        fit_threshold(x[:20], y[:20], level=0.9),
        fit_threshold(x, y, fmr=0.05, seed=3, level=0.9),
    )
    assert (
        'too narrow: few products' in repr(few)
        and 'too narrow' not in repr(a)
        and '90 % interval' in repr(wide)
    )


def test_verification_intervals_redraw_products():
    "With few products the interval is wide; without knowing them it is far too narrow."
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(8), 20)
    x = rng.normal(size=(8, 4))[y] + rng.normal(size=(160, 4)) * 0.6
    s, d, a, b = pair_distances(x, y, 4000, products=True)
    assert (
        s.size == a.size == 1520
        and b.shape == (d.size, 2)
        and 3000 < d.size < 4000
        and (b[:, 0] != b[:, 1]).all()
    )  # all pairs of a product; of the others some
    known, unknown = Verification(s, d, products=(a, b)), Verification(s, d)
    for f in ('auc', 'eer', 'accuracy', 'threshold'):
        low, high = known.interval(f, n=100)
        value = getattr(known, f)
        assert low <= value <= high and (low, high) == known.interval(f, n=100)
        if f != 'threshold':
            assert high - low > 2 * np.diff(unknown.interval(f, n=100))[0]
    with pytest.raises(ValueError, match="figure 'best'"):
        known.interval('best', n=2)


def test_verification_plots():
    plt = pytest.importorskip('matplotlib.pyplot')
    report = verification_report([0, 1, 5], [2, 3, 6])
    left, middle, right = report.plot()
    (line,) = left.lines
    assert set(line.get_xdata()) == {report.threshold} == {1.5} and 'threshold 1.5' in [
        t.get_text() for t in left.get_legend().get_texts()
    ]
    assert (
        left.get_xlabel() == 'distance'
        and sum(b.get_xy()[:, 1].max() > 0 for b in left.patches) == 2
    )  # two distributions
    roc, chance, dot = middle.lines
    np.testing.assert_array_equal(roc.get_xydata(), np.stack([report.fmr, 1 - report.fnmr], axis=1))
    assert (
        dot.get_xydata().tolist() == [[0, pytest.approx(2 / 3)]]
        and 'AUC 0.778' in middle.get_title()
    )
    curve, dot = right.lines
    low, third = (
        NormalDist().inv_cdf(rate) for rate in (5e-5, 1 / 3)
    )  # no rate is below 1 in 20,000
    assert right.get_title() == 'DET' and dot.get_xydata().tolist() == [
        [pytest.approx(low), pytest.approx(third)]
    ]
    assert (np.diff(curve.get_xdata()) >= 0).all() and (np.diff(curve.get_ydata()) <= 0).all()
    plt.close('all')


def test_pair_distances_are_of_the_pairs_they_say():
    labels = np.array([0, 0, 1, 1])
    x = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    same, different = pair_distances(x, labels, n=50)
    assert (
        same.shape == (2,)
        and different.shape == (4,)
        and 0 < same.min()
        and same.max() < different.min()
    )
    assert set(pair_distances(x, labels, 50, 'sqeuclidean')[0]) == {np.float32(0.1 * 0.1)}


@few
@given(st.lists(st.integers(0, 4), min_size=3, max_size=25), st.sampled_from([1, 10, 60, 10_000]))
def test_no_pair_is_measured_twice(labels, n):
    labels = np.array(labels)
    if len(set(labels)) < 2 or np.bincount(labels).max() < 2:
        return
    all_gather_rows = [
        {
            (i, j)
            for i in range(len(labels))
            for j in range(i + 1, len(labels))
            if (labels[i] == labels[j]) == same
        }
        for same in (True, False)
    ]
    x = 2.0 ** np.arange(len(labels))[:, None]  # each distance is that of one pair only
    pair_of = {
        float(abs(x[i, 0] - x[j, 0])): (i, j)
        for i in range(len(labels))
        for j in range(i + 1, len(labels))
    }
    for found, there in zip(pair_distances(x, labels, n, 'euclidean'), all_gather_rows):
        pairs = [pair_of[d] for d in found.tolist()]
        assert len(set(pairs)) == len(pairs) <= n and set(pairs) <= there
        assert len(pairs) == len(there) if len(there) <= n else pairs


@few
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.sampled_from([1.0, 0.1, 1 / 3, 1e-40]),
    st.booleans(),
)
def test_thresholds_are_the_best_there_are(same, different, scale, half):
    "The chosen threshold is the best of all: in float32 too, where NumPy rounds to compare."
    s, d = (
        np.array(o, np.float32 if half else float) * np.float32(scale)
        if half
        else np.array(o) * scale
        for o in (same, different)
    )
    every = [-np.inf, *np.unique(np.concatenate([s, d])), np.inf]

    def f1(t):
        return 2 * (s < t).sum() / ((s < t).sum() + (d < t).sum() + len(s))

    def right(t):
        return (s < t).mean() + (d >= t).mean()

    assert f1(calibrate_threshold(s, d, 'f1')) == max(map(f1, every))
    assert right(calibrate_threshold(s, d)) == pytest.approx(max(map(right, every)))
    t = calibrate_threshold(s, d, 'eer')
    assert (d < t).mean() >= (s >= t).mean() and not any(
        (d < u).mean() >= (s >= u).mean()
        for u in every
        if (s < u).sum() + (d < u).sum() < (s < t).sum() + (d < t).sum()
    )


def test_a_threshold_knows_how_sure_it_is():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(8), 20)
    *pairs, a, b = pair_distances(
        rng.normal(size=(8, 4))[y] + rng.normal(size=(160, 4)) * 0.6, y, 4000, products=True
    )
    alone, known = (
        calibrate_threshold(*pairs, fmr='eer'),
        calibrate_threshold(
            distances_same=pairs[0], distances_different=pairs[1], fmr='eer', products=(a, b)
        ),
    )
    assert (
        isinstance(alone, float)
        and json.loads(json.dumps(alone)) == alone == known
        and repr(alone) == repr(float(alone))
    )
    for t in (alone, known):
        assert t.interval[0] <= t <= t.interval[1]
    assert np.diff(known.interval) > 2 * np.diff(alone.interval)


def test_few_pairs_cannot_speak_of_rare_errors():
    says = {
        r['figure']: r['meaning']
        for r in verification_report(
            distances_same=[1, 2], distances_different=np.arange(200)
        ).table()
    }
    assert (
        'too few' not in says['FNMR at FMR 0.01']
        and '200 different pairs are too few to tell 0.1% from none' in says['FNMR at FMR 0.001']
    )


def test_precision_is_that_of_a_catalog_with_so_many_same_pairs():
    "Where pairs are repeated until one in five is the same, precision is what `at_share` says."
    rng = np.random.default_rng(0)
    same, different = rng.normal(1, 1, 40) ** 2, rng.normal(2, 1, 40) ** 2
    drawn = Verification(same, different)
    mixed = Verification(same, np.tile(different, 4))
    for t in (0.1, 1.0, 3.0):
        assert drawn.decisions(t, at_share=0.2) == pytest.approx(mixed.decisions(t))
        assert drawn.decisions(t).recall == 1 - drawn.at(t)[1]
    none = drawn.decisions(-1)
    assert np.isnan(none.precision) and (none.recall, none.f1) == (0, 0)
    for share in (0, 1, -0.1, 2):
        with pytest.raises(ValueError, match='at_share=.*between 0 and 1'):
            drawn.decisions(at_share=share)


@few
@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_no_threshold_has_a_larger_f1(same, different):
    report = Verification(same, different)
    best = report.decisions(report.best_f1).f1
    assert all(report.decisions(t).f1 <= best + 1e-12 for t in np.arange(-1, 11) + 0.5)
    for figure in ('precision', 'recall', 'F1', 'largest F1'):
        assert figure in repr(report)
