"Rankings made elsewhere, MAP and macro averages, differences, short rankings, labels (n, 1)."

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from triplet_fashion.evaluation import RetrievalCallback, evaluate
from triplet_fashion.metrics import (
    NeighborSearch,
    knn_accuracy,
    nearest,
    rank_metrics,
    retrieval_metrics,
)

few = settings(max_examples=80, deadline=None, derandomize=True)
KS = 1, 3, 40
NAMES = ['R@1', 'P@3', 'MAP', 'MAP@2', 'macro MAP', 'macro R@3', 'nDCG@40', 'macro MRR']


@st.composite
def problems(draw):
    "Return queries and a gallery of few classes, with ties and copies, and their labels."
    n, m = draw(st.integers(2, 9)), draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x, g = rng.integers(-3, 4, (n, 2)), rng.integers(-3, 4, (m, 2))
    return x.astype('float32'), rng.integers(0, 4, n), g.astype('float32'), rng.integers(0, 4, m)


def outcome(call):
    "Return what a call gives, or its error as text."
    try:
        return dict(call())
    except ValueError as e:
        return str(e)


@few
@given(problems(), st.sampled_from([None, NAMES]))
def test_our_own_ranking_is_judged_exactly_alike(problem, names):
    x, y, g, gy = problem
    how = dict(ks=KS, names=names)
    ours = outcome(lambda: retrieval_metrics(x, y, g, gy, metric='euclidean', **how))
    order = nearest(x, g, k=len(g), metric='euclidean')[1]
    assert outcome(lambda: rank_metrics(order, y, gy, **how)) == ours
    ids = [f'photo {i}' for i in range(len(g))]
    ragged = [[ids[i] for i in row] for row in order]
    assert outcome(lambda: rank_metrics(ragged, y, gy, gallery_ids=ids, **how)) == ours
    assert outcome(lambda: rank_metrics(gy[order], y, gy, holds='labels', **how)) == ours
    counts = (gy == y[:, None]).sum(axis=1)
    if isinstance(ours, dict) and len(g) >= 40:
        assert rank_metrics(gy[order], y, holds='labels', relevant=counts, **how) == ours


@few
@given(problems())
def test_queries_that_search_each_other_are_judged_exactly_alike(problem):
    x, y, _, _ = problem
    ours = outcome(lambda: retrieval_metrics(x, y, ks=KS, metric='euclidean'))
    order = nearest(x, k=len(x) - 1, metric='euclidean')[1]
    assert outcome(lambda: rank_metrics(order, y, ks=KS)) == ours
    filled = nearest(x, k=20, metric='euclidean')[1]  # -1 after the last
    assert outcome(lambda: rank_metrics(filled, y, ks=KS)) == ours
    itself = np.c_[np.arange(len(x)), order]  # as vector databases give it
    assert outcome(lambda: rank_metrics(itself, y, ks=KS)) == ours
    ids = np.arange(len(x)) * 7 + 3
    by_id = outcome(lambda: rank_metrics(ids[itself], y, y, ids, ids, ks=KS))
    assert by_id == ours
    assert outcome(lambda: rank_metrics(y[order], y, holds='labels', ks=KS)) == ours


def test_a_ranking_by_hand():
    "It finds a, b, a, b, a: R = 3."
    gallery = list('ababa')
    found = rank_metrics([[0, 1, 2, 3, 4]], ['a'], gallery, names=['MAP', 'MAP@2', 'MAP@4', 'MRR'])
    values = [(1 + 2 / 3 + 3 / 5) / 3, 1 / 2, (1 + 2 / 3) / 3, 1]
    assert list(found.values())[:4] == pytest.approx(values)
    assert (found['queries'], found['skipped']) == (1, 0)


def test_macro_averages_give_products_the_same_say():
    "Eight of nine photos of one product find it, and neither of two of another."
    order = [[1]] + [[0]] * 7 + [[9]] + [[0]] * 2
    y = [0] * 9 + [1] * 2
    found = rank_metrics(order, y, names=['R@1', 'macro R@1'])
    assert found['R@1'] == 8 / 11 and found['macro R@1'] == (8 / 9 + 0) / 2
    low, high = found.interval('macro R@1')
    assert low == 0 and high == pytest.approx(8 / 9)  # of either product alone
    part = found.where(np.array(y) == 0)
    assert part['macro R@1'] == part['R@1'] == 8 / 9 and part.names == found.names


def test_chance_of_map_is_what_shuffled_galleries_score():
    rng = np.random.default_rng(0)
    ql, gl = np.array([0, 0, 1, 2]), np.repeat([0, 1, 2, 3], [1, 3, 4, 4])
    names = ['MAP', 'MAP@3', 'MAP@20', 'macro MAP', 'macro R@1']
    draws = [
        rank_metrics([rng.permutation(12) for _ in ql], ql, gl, names=names) for _ in range(3000)
    ]
    for name, value in draws[0].chance.items():
        seen = np.array([found[name] for found in draws])
        assert value == pytest.approx(seen.mean(), abs=4.5 * seen.std() / 3000**0.5), name


