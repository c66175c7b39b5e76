"The exact search against brute force: ties, copies, ids, blocks, threads, memory; hard triplets."

import itertools
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from test_metrics import METRICS, distances, problems, ranking

from triplet_fashion import neighbors
from triplet_fashion.labels import join_labels
from triplet_fashion.metrics import random_triplets, retrieval_metrics, triplet_accuracy
from triplet_fashion.neighbors import NeighborSearch, nearest
from triplet_fashion.ranking import Relevance
from triplet_fashion.triplets import hard_triplets, has_triplets

few = settings(max_examples=60, deadline=None, derandomize=True)


@few
@given(problems(), st.sampled_from(METRICS), st.booleans(), st.sampled_from([None, 1, 3]))
def test_nearest_is_brute_force(problem, metric, own, chunk):
    q, _, g, _ = problem
    k = len(q) - 1 if own else len(g)
    dist, index = nearest(q, None if own else g, k=k, metric=metric, chunk=chunk)
    expected = ranking(q, q if own else g, metric, own)
    full = distances(q, q if own else g, metric)
    assert dist.dtype == np.float32 and dist.shape == index.shape == (len(q), k)
    np.testing.assert_allclose(dist, np.take_along_axis(full, index, 1), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(
        dist, np.take_along_axis(full, np.array(expected), 1), rtol=1e-6, atol=1e-12
    )
    if metric != 'cosine':
        assert index.tolist() == expected  # whole numbers: every tie is a true tie
    tied = np.diff(dist, axis=1) == 0
    assert (np.diff(dist, axis=1) >= 0).all() and (np.diff(index, axis=1)[tied] > 0).all()


def test_close_pairs_keep_their_order():
    "Differences far below what float32 products resolve."
    base = np.linspace(1, 2, 64, dtype=np.float64) * 1000
    g = base + np.array([4e-7, 1e-7, 3e-7, 2e-7])[:, None]
    dist, index = nearest(base[None], g, k=4, metric='euclidean')
    assert index.tolist() == [[1, 3, 2, 0]]
    np.testing.assert_allclose(dist[0], np.array([1, 2, 3, 4]) * 1e-7 * 8, rtol=1e-3)


def test_copies_come_in_order_wherever_they_lie():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 33)).astype('float32')
    g = np.tile(x, (25, 1))
    dist, index = nearest(x, g, k=25)
    assert (dist == 0).all() and (index == np.arange(40)[:, None] + 40 * np.arange(25)).all()


def test_collapsed_embeddings_are_ranked_by_index():
    x = np.full((30, 8), 0.5, 'float32')
    dist, index = nearest(x, k=3)
    assert (dist == 0).all() and index[:2].tolist() == [[1, 2, 3], [0, 2, 3]]


@pytest.mark.parametrize('shape', [(1, 7), (13, 7), (1000, 7)])
def test_chunks_change_nothing(shape):
    rng = np.random.default_rng(1)
    q, g = rng.normal(size=shape).astype('float32'), rng.normal(size=(311, 7)).astype('float32')
    a, b = nearest(q, g, k=9), nearest(q, g, k=9, chunk=4)
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('spread', [1, 1e-3, 1e-6])
def test_blocks_groups_and_repairs_are_exact(metric, spread):
    "Several blocks, groups of many columns, copies, an offset: against all distances in float64."
    rng = np.random.default_rng(0)
    g = rng.normal(size=(40_000, 6))
    g[rng.integers(0, 40_000, 4000)] = g[rng.integers(0, 40_000, 4000)]
    g[::7] = g[3] + rng.normal(size=g[::7].shape) * 1e-4
    g, q = (
        (5 + g * spread).astype('float32'),
        (5 + rng.normal(size=(30, 6)) * spread).astype('float32'),
    )
    q[:9] = g[:18:2]
    dist, index = nearest(q, g, k=12, metric=metric)
    for i in range(len(q)):
        full = (
            NeighborSearch(g, metric)
            .queries(q[i : i + 1])
            .distances(np.zeros(len(g), int), np.arange(len(g)))
        )
        order = np.lexsort((np.arange(len(g)), full))[:12]
        assert index[i].tolist() == order.tolist() and (dist[i] == full[order]).all()
    np.testing.assert_allclose(
        dist[:3],
        np.take_along_axis(
            distances(q[:3], g[index[:3]].reshape(-1, 6), metric), np.arange(36).reshape(3, 12), 1
        ),
        rtol=2e-6,
        atol=1e-12,
    )


