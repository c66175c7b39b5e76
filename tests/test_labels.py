"Labels as users have them: any type and size, gaps, Unicode; two columns matched by what they say."

import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from triplet_fashion.labels import Labels, composed

quick = settings(max_examples=100, deadline=None, derandomize=True)
names = st.text(st.characters(exclude_characters='\0'), min_size=1, max_size=6)
whole = st.integers(-(2**70), 2**70)
columns = st.one_of(st.lists(names, max_size=20), st.lists(whole, max_size=20))


def plain(label):
    return composed(label) if isinstance(label, str) else int(label)


@quick
@given(columns)
def test_photos_share_an_id_where_they_share_a_label(labels):
    found = Labels(labels)
    assert found.ids.dtype == np.int32 and len(found) == len(labels)
    assert [found.values[i] for i in found.ids] == [plain(o) for o in labels]
    assert found.values == sorted(set(map(plain, labels))) and found.names == list(
        map(str, found.values)
    )


@quick
@given(columns, st.randoms(use_true_random=False))
def test_ids_do_not_depend_on_the_order_of_photos(labels, random):
    order = list(range(len(labels)))
    random.shuffle(order)
    assert Labels([labels[i] for i in order]).ids.tolist() == Labels(labels).ids[order].tolist()


@quick
@given(st.lists(names, max_size=12), st.lists(names, max_size=12))
def test_two_columns_are_matched_by_what_they_say(first, second):
    a = Labels(first)
    b = Labels(second, like=a)
    assert b.values[: len(a.values)] == a.values
    same = np.array([[plain(x) == plain(y) for y in second] for x in first], bool).reshape(
        len(first), len(second)
    )
    np.testing.assert_array_equal(a.ids[:, None] == b.ids, same)


@quick
@given(
    st.lists(
        st.one_of(st.none(), st.just(float('nan')), st.integers(-9, 9)), min_size=1, max_size=20
    )
)
def test_a_missing_label_is_no_product(labels):
    missing = [x is None or x != x for x in labels]
    found = Labels(labels, missing='unlabelled')
    assert found.known.tolist() == [not m for m in missing] and set(found.ids[missing]) <= {-1}
    assert None not in found.values and len(found.values) == len(
        {x for x, m in zip(labels, missing) if not m}
    )
    if not any(missing):
        return
    with pytest.raises(
        ValueError,
        match=f'^labels: {sum(missing)} of {len(labels)} photos have no label, '
        f'the first at position {missing.index(True)}',
    ):
        Labels(labels)


EAN = 4006381333931
SAME = {
    'list': [EAN, 7, EAN],
    'int64': np.array([EAN, 7, EAN]),
    'uint64': np.array([EAN, 7, EAN], 'uint64'),
    'NumPy scalars': [np.int64(EAN), np.uint8(7), np.int64(EAN)],
    'floats': np.array([EAN, 7, EAN], 'float64'),
    'Python floats': [float(EAN), 7.0, float(EAN)],
    'objects': np.array([EAN, 7, EAN], object),
    'column': pd.Series([EAN, 7, EAN], index=[9, 9, 2]),
    'nullable': pd.array([EAN, 7, EAN], 'Int64'),
    'categories': pd.Categorical([EAN, 7, EAN]),
    'index': pd.Index([EAN, 7, EAN]),
    'tuple': (EAN, 7, EAN),
}


@pytest.mark.parametrize('labels', SAME.values(), ids=SAME)
def test_whole_numbers_of_any_type_are_the_same_labels(labels):
    found = Labels(labels)
    assert (
        found.values == [7, EAN]
        and all(type(v) is int for v in found.values)
        and found.ids.tolist() == [1, 0, 1]
    )


TEXT = {
    'list': ['hat', 'coat', 'hat'],
    'array': np.array(['hat', 'coat', 'hat']),
    'bytes': [b'hat', b'coat', b'hat'],
    'bytes array': np.array([b'hat', b'coat', b'hat']),
    'objects': np.array(['hat', 'coat', 'hat'], object),
    'column': pd.Series(['hat', 'coat', 'hat']),
    'strings of pandas': pd.array(['hat', 'coat', 'hat'], 'string'),
    'categories': pd.Categorical(['hat', 'coat', 'hat']),
}


@pytest.mark.parametrize('labels', TEXT.values(), ids=TEXT)
def test_text_of_any_type_is_the_same_labels(labels):
    found = Labels(labels)
    assert found.values == ['coat', 'hat'] and found.ids.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    'gap', [None, np.nan, pd.NA, pd.NaT, '', np.float32('nan'), float('nan')], ids=repr
)
def test_every_way_to_say_nothing(gap):
    assert Labels(['coat', gap, 'hat'], missing='unlabelled').ids.tolist() == [0, -1, 1]
    assert Labels(
        pd.Series(['coat', gap, 'hat'], dtype=object), missing='unlabelled'
    ).ids.tolist() == [0, -1, 1]


@pytest.mark.parametrize('name', ['Café', '한글 원피스', 'Ångström'])
def test_a_name_in_two_unicode_forms_is_one_product(name):
    forms = [unicodedata.normalize(form, name) for form in ('NFC', 'NFD')]
    assert (
        forms[0] != forms[1]
        and Labels(forms).ids.tolist() == [0, 0]
        and Labels(np.array(forms)).ids.tolist() == [0, 0]
    )


def test_names_that_are_not_utf8_are_kept():
    assert Labels(['a\udce9', 'a']).ids.tolist() == [1, 0] and Labels([b'a\xe9', b'a']).values == [
        'a',
        'a\udce9',
    ]


@pytest.mark.parametrize(
    'labels,says',
    [
        ([0, 0.5], 'labels hold 0.5: a label is text or a whole number'),
        ([0.0, np.inf], 'labels hold inf'),
        ([2.0**53 + 2, 1.0], 'too large to be exact'),
        (['a', 1], "mix text .'a'. and numbers .1."),
        ([['a', 'a'], ['b', 'b']], r'the shape is \(2, 2\)'),
        (np.zeros((2, 2)), r'the shape is \(2, 2\)'),
        (3, 'one label a photo, not 3'),
        ('coat', "not 'coat'"),
        (None, 'not None'),
        ([object()], 'of type object'),
        (np.array(['2024-01-01'], 'datetime64[D]'), 'of type date'),
        ([1j], 'of type complex'),
        (
            np.array([2**24], 'float32'),
            'labels of type float32 go up to 16,777,216, and are exact below 16,777,216 only',
        ),
        (np.array([2049, np.nan], 'float16'), 'exact below 2,048'),
    ],
)
def test_what_is_no_label_names_itself(labels, says):
    with pytest.raises(ValueError, match=says):
        Labels(labels)


def test_the_argument_is_named():
    with pytest.raises(ValueError, match='^gallery_labels: 1 of 2'):
        Labels([1, None], what='gallery_labels')
    with pytest.raises(ValueError, match=r'^y must hold one label a photo, shape \(3,\)'):
        Labels([1, 2], n=3, what='y')
    with pytest.raises(ValueError, match="missing='drop'"):
        Labels([1], missing='drop')


def test_a_million_photos_cost_little():
    import time

    labels = np.random.default_rng(0).integers(0, 10_000, 1_000_000) + EAN
    start = time.process_time()
    assert len(Labels(labels).values) == 10_000 and time.process_time() - start < 3
