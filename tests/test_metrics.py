"Metrics against brute force, against other libraries, and against bad input."

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from triplet_fashion.metrics import (
    hard_triplets,
    knn_accuracy,
    nearest,
    random_triplets,
    retrieval_metrics,
    triplet_accuracy,
)
from triplet_fashion.verification import (
    Verification,
    calibrate_threshold,
    fit_threshold,
    pair_distances,
    verification_report,
)

METRICS = 'cosine', 'euclidean', 'sqeuclidean'
few = settings(max_examples=60, deadline=None, derandomize=True)


def distances(q, g, metric):
    "All distances from the definition, one pair at a time, as float32."

    def one(a, b):
        if metric == 'cosine':
            if not a.any() or not b.any():
                return 1.0
            u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
            return ((u - v) ** 2).sum() / 2
        d = ((a - b) ** 2).sum()
        return d if metric == 'sqeuclidean' else d**0.5

    q, g = np.asarray(q, float), np.asarray(g, float)
    return np.array([[one(a, b) for b in g] for a in q]).astype(np.float32)


def ranking(q, g, metric, own):
    "For each query the whole gallery in order: by distance, then index; itself left out."
    orders = np.argsort(distances(q, g, metric), axis=1, kind='stable')
    return [[j for j in o if not (own and j == i)] for i, o in enumerate(orders)]


def brute_figures(orders, ql, gl, ks):
    "Each figure as its definition reads."
    rows = []
    for o, label in zip(orders, ql):
        hit = [gl[j] == label for j in o]
        R = sum(hit)
        if not R:
            continue
        precision = [sum(hit[: i + 1]) / (i + 1) for i in range(len(hit))]

        def gain(hits):
            return sum(h / np.log2(i + 2) for i, h in enumerate(hits))

        rows.append(
            [float(any(hit[:k])) for k in ks]
            + [sum(hit[:k]) / k for k in ks]
            + [gain(hit[:k]) / gain([1] * min(k, R)) for k in ks]
            + [
                sum(p for p, h in zip(precision[:R], hit) if h) / R,
                sum(hit[:R]) / R,
                1 / (hit.index(True) + 1),
            ]
        )
    names = [f'{f}@{k}' for f in ('R', 'P', 'nDCG') for k in ks] + ['MAP@R', 'R-precision', 'MRR']
    return (
        dict(zip(names, np.mean(rows, axis=0)), queries=len(rows), skipped=len(ql) - len(rows))
        if rows
        else None
    )


