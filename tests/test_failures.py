"failures against brute force: the worst, the hubs, the confused, what a threshold gets wrong."

import csv
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from triplet_fashion.failures import (
    confused_products,
    failures,
    false_accepts,
    false_rejects,
    hubs,
    worst_queries,
)
from triplet_fashion.metrics import nearest, retrieval_metrics
from triplet_fashion.verification import fit_threshold

few = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope='module')
def cloud():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(15), 4)
    return (
        (rng.normal(size=(15, 5))[labels] + rng.normal(size=(60, 5)) * 0.6).astype('float32'),
        labels,
        [f'p{y}/{i}.jpg' for i, y in enumerate(labels)],
    )


@few
@given(st.integers(0, 2**31), st.integers(4, 14), st.sampled_from([0.5, 1.5, 2.5, 9.0]))
def test_pairs_against_brute_force(seed, n, threshold):
    rng = np.random.default_rng(seed)
    x, labels = rng.integers(-2, 3, (n, 2)).astype('float32'), rng.integers(0, 3, n)
    dist = {
        (i, j): float(np.float32(np.sqrt(((x[i] - x[j]) ** 2).sum())))
        for i, j in itertools.combinations(range(n), 2)
    }
    accepts = sorted(
        (d, i, j) for (i, j), d in dist.items() if labels[i] != labels[j] and d < threshold
    )
    rejects = sorted(
        (-d, i, j) for (i, j), d in dist.items() if labels[i] == labels[j] and d >= threshold
    )
    if len(set(labels)) > 1:
        table = false_accepts(x, labels, threshold, n=5, metric='euclidean')
        assert (
            table.total == len(accepts)
            and [(r['distance'], r['photo'], r['other photo']) for r in table] == accepts[:5]
        )
    table = false_rejects(x, labels, threshold, n=5, metric='euclidean')
    assert (
        table.total == len(rejects)
        and [(-r['distance'], r['photo'], r['other photo']) for r in table] == rejects[:5]
    )
    assert table.at.shape == (len(table), 2)


def test_worst_queries_are_the_worst(cloud):
    x, labels, ids = cloud
    figures, table = retrieval_metrics(x, labels), worst_queries(x, labels, ids, n=7)
    assert table.column('rank') == sorted(figures.ranks.first, reverse=True)[:7]
    dist, first = nearest(x, k=1)
    for row, (q, f, r) in zip(table, table.at):
        assert (
            row['query'] == ids[q]
            and row['found first'] == ids[f]
            and f == first[q, 0]
            and labels[r] == labels[q]
            and r != q
        )
        own = [i for i in np.flatnonzero(labels == labels[q]) if i != q]
        assert r == own[np.argmax(x[own] @ x[q] / np.linalg.norm(x[own], axis=1))]


def test_a_gallery_of_its_own(cloud):
    x, labels, ids = cloud
    q, g = slice(0, None, 4), np.arange(60) % 4 > 0
    other = x[g], labels[g], list(np.array(ids)[g])
    worst = worst_queries(x[q], labels[q], ids[::4], gallery=other)
    assert (
        worst.column('rank')[0]
        == retrieval_metrics(x[q], labels[q], x[g], labels[g]).ranks.first.max()
    )
    assert all(row['found first'] == other[2][f] for row, f in zip(worst, worst.at[:, 1]))
    assert hubs(x[q], labels[q], k=3, gallery=other).counts.sum() == 45
    pairs = confused_products(x[q], labels[q], gallery=other, metric='euclidean')
    first = nearest(x[q], x[g], 1, 'euclidean')[1][:, 0]
    assert sum(pairs.column('confusions')) == (labels[g][first] != labels[q]).sum()


def test_no_query_finds_itself_in_a_gallery_that_holds_it(cloud):
    "The same photos as queries and as gallery, in another order: nothing else is found."
    x, labels, ids = cloud
    order = np.random.default_rng(1).permutation(60)
    other = x[order], labels[order], [ids[i] for i in order]
    for f, kw in (
        (worst_queries, {}),
        (hubs, dict(k=5)),
        (hubs, dict(k=100)),
        (confused_products, {}),
    ):
        alone, both = f(x, labels, ids, n=60, **kw), f(x, labels, ids, n=60, gallery=other, **kw)
        gone = {
            'photo',
            'product',
            'taken for',
            'closest',
            'and',
        }  # of equals, the first in the gallery's order
        assert sorted([v for k, v in r.items() if k not in gone] for r in alone) == sorted(
            [v for k, v in r.items() if k not in gone] for r in both
        )
        assert [where for *_, where in alone.tiles] == [False] * alone.at.shape[1]
        named = [
            [(other[2] if where else ids)[i] for i, (*_, where) in zip(at, both.tiles)]
            for at in both.at
        ]
        assert all(o[0] not in o[1:] for o in named) and any(where for *_, where in both.tiles)
    assert (
        worst_queries(x, labels, ids, gallery=other[:2])[0]['rank'] == 1
    )  # ids of one side say nothing