def test_crowds_of_copies_are_settled_in_between():
    "More equal distances than the candidates' limit holds: memory is bounded, the answer the same."
    x = np.full((40_000, 4), 0.5, 'float32')
    x[39_990:] = 0.6
    tracemalloc.start()
    try:
        dist, index = nearest(np.full((200, 4), 0.5), x, k=3, metric='euclidean', verbose=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (dist == 0).all() and (index == [0, 1, 2]).all() and peak < 1.2e9


@few
@given(problems(), st.sampled_from(METRICS), st.integers(1, 3))
def test_ids_are_left_out(problem, metric, kinds):
    q, _, g, _ = problem
    qi, gi = np.arange(len(q)) % (kinds + 1), np.arange(len(g)) % (kinds + 2)
    k = min(len(g) - (gi == i).sum() for i in qi)
    if k < 1:
        with pytest.raises(ValueError, match='k=1'):
            NeighborSearch(g, metric).queries(q, qi, gi).nearest(1)
        return
    index = nearest(q, g, k=k, metric=metric, query_ids=qi, gallery_ids=gi)[1]
    full = NeighborSearch(g, metric).queries(q)
    for i, row in enumerate(index):
        left = np.flatnonzero(gi != qi[i])
        d = full.distances(np.full(len(left), i), left)
        assert row.tolist() == left[np.lexsort((left, d))][:k].tolist()


def test_large_searches_say_what_they_take(capsys, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3000, 40)), np.arange(3000) // 3
    nearest(x, k=1.0)  # a whole number, whatever its type
    retrieval_metrics(x, y)
    assert not capsys.readouterr().out
    monkeypatch.setattr(neighbors, 'LARGE_SEARCH', 9e6)
    monkeypatch.setitem(sys.modules, 'threadpoolctl', None)
    for name, call in (
        ('nearest', lambda **kw: nearest(x, k=150, **kw)),
        ('retrieval_metrics', lambda **kw: retrieval_metrics(x, y, ks=(150,), **kw)),
    ):
        tracemalloc.start()
        try:
            call()
            peak = tracemalloc.get_traced_memory()[1] / 1e6
        finally:
            tracemalloc.stop()
        said = capsys.readouterr().out
        assert said.startswith(f'{name}: 3,000 queries x 3,000 photos x 40 numbers')
        about = float(said.split('about ')[1].split(' MB')[0].replace(',', ''))
        assert 0.5 * peak < about < 2 * peak, (name, about, peak)
        call(verbose=False)
        assert not capsys.readouterr().out
    nearest(x[:10], k=1, verbose=True)
    assert '10 queries x 10 photos' in capsys.readouterr().out


def test_hard_triplets_are_the_hardest():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 80)
    x = rng.normal(size=(80, 4)).astype('float32')
    a, p, n, d_ap, d_an = found = hard_triplets(x, y, 'euclidean')
    d = np.linalg.norm(x[:, None].astype(float) - x, axis=2)
    far, near = np.where(y[:, None] == y, d, -1), np.where(y[:, None] == y, 99, d)
    np.fill_diagonal(far, -2)
    np.testing.assert_array_equal(a, np.arange(80))
    np.testing.assert_allclose(d[a, p], far.max(1))
    np.testing.assert_allclose(d[a, n], near.min(1))
    np.testing.assert_allclose([d_ap, d_an], [d[a, p], d[a, n]], rtol=1e-6)
    assert triplet_accuracy(x[a], x[p], x[n]) <= triplet_accuracy(
        *(x[o] for o in random_triplets(y, 500))
    )
    for labels, message in ((y * 0, '1 class'), (np.arange(80), 'none of the 80 classes')):
        assert not has_triplets(labels)
        with pytest.raises(ValueError, match=message):
            hard_triplets(x, labels)
    worst = found.hardest(y, n=3)
    gap = d_ap.astype(float) - d_an
    assert len(set(y[worst.anchor])) == 3 and worst.anchor[0] == gap.argmax()
    every = found.hardest(y, n=99, per_product=None)
    assert every.anchor.tolist() == np.argsort(-gap, kind='stable').tolist()


@pytest.mark.parametrize('metric', METRICS)
def test_side_by_side_is_the_same(metric, monkeypatch):
    pytest.importorskip(
        'threadpoolctl', reason="threadpoolctl is not installed: pip install -e '.[bench]'"
    )
    rng = np.random.default_rng(0)
    x, g = (
        rng.normal(size=(2000, 16)).astype('float32'),
        rng.normal(size=(9000, 16)).astype('float32'),
    )
    a = nearest(x, g, k=7, metric=metric)
    monkeypatch.setitem(sys.modules, 'threadpoolctl', None)
    b = nearest(x, g, k=7, metric=metric)
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize('metric,far', [('sqeuclidean', 1e18), ('euclidean', 1e37)])
def test_distances_beyond_float32_are_refused(metric, far):
    x = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 1.0]])
    np.testing.assert_array_equal(
        nearest(x * far, k=2, metric=metric)[1], nearest(x, k=2, metric=metric)[1]
    )
    with pytest.raises(ValueError, match=f'{metric} distances between them may be too large'):
        nearest(x * far * 100, k=2, metric=metric)
    assert np.isfinite(nearest(x[1:] * far * 10, k=1)[0]).all()