# small whole numbers: copies, ties and zero rows on every draw
@st.composite
def problems(draw, gallery=True):
    d, n, m = draw(st.integers(1, 4)), draw(st.integers(2, 8)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    high = draw(st.sampled_from([1, 2, 50]))
    x, g = rng.integers(-high, high + 1, (n, d)), rng.integers(-high, high + 1, (m, d))
    scale = draw(st.sampled_from([1e-3, 1, 1000]))
    return (
        (x * scale).astype('float32'),
        rng.integers(0, 3, n),
        (g * scale).astype('float32'),
        rng.integers(0, 3, m),
    )


@few
@given(
    problems(),
    st.sampled_from(['euclidean', 'sqeuclidean']),
    st.booleans(),
    st.sampled_from([None, 1, 3]),
)
def test_figures_are_brute_force(problem, metric, own, chunk):
    q, ql, g, gl = problem
    expected = brute_figures(
        ranking(q, q if own else g, metric, own), ql, ql if own else gl, (1, 3, 40)
    )

    def call():
        return retrieval_metrics(
            q, ql, *(() if own else (g, gl)), ks=(1, 3, 40), metric=metric, chunk=chunk
        )

    if expected is None:
        with pytest.raises(ValueError, match='queries has a photo of its class'):
            call()
    else:
        result = call()
        assert list(result) == list(expected)
        np.testing.assert_allclose(list(result.values()), list(expected.values()), rtol=1e-12)


def test_late_ranks_are_counted_exactly():
    "First relevant photo far beyond K, among many copies at its very distance."
    g = np.concatenate(
        [np.full((30, 5), 0.3), np.full((50, 5), 0.7), np.full((20, 5), 0.9)]
    ).astype('float32')
    gl = np.zeros(100, int)
    gl[[60, 95]] = 1
    result = retrieval_metrics(np.zeros((1, 5)), [1], g, gl, ks=(1,), metric='euclidean')
    assert result.ranks.first.tolist() == [61] and result['MRR'] == 1 / 61 and result['MAP@R'] == 0


@few
@given(problems(), st.booleans())
def test_figures_with_ids_are_brute_force(problem, other_ids):
    q, ql, g, gl = problem
    qi, gi = np.arange(len(q)), (np.arange(len(g)) * (2 if other_ids else 1))
    orders = [
        [j for j in o if gi[j] != qi[i]] for i, o in enumerate(ranking(q, g, 'euclidean', False))
    ]
    expected = brute_figures(orders, ql, gl, (1, 3))

    def call():
        return retrieval_metrics(
            q, ql, g, gl, ks=(1, 3), metric='euclidean', query_ids=qi, gallery_ids=gi
        )

    if expected is None:
        with pytest.raises(ValueError, match='queries has a photo of its class'):
            call()
    else:
        np.testing.assert_allclose(list(call().values()), list(expected.values()), rtol=1e-12)


def test_chance_is_what_shuffled_galleries_score():
    rng = np.random.default_rng(0)
    ql, gl = np.array([0, 0, 1, 2]), np.repeat([0, 1, 2, 3], [1, 3, 4, 4])
    found = [
        retrieval_metrics(
            rng.random((4, 1)), ql, rng.random((12, 1)), gl, ks=(1, 3, 20), metric='euclidean'
        )
        for _ in range(3000)
    ]
    chance = found[0].chance
    for f, v in chance.items():
        draws = np.array([r[f] for r in found])
        assert v == pytest.approx(draws.mean(), abs=4.5 * draws.std() / 3000**0.5 + 1e-12), f


def test_parts_and_classes_of_the_figures():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(12), [5] * 10 + [1] * 2)
    result = retrieval_metrics(rng.normal(size=(12, 3))[y] + rng.normal(size=(52, 3)) * 0.5, y)
    part, table = result.where(y < 4), result.by_class()
    assert part['queries'] == 20 and part['MAP@R'] == pytest.approx(
        result.ranks.average_precision[y < 4].mean()
    )
    assert (
        sorted(table.column('class')) == list(range(12))
        and table.column('queries')[-2:] == [0, 0]
        and table.column('skipped')[-2:] == [1, 1]
    )
    assert table.column('MAP@R')[:10] == sorted(table.column('MAP@R')[:10])
    assert table[0]['MAP@R'] == pytest.approx(
        result.ranks.average_precision[y == table[0]['class']].mean()
    )
    assert result.by_class({c: f'p{c}' for c in range(12)})[0]['class'] == f"p{table[0]['class']}"
    with pytest.raises(ValueError, match='ask for K=50'):
        result.per_query('P@50')
    others = 'R@', 'R@0', 'P@1.5', 'R@-1', 'mrr', 1
    for wrong in ('Recall@5', 'MAP@0', 'macro', 'macro 5', 'foo', *others):
        for call in (result.per_query, result.interval):
            with pytest.raises(ValueError, match="is none of 'R@K'"):
                call(wrong)
    ready = (
        retrieval_metrics(np.eye(4), [0, 0, 1, 1], ks=2),
        retrieval_metrics(np.eye(4), [0, 0, 1, 1], ks=(1.0, 2.0)),
    )
    assert 'R@2' in ready[0] and ready[1].ks == (1, 2) and 'P@2' in ready[1]


def test_intervals_cover_what_they_should():
    "The 90 % interval of R@1 holds the value of the population in about nine of ten samples."
    rng, inside = np.random.default_rng(0), 0
    for _ in range(60):
        y = np.repeat(np.arange(60), 4)
        good = rng.random(60) < 0.6  # a product succeeds or fails as a whole
        x = np.where(good[y], y * 100.0, 1e6 + rng.permutation(240) * 1000.0)[:, None]
        low, high = retrieval_metrics(x, y, ks=(1,), metric='euclidean').interval('R@1', 0.9, 400)
        inside += low <= 0.6 + 0.4 * 3 / 239 + 0.02 and high >= 0.6 - 0.02
    assert 48 <= inside <= 60