def test_the_metric_is_the_thresholds(cloud):
    x, labels, _ = cloud
    t = fit_threshold(x, labels, fmr=0.1, metric='euclidean')
    for f in (false_accepts, false_rejects):
        want = f(x, labels, t.value, metric='euclidean')
        assert (
            0 < want.total
            and f(x, labels, t).rows
            == f(x, labels, t.note()).rows
            == f(x, labels, t, metric='euclidean').rows
            == want.rows
            and 'euclidean distance' in want.caption
        )
        assert f(x, labels, t.value).total != want.total  # a number is for cosine
        with pytest.raises(ValueError, match="for euclidean distances, but metric='cosine'"):
            f(x, labels, t, metric='cosine')
    found = failures(x, labels, threshold=t.note())
    assert (
        found['false rejects'].rows == false_rejects(x, labels, t).rows
        and found['worst queries'].rows == worst_queries(x, labels).rows
    )


def test_hubs_are_counted(cloud):
    x, labels, ids = cloud
    table, found = hubs(x, labels, ids, n=60, k=6), nearest(x, k=6)[1]
    np.testing.assert_array_equal(table.counts, np.bincount(found.ravel(), minlength=60))
    assert (
        table.column('named') == sorted(table.counts, reverse=True)
        and sum(table.column('named')) == 360
    )
    assert sum(table.column('by strangers')) == (labels[found] != labels[:, None]).sum()
    off = table.counts - 6
    assert table.skewness == pytest.approx((off**3).mean() / (off**2).mean() ** 1.5)


def test_a_hub_is_found():
    "Sixty points on a sphere and one at its centre: the centre is everybody's neighbour."
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 200))
    x = np.concatenate([x / np.linalg.norm(x, axis=1, keepdims=True), np.zeros((1, 200))])
    table = hubs(x, np.arange(61), k=3, metric='euclidean')
    assert table[0]['photo'] == 60 and table[0]['named'] == 60 and table.skewness > 3


def test_confused_products_both_ways_round(cloud):
    x, labels, ids = cloud
    table, first = confused_products(x, labels, ids, n=1000), nearest(x, k=1)[1][:, 0]
    wrong = labels[first] != labels
    counted = {}
    for a, b in zip(labels[wrong], labels[first][wrong]):
        counted[frozenset((a, b))] = counted.get(frozenset((a, b)), 0) + 1
    assert {frozenset((r['product'], r['taken for'])): r['confusions'] for r in table} == counted
    assert table.column('confusions') == sorted(counted.values(), reverse=True)


def test_all_at_once_as_files(cloud, tmp_path):
    x, labels, ids = cloud
    names = [f'<shirt {c}>' for c in range(15)]
    found = failures(x, labels, ids, fit_threshold(x, labels), n=4, class_names=names)
    assert list(found) == [
        'worst queries',
        'hubs',
        'confused products',
        'false accepts',
        'false rejects',
    ]
    assert list(failures(x, labels)) == ['worst queries', 'hubs', 'confused products']
    html = found._repr_html_()
    assert '&lt;shirt' in html and '<shirt' not in html and 'worst queries' in repr(found)
    found.to_csv(tmp_path / 'out')
    for name, table in found.items():
        with open(
            tmp_path / 'out' / f'{name.replace(" ", "_")}.csv', newline='', encoding='utf-8'
        ) as f:
            rows = list(csv.reader(f))
        assert rows[0] == table.header and len(rows) == len(table) + 1 and table.at.max() < 60


def test_nothing_wrong_gives_empty_tables():
    x, labels = np.eye(4)[[0, 0, 1, 1]], [0, 0, 1, 1]
    found = failures(x, labels, threshold=0.5)
    assert [len(found[n]) for n in ('confused products', 'false accepts', 'false rejects')] == [
        0,
        0,
        0,
    ]
    assert repr(found) and found._repr_html_()


def test_bad_input_is_named(cloud):
    x, labels, ids = cloud
    with pytest.raises(ValueError, match='ids must hold one id a photo, 60'):
        hubs(x, labels, ids[:3])
    with pytest.raises(ValueError, match='labels must hold'):
        false_accepts(x, labels[:3], 0.1)
    with pytest.raises(ValueError, match='gallery labels must hold'):
        worst_queries(x, labels, gallery=(x, labels[:3]))
    for f in (worst_queries, hubs, confused_products):
        with pytest.raises(ValueError, match='gallery labels are text and labels are numbers'):
            f(x, labels, gallery=(x, labels.astype(str)))