@pytest.mark.parametrize('metric', METRICS)
def test_a_prepared_gallery_answers_as_nearest_does(metric):
    "All-zero queries and huge numbers need another preparation, and change nothing for the next."
    rng = np.random.default_rng(0)
    g, q = rng.normal(size=(500, 6)).astype('float32'), rng.normal(size=(20, 6)).astype('float32')
    g[::50] = g[7]
    search = NeighborSearch(g, metric)
    for x in (q[:1], q, np.zeros((2, 6), 'float32'), q * 1e12, g[7:8], q):
        for mine, theirs in zip(search.nearest(x, k=9), nearest(x, g, k=9, metric=metric)):
            np.testing.assert_array_equal(mine, theirs)
    assert len(search) == 500
    assert search.nearest(q, k=501)[1][:, 500].tolist() == [-1] * 20
    with pytest.raises(ValueError, match='k=501, but the gallery offers 500'):
        search.queries(q).nearest(k=501)
    with pytest.raises(ValueError, match='5 columns and gallery 6'):
        search.nearest(q[:, :5])


def test_a_gallery_is_prepared_once():
    "The gallery's copy is 4 MB: the first search makes it, the second needs next to nothing."
    x = np.random.default_rng(0).normal(size=(16_000, 64)).astype('float32')
    search, peaks = NeighborSearch(x), []
    for _ in range(2):
        tracemalloc.start()
        try:
            search.nearest(x[:1], k=5)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[0] > x.nbytes and peaks[1] < x.nbytes / 4


def test_threads_may_share_a_prepared_gallery():
    from concurrent.futures import ThreadPoolExecutor

    x = np.random.default_rng(0).normal(size=(3000, 16)).astype('float32')
    search, want = NeighborSearch(x), nearest(x, x, k=4)[1]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: search.nearest(x[i : i + 30], k=4)[1], range(0, 3000, 30)))
    np.testing.assert_array_equal(np.concatenate(found), want)


@few
@given(problems(), st.sampled_from(METRICS), st.sampled_from([None, 1, 3]))
def test_a_rank_is_the_place_in_the_order(problem, metric, chunk):
    q, _, g, _ = problem
    queries = NeighborSearch(g, metric).queries(q)
    order = queries.nearest(len(g))[1]
    i, place = np.divmod(np.arange(order.size), len(g))
    assert queries.rank_of(i, order[i, place], chunk).tolist() == (place + 1).tolist()


@few
@given(problems(), st.sampled_from(METRICS), st.booleans())
def test_pairs_within_a_radius(problem, metric, once):
    q, _, g, _ = problem
    queries = NeighborSearch(q, metric).queries() if once else NeighborSearch(g, metric).queries(q)
    i, j = (o.ravel() for o in np.indices((len(q), len(q) if once else len(g))))
    d = queries.distances(i, j)
    radius = float(np.median(d))
    wanted = (d < radius) & ((i < j) | (not once))
    found = [np.concatenate(o) for o in zip(*queries.within(radius, each_once=once))]
    assert sorted(zip(*(o.tolist() for o in found))) == sorted(
        zip(i[wanted].tolist(), j[wanted].tolist(), d[wanted].tolist())
    )


def test_ranked_queries_hold_what_metrics_need():
    x = np.array([[0.0], [1.0], [3.0], [7.0]])
    labels = join_labels(list('abab'), list('abab'), ('labels', 'labels'))
    ranked = Relevance(NeighborSearch(x, 'euclidean').queries(), labels).rank(depth=2)
    assert ranked.first.tolist() == [2, 3, 2, 2] and ranked.relevant.tolist() == [1] * 4
    assert ranked.hits(2).tolist() == [[False, True], [False, False], [False, True], [False, True]]
    assert ranked.average_precision.tolist() == [0] * 4 and ranked.choices.tolist() == [3] * 4
    assert ranked.dcg(2).tolist() == pytest.approx(
        [1 / np.log2(3), 0, 1 / np.log2(3), 1 / np.log2(3)]
    )
    assert ranked.ideal_dcg(2).tolist() == [1] * 4 and len(ranked.where(ranked.first == 3)) == 1


def test_a_search_can_be_pickled():
    import pickle

    x = np.random.default_rng(0).normal(size=(50, 4))
    search = NeighborSearch(x)
    first = search.nearest(x, k=3)[1]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(search)).nearest(x, k=3)[1], first)


@few
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 14),
    metric=st.sampled_from(['cosine', 'euclidean', 'sqeuclidean']),
)
def test_the_hardest_triplet_of_each_anchor(seed, n, metric):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.integers(0, 4, n)
    d = distances(x, x, metric).astype(float)
    want = {}
    for a, p, q in itertools.product(range(n), repeat=3):
        if a != p and y[a] == y[p] and y[a] != y[q]:
            want[a] = max(want.get(a, -np.inf), d[a, p] - d[a, q])
    if not want:
        with pytest.raises(ValueError, match='labels'):
            hard_triplets(x, y, metric)
        return
    t = hard_triplets(x, y, metric).hardest(y, n=99, per_product=None)
    assert sorted(t.anchor.tolist()) == sorted(want)
    np.testing.assert_allclose(
        t.d_ap - t.d_an, sorted(want.values(), reverse=True), rtol=1e-4, atol=1e-5
    )
    assert (
        all(y[t.anchor] == y[t.positive])
        and all(y[t.anchor] != y[t.negative])
        and all(t.anchor != t.positive)
    )