def test_memory_is_bounded():
    "9,000 x 9,000 distances and their ranking are 648 MB each; the search stays far below."
    labels = np.arange(9000) // 4
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2250, 8))[labels] + rng.normal(size=(9000, 8)) * 0.1).astype('float32')
    tracemalloc.start()
    try:
        retrieval_metrics(x, labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6 + 60e6 * min(16, os.cpu_count())


def test_other_libraries_agree(referee):
    r = referee
    two = retrieval_metrics(r['qx'], r['qy'], r['gx'], r['gy'], metric='euclidean')
    one = retrieval_metrics(r['gx'], r['gy'], metric='euclidean')
    for mine, theirs in ((two, r['two']), (one, r['one'])):
        assert {k: mine[k] for k in theirs} == pytest.approx(theirs, abs=1e-6)
    assert (two['queries'], two['skipped'], one['skipped']) == (29, 2, 1)
    dist, index = nearest(r['qx'], r['gx'], k=4, metric='euclidean')
    np.testing.assert_allclose(dist, r['distances'], rtol=1e-6)
    np.testing.assert_array_equal(index, r['indices'])
    assert knn_accuracy(r['qx'], r['qy'], r['gx'], r['gy'], metric='euclidean') == pytest.approx(
        r['knn']
    )
    assert knn_accuracy(r['qx'], r['qy'], r['gx'], r['gy']) == pytest.approx(r['knn_cosine'])
    for args, theirs in (
        ((r['qx'], r['qy'], r['gx'], r['gy']), r['ranked_two'] | r['full_two']),
        ((r['gx'], r['gy']), r['ranked_one'] | r['full_one']),
    ):
        mine = retrieval_metrics(*args, metric='euclidean', names=list(theirs))
        assert {k: mine[k] for k in theirs} == pytest.approx(theirs, abs=1e-6)


@few
@given(problems(), st.integers(1, 8), st.booleans())
def test_knn_is_a_majority_vote(problem, k, own):
    q, ql, g, gl = problem
    voters = ql if own else gl
    k = min(k, len(voters) - own)
    right = 0
    for order, label in zip(ranking(q, q if own else g, 'euclidean', own), ql):
        near = [voters[j] for j in order[:k]]
        right += max(sorted(set(near)), key=near.count) == label
    assert knn_accuracy(q, ql, *(() if own else (g, gl)), k=k, metric='euclidean') == pytest.approx(
        right / len(ql)
    )


def test_a_vote_among_many_classes_stays_small():
    "20,000 queries and as many classes: a table of votes would be 3.2 GB."
    x, y = (
        np.random.default_rng(0).normal(size=(20_000, 2)).astype('float32'),
        np.arange(20_000) // 2,
    )
    tracemalloc.start()
    try:
        knn_accuracy(x[:2000], y[:2000], x, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120e6


def test_nobody_votes_for_himself():
    x, y = np.array([[0.0], [1.0], [5.0], [6.0]]), [0, 1, 2, 2]
    assert knn_accuracy(x, y, x, y, k=1, metric='euclidean') == 1
    assert (
        knn_accuracy(
            x, y, x, y, k=1, metric='euclidean', query_ids=list('abcd'), gallery_ids=list('abcd')
        )
        == 0.5
        == knn_accuracy(x, y, k=1, metric='euclidean')
    )


def test_numbers_and_text_never_match():
    x, words = np.eye(4), ['0', '0', '1', '1']
    assert retrieval_metrics(x, np.array(words, object), x, words)['R@1'] == 1
    with pytest.raises(ValueError, match='gallery_labels are text and query_labels are numbers'):
        retrieval_metrics(x, [0, 0, 1, 1], x, words)
    with pytest.raises(ValueError, match='query_labels are text and gallery_labels are numbers'):
        knn_accuracy(x, words, x, [0, 0, 1, 1], k=1)
    with pytest.raises(ValueError, match='query_ids are text'):
        nearest(x, x, k=1, query_ids=words, gallery_ids=range(4))


def test_retrieval_shows_its_definitions():
    result = retrieval_metrics([[0.0], [1.0], [5.0]], ['a', 'a', 'b'], ks=(1, 2))
    for text in (repr(result), result._repr_html_()):
        for name in ('R@1', 'R@2', 'MAP@R', 'R-precision', 'MRR', 'queries', 'skipped'):
            assert name in text
        assert 'among the 2 nearest' in text and 'left out' in text
    assert isinstance(result, dict) and json.loads(json.dumps(result)) == dict(result)
    assert result.per_query('R@2').tolist() == [1, 1]


def test_interval_covers_and_is_reproducible():
    rng = np.random.default_rng(0)
    y = np.arange(60) // 3
    result = retrieval_metrics(rng.normal(size=(20, 4))[y] + rng.normal(size=(60, 4)), y)
    low, high = result.interval('MAP@R')
    assert low < result['MAP@R'] < high and (low, high) == result.interval('MAP@R')
    wide = result.interval('MAP@R', level=0.99)
    assert wide[0] < low and high < wide[1]


def test_interval_draws_classes_not_photos():
    "Ten photos of a class that all succeed or all fail are worth one, not ten."
    y = np.repeat(np.arange(10), 10)
    x = np.where(y < 5, y * 100.0, 1000 + np.arange(100) * y % 7)[:, None]
    result = retrieval_metrics(x, y, metric='euclidean')
    low, high = result.interval('R@1')
    naive = 1.96 * result.per_query('R@1').std() / 10
    assert (high - low) / 2 > 1.5 * naive


@few
@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 9))
def test_random_triplets_are_triplets(labels, seed):
    labels = np.array(labels)
    sizes = np.bincount(labels)
    if np.count_nonzero(sizes) < 2 or sizes.max() < 2:
        with pytest.raises(ValueError, match='labels'):
            random_triplets(labels, 5, seed)
        return
    a, p, n = random_triplets(labels, 200, seed)
    assert (a != p).all() and (labels[a] == labels[p]).all() and (labels[a] != labels[n]).all()
    for u, v in zip((a, p, n), random_triplets(labels, 200, seed)):
        np.testing.assert_array_equal(u, v)