def test_what_is_not_known_is_not_guessed():
    gallery, order = list('aabbbb'), [[0, 1, 2, 3, 4, 5], [0, 1, 2]]
    found = rank_metrics(order, ['a', 'b'], gallery, names=['R@1', 'R@3', 'MRR', 'P@3'])
    assert found['R@3'] == 1 and found['MRR'] == (1 + 1 / 3) / 2
    for name, why in [
        ('MAP@R', 'MAP@R needs R results'),
        ('R-precision', "the first is of a query of 'b', with 3 results and R=4"),
        ('MAP', 'needs all relevant photos'),
        ('P@4', 'needs 4 results, which 1 of 2 rankings lack'),
        ('R@4', 'needs 4 results'),
    ]:
        with pytest.raises(ValueError, match=why):
            rank_metrics(order, ['a', 'b'], gallery, names=[name])
    with pytest.raises(ValueError, match='MRR needs a relevant photo among the results'):
        rank_metrics([[0], [0]], ['a', 'b'], gallery, names=['MRR'])
    assert rank_metrics([[0], [0]], ['a', 'b'], gallery, names='R@1')['R@1'] == 0.5
    with pytest.raises(ValueError, match='ask for it by name'):
        retrieval_metrics(np.eye(4), [0, 0, 1, 1]).per_query('MAP')
    counts = rank_metrics([list('ab')], ['a'], holds='labels', relevant=[1], names=['R@1'])
    assert counts.chance == {} and 'R@1' in repr(counts)


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda y, g: rank_metrics([[0, 0]], y, g), 'query 0 has the result 0 twice'),
        (lambda y, g: rank_metrics([[0, 3]], y, g), 'the result 3 which is no id of the gallery'),
        (lambda y, g: rank_metrics([['x']], y, g), 'found are text and gallery_ids are numbers'),
        (lambda y, g: rank_metrics([['x']], y, g, list('pqr')), "result 'x' which is no id"),
        (lambda y, g: rank_metrics([['p']], y, g, list('ppq')), 'gallery_ids name a photo twice'),
        (lambda y, g: rank_metrics([[0]], y, g, [1, 2]), 'gallery_ids must hold one label a photo'),
        (lambda y, g: rank_metrics([[0], [1]], y, g), 'results of 2 queries, and there are 1'),
        (lambda y, g: rank_metrics([0, 1], y, g), 'an array .n, k. or a list of n lists'),
        (lambda y, g: rank_metrics(['ab'], y, g), 'an array .n, k. or a list of n lists'),
        (lambda y, g: rank_metrics([[0]], y, g, holds='names'), "holds='names'"),
        (lambda y, g: rank_metrics([[0]], y, relevant=[1]), 'relevant is counted where'),
        (
            lambda y, g: rank_metrics([['a', 'a', 'a']], y, g, holds='labels'),
            'query 0 has 3 relevant results, and the gallery holds 2',
        ),
        (
            lambda y, g: rank_metrics([['a', 'b', 'b', 'b']], y, g, holds='labels'),
            'query 0 has 4 results, and the gallery holds 3',
        ),
        (
            lambda y, g: rank_metrics([['a']], y, holds='labels', relevant=[1, 2]),
            'relevant holds 2 numbers, and there are 1',
        ),
        (
            lambda y, g: rank_metrics([['a']], y, holds='labels', relevant=[1.5]),
            'relevant=1.5: give a whole number from 0',
        ),
        (
            lambda y, g: rank_metrics([['a']], y, g, holds='labels', relevant=[1]),
            'relevant and gallery_labels say the same',
        ),
        (
            lambda y, g: rank_metrics([['a']], y, g, list('pqr'), holds='labels'),
            'gallery_ids name what found holds',
        ),
        (lambda y, g: rank_metrics([[1]], y, g, ks=5), 'R@5 needs 5 results'),
        (lambda y, g: rank_metrics([[1]], ['c'], g), 'none of the 1 queries'),
    ],
)
def test_bad_rankings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(['a'], ['a', 'b', 'a'])


def test_a_result_of_no_known_product_is_nobodys_hit():
    found = rank_metrics([[0, 1]], ['a'], [None, 'a'], names=['R@1', 'MRR'])
    assert (found['R@1'], found['MRR']) == (0, 0.5)
    labels = rank_metrics([[None, 'a']], ['a'], holds='labels', relevant=[1], names=['MRR'])
    assert labels['MRR'] == 0.5