def test_random_triplets_reach_everything_evenly():
    labels = np.array(list('aaabbbbbbbc'))
    a, p, n = random_triplets(labels, 30_000, seed=1)
    assert np.isin(a, np.arange(10)).all() and set(n) == set(range(11))
    assert abs((labels[a] == 'a').mean() - 0.5) < 0.02  # classes evenly, not photos
    pairs = np.unique(np.stack([a, p])[:, labels[a] == 'a'], axis=1, return_counts=True)
    assert pairs[0].shape[1] == 6 and pairs[1].min() > 0.9 * pairs[1].mean()
    assert abs((n == 10).mean() - 0.5) < 0.02


def test_triplet_accuracy_and_the_seeds_criterion():
    def code(d2):
        return np.full((1, 128), (d2 / 128) ** 0.5)

    o = code(0)
    assert (
        triplet_accuracy(o, code(60), code(10)) == 0
        and triplet_accuracy(o, code(60), code(10), criterion='original') == 1
    )
    assert (
        triplet_accuracy(o, code(1), code(127.5)) == 1
        and triplet_accuracy(o, code(1), code(127.5), criterion='original') == 0
    )
    assert triplet_accuracy(o, o, o) == 0.5 and triplet_accuracy(o, o, o, criterion='original') == 1
    rng = np.random.default_rng(0)
    a, p, n = rng.random((3, 500, 8)).round(2)
    near, far = ((a - p) ** 2).sum(1), ((a - n) ** 2).sum(1)
    for N in (None, 3):
        w = N or 8
        with np.errstate(all='ignore'):
            written = -np.log(1 - near / w) < -np.log(1 - (w - far) / w)
        assert triplet_accuracy(a, p, n, criterion='original', N=N) == pytest.approx(
            written.mean(), abs=0.002
        )
    with pytest.raises(ValueError, match="'best' is neither"):
        triplet_accuracy(a, p, n, criterion='best')
    with pytest.raises(ValueError, match='one shape'):
        triplet_accuracy(a, p, n[:5])


x, y, nan = np.eye(4), [0, 0, 1, 1], np.where(np.eye(4)[:, :1] > 0, np.nan, np.eye(4))


@pytest.mark.parametrize(
    'call,message',
    [
        (lambda: nearest(x, k=0), 'k=0'),
        (lambda: nearest(x, k=1.5), 'k=1.5: give a whole number'),
        (lambda: nearest(x * 1j, k=1), 'query must be an array of numbers'),
        (lambda: retrieval_metrics(x, y, ks=()), 'ks holds no K'),
        (lambda: retrieval_metrics(x, y, ks=(1, 2.5)), 'ks=2.5: give a whole number from 1'),
        (lambda: retrieval_metrics(x, y).interval('R@1', level=95), 'level=95: give the share'),
        (lambda: verification_report([1, 2], [2, 3]).interval('auc', level=95), 'level=95'),
        (lambda: verification_report([1], [2]).fnmr_at(-1), 'fmr=-1'),
        (lambda: verification_report([1], [2]).fnmr_at(2), 'fmr=2'),
        (lambda: Verification([1], [2], float('nan')), 'threshold is NaN'),
        (lambda: pair_distances(x, y, n=0), 'n=0'),
        (lambda: nearest(x, x[:, :3], k=1), '4 columns and gallery 3'),
        (lambda: nearest(x[0], k=1), r'query must be \(n, d\)'),
        (lambda: nearest(x, x[:0], k=1), r'gallery must be \(n, d\)'),
        (lambda: nearest([['a']], k=1), 'query must be an array of numbers'),
        (lambda: nearest(nan, k=1), 'query: 1 of 4 embeddings hold NaN'),
        (lambda: nearest(x, np.r_[nan, nan], k=1), 'gallery: 2 of 8 embeddings hold NaN'),
        (lambda: nearest(x, k=1, metric='manhattan'), "metric 'manhattan' is not one of cosine"),
        (lambda: nearest(x, x[:2], k=1, exclude_self=True), 'there are 4 and 2'),
        (
            lambda: retrieval_metrics(x, y[:3]),
            r'query_labels must hold one label a photo, shape \(4,\)',
        ),
        (lambda: retrieval_metrics(x, y, x, y[:3]), 'gallery_labels must hold'),
        (lambda: retrieval_metrics(x, y, x), 'come together'),
        (lambda: retrieval_metrics(x, y, ks=(0,)), 'ks=0: give a whole number from 1'),
        (lambda: retrieval_metrics(x, [0, 1, 2, 3]), 'none of the 4 queries'),
        (lambda: knn_accuracy(x, y, x, y[:3], k=2), 'gallery_labels must hold'),
        (lambda: knn_accuracy(x, y, k=4), 'k=4, but the gallery offers 3'),
        (lambda: triplet_accuracy(nan, x, x), 'a: 1 of 4 embeddings'),
        (lambda: random_triplets([1, 1, 1], 2), '1 class'),
        (lambda: random_triplets([1, 2, 3], 2), 'none of the 3 classes has two photos'),
        (lambda: verification_report([], [1]), 'distances_same holds no distance'),
        (
            lambda: verification_report([1], [np.nan, 2]),
            'distances_different: 1 of 2 distances are NaN',
        ),
        (lambda: calibrate_threshold([1], [2], fmr=-1), 'fmr=-1'),
        (lambda: calibrate_threshold([1], [2], fmr='best'), "fmr='best'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# labels are whatever the user has

TABLES = {
    'text': list('aabb'),
    'EAN': [4006381333931, 4006381333931, 8711327331234, 8711327331234],
    'int64': np.array([2**40, 2**40, 2**40 + 2**32, 2**40 + 2**32]),
    'numpy text': np.array(list('aabb')),
    'objects': np.array(list('aabb'), object),
    'floats': [1.0, 1.0, 2.0, 2.0],
}
LABELLED = {
    'retrieval_metrics': lambda y: retrieval_metrics(x, y),
    'knn_accuracy': lambda y: knn_accuracy(x, y, k=1),
    'random_triplets': lambda y: random_triplets(y, 5),
    'hard_triplets': lambda y: hard_triplets(x, y),
    'pair_distances': lambda y: pair_distances(x, y),
    'fit_threshold': lambda y: fit_threshold(np.r_[x, x], [*y, *(f'{v}!' for v in y)]),
}


@pytest.mark.parametrize('call', LABELLED)
def test_missing_labels_are_named_and_never_a_product(call):
    for y in (
        ['a', None, 'a', None],
        np.array([1, np.nan, 1, np.nan]),
        np.array(['a', np.nan, 'a', np.nan], object),
        ['a', '', 'a', ''],
    ):
        if call == 'fit_threshold' and not isinstance(y, list):
            continue
        with pytest.raises(
            ValueError,
            match='labels: 2 of .* photos have no label'
            if call != 'fit_threshold'
            else 'labels: 2 of 8',
        ):
            LABELLED[call](y)
    with pytest.raises(ValueError, match='labels mix text'):
        LABELLED['retrieval_metrics'](['a', 1, 'a', 1])


@pytest.mark.parametrize('kind', TABLES)
def test_every_kind_of_label_is_kept(kind):
    y = TABLES[kind]
    points = np.array([[0.0, 1], [0.1, 1], [1, 0], [1, 0.1]])
    assert retrieval_metrics(points, y)['R@1'] == knn_accuracy(points, y, k=1) == 1
    assert [str(v) for v in retrieval_metrics(points, y).by_class().column('class')] == sorted(
        {str(int(v) if isinstance(v, float) else v) for v in y}
    )
    p = hard_triplets(points, y).positive
    assert p.tolist() == [1, 0, 3, 2] and len(pair_distances(points, y)[0]) == 2


def test_labels_of_pandas():
    pd = pytest.importorskip('pandas')
    for column in (
        pd.Series(list('aabb'), index=[9, 8, 7, 6]),
        pd.Series(list('aabb')).astype('category'),
        pd.array([1, 1, 2, 2], dtype='Int64'),
    ):
        assert (
            retrieval_metrics(np.array([[0.0, 1], [0.1, 1], [1, 0], [1, 0.1]]), column)['R@1'] == 1
        )
    with pytest.raises(
        ValueError, match='query_labels: 1 of 4 photos have no label, the first at position 1'
    ):
        retrieval_metrics(x, pd.array([1, None, 2, 2], dtype='Int64'))


def test_a_gallery_photo_without_label_is_nobodys_hit():
    q, g = np.array([[0.0, 1], [1, 0]]), np.array([[0.0, 1], [0.1, 1], [1, 0], [1, 0.1]])
    known = retrieval_metrics(q, ['a', 'b'], g, ['a', 'a', 'b', 'b'], ks=(1,))
    some = retrieval_metrics(q, ['a', 'b'], g, [None, 'a', 'b', float('nan')], ks=(1,))
    assert (
        known['R@1'] == 1
        and some.ranks.first.tolist() == [2, 1]
        and some.ranks.relevant.tolist() == [1, 1]
    )
    with pytest.raises(ValueError, match='gallery_labels: 1 of 4'):
        knn_accuracy(q, ['a', 'b'], g, [None, 'a', 'b', 'b'], k=1)
    with pytest.raises(ValueError, match='none of the 2 queries'):
        retrieval_metrics(q, ['a', 'b'], g, [None] * 4)


def test_both_forms_of_a_name_are_one():
    points = np.array([[0.0, 1], [0.1, 1], [1, 0], [1, 0.1]])
    y = ['Caf\u00e9', 'Cafe\u0301', 'hat', 'hat']
    assert (
        retrieval_metrics(points, y)['queries'] == 4
        and retrieval_metrics(points[:2], y[:2], points[2:], ['Cafe\u0301', 'x'])['queries'] == 2
    )
    v = Verification(
        [1, 2], [3, 4], products=(['Caf\u00e9', 'hat'], [['Cafe\u0301', 'hat'], ['x', 'hat']])
    )
    assert v.interval('auc', n=5)
    for products in (
        (['a', None], [['a', 'b']] * 2),
        (['a', 1], [['a', 'b']] * 2),
        (['a', 'b'], [[1, 2]] * 2),
        (['a'], [['a', 'b']] * 2),
        (['a', 'b'], ['a', 'b']),
        3,
    ):
        with pytest.raises(ValueError, match='product'):
            Verification([1, 2], [3, 4], products=products)


def test_numbers_that_mean_nothing_are_named():
    for v in (0, -1, float('nan'), 1.5, None, 'many', True):
        for call in (
            lambda: nearest(x, k=v),
            lambda: knn_accuracy(x, y, k=v),
            lambda: pair_distances(x, y, n=v),
        ):
            with pytest.raises(ValueError, match='[kn]=.*give a whole number from 1'):
                call()
    with pytest.raises(ValueError, match='n=-1'):
        random_triplets(y, -1)
    with pytest.raises(ValueError, match='class_names has no name for the label 1'):
        retrieval_metrics(np.eye(4), y).by_class(['a'])


def test_metrics_need_only_numpy():
    heavy = 'tensorflow', 'keras', 'matplotlib', 'PIL'
    code = f'import sys, triplet_fashion.metrics; print([m for m in {heavy} if m in sys.modules])'
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert out.stdout.strip() == '[]', out.stderr