def test_differences_are_paired():
    "A tiny gain on every product is sure, though the products differ widely."
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(40), 4)
    x = rng.normal(size=(40, 6))[y] * rng.uniform(0.1, 2, 40)[y, None]
    worse = retrieval_metrics(x + rng.normal(size=(160, 6)), y)
    better = retrieval_metrics(x + 0.5 * rng.normal(size=(160, 6)), y)
    gain = better.minus(worse, 'MAP@R')
    assert gain.value == pytest.approx(better['MAP@R'] - worse['MAP@R'])
    assert gain.low < gain.value < gain.high and gain.low > 0
    assert better.minus(better) == (0, 0, 0)
    low, high = better.interval('MAP@R')
    assert gain.high - gain.low < high - low
    assert worse.minus(better, 'macro R@1').value < 0
    with pytest.raises(ValueError, match='other: its queries are of other classes'):
        better.minus(worse.where(y < 5))


# nearest where there is not enough to find


def test_fewer_photos_than_asked_for():
    x = np.array([[0.0], [1], [3]])
    distances, indices = nearest(x, metric='euclidean')  # ten, of two
    assert indices[:, :2].tolist() == [[1, 2], [0, 2], [1, 0]] and (indices[:, 2:] == -1).all()
    assert distances.shape == (3, 10) and np.isinf(distances[:, 2:]).all()
    assert distances.dtype == np.float32 and indices.dtype == np.int64
    ids = dict(query_ids=list('aab'), gallery_ids=list('aab'))
    found = nearest(x, x, k=2, metric='euclidean', **ids)[1]
    assert found.tolist() == [[2, -1], [2, -1], [1, 0]]
    alone = nearest(x[:1], x[:1], k=1, query_ids=['a'], gallery_ids=['a'])[1]
    assert alone.tolist() == [[-1]]
    assert NeighborSearch(x, 'euclidean').nearest([[2.0]], k=5)[1].tolist() == [[1, 2, 0, -1, -1]]
    with pytest.raises(ValueError, match='k=3, but the gallery offers 2'):
        knn_accuracy(x, [0, 0, 1], k=3)


@few
@given(problems(), st.integers(1, 20))
def test_filled_rows_begin_as_short_ones(problem, k):
    x, y, g, gy = problem
    distances, indices = nearest(x, g, k, 'euclidean', query_ids=y, gallery_ids=gy)
    for row, (d, i) in enumerate(zip(distances, indices)):
        there = np.flatnonzero(gy != y[row])
        count = min(k, len(there))
        apart = np.sqrt(((g[there].astype(float) - x[row]) ** 2).sum(axis=1)).astype('float32')
        order = np.argsort(apart, kind='stable')[:count]
        assert i.tolist() == [*there[order], *[-1] * (k - count)]
        assert np.isinf(d[count:]).all() and (np.diff(d[:count]) >= 0).all()


# labels as Keras gives them


@pytest.mark.parametrize('kind', [np.int64, np.uint8, str, object])
def test_a_column_of_labels(kind):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(5), 4).astype(kind)
    x = rng.normal(size=(20, 6))
    column = y[:, None]
    assert retrieval_metrics(x, column) == retrieval_metrics(x, y)
    assert evaluate(x, column, seen=column[:4]) == evaluate(x, y, seen=y[:4])
    assert knn_accuracy(x, column, x, column) == knn_accuracy(x, y, x, y)
    with pytest.raises(ValueError, match=r'shape \(20,\); the shape is \(20, 2\)'):
        retrieval_metrics(x, np.c_[column, column])


def test_watching_asks_for_any_metric(tmp_path):
    import keras
    from triplet_fashion.datasets import draw_catalog

    shop = draw_catalog(tmp_path / 'shop', n_products=3, n_views=3, size=(64, 64))
    x = np.random.default_rng(0).normal(size=(9, 4))
    names = ('MAP', 'macro R@1', 'R@2')
    how = dict(figures=names, choose='MAP', embedder=lambda c: x)
    watch = RetrievalCallback(keras.Sequential(), shop, **how)
    log = {}
    watch.on_epoch_end(0, log)
    want = retrieval_metrics(x, shop.labels, names=names)
    assert log == {f'val_{name}': want[name] for name in names}


# whole numbers as ids of an index


@pytest.mark.parametrize('kind', [int, np.int64, np.uint16, str])
def test_an_index_takes_whole_numbers_as_ids(kind, tmp_path):
    from triplet_fashion.search import ImageIndex

    index = ImageIndex(np.eye(3), [kind(i) for i in (10, 20, 30)], ['a', 'b', 'b'])
    assert index.ids == ['10', '20', '30']
    assert [h.id for h in index.search(kind(20), k=1)] == ['20']
    assert [h.id for h in index.search(kind(20), k=1, exclude_self=True)] != ['20']
    index.save(tmp_path / 'index.npz')
    again = ImageIndex.load(tmp_path / 'index.npz')
    assert again.remove(kind(20)) == 1 and again.remove([kind(10)]) == 1
    assert again.ids == ['30']
    with pytest.raises(FileNotFoundError, match="'99' is neither a photo on disk nor an id"):
        index.search(kind(99))
    with pytest.raises(ValueError, match="'99' is not in this index"):
        index.remove([kind(99)])
    with pytest.raises(ValueError, match='ids hold True of type bool'):
        ImageIndex(np.eye(1), [True])
