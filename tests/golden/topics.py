"""What the package gives, topic by topic, as short digests and a few numbers.

Each topic is a function without arguments that returns {what: digest or list of numbers}. The
package is reached through its public names only, wherever they stand: see `named` and `call`.
What gets another name in the package gets a line in `NAMES` or `ARGUMENTS`, and the topics run on
older and newer commits alike.
"""

import functools
import hashlib
import importlib
import inspect
import itertools
import json
import pkgutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

import odd_files

PACKAGE = 'triplet_fashion'
TESTS = Path(__file__).resolve().parents[1]

# today's name: the names before it
NAMES = {
    'original': ('seed',),
    'build_optimizer': ('ready',),
    'evaluate_benchmark': ('official',),
    'CollapseMonitor': ('CollapseDoctor',),
    'EpochWeights': ('SeedCheckpoint',),
    'RunFolder': ('Checkpoint',),
    'InferenceEngine': ('Runtime',),
    'LazyEngine': ('LazyRuntime',),
    'make_engine': ('runtime',),
    'compute_features': ('cut_features',),
}
ARGUMENTS = {
    'shard': ('part',),
    'like_original': ('like_seed',),
    'run_dir': ('resume',),
    'monitor': ('doctor',),
    'engine': ('runtime',),
    'feature_cache': ('store',),
    'embedder': ('way',),
    'runner': ('workers',),
    'measurements': ('looks',),
    'd_ap': ('near',),
    'd_an': ('far',),
}


# ---- public names


@functools.lru_cache
def public():
    "Return {name: (module, object)} of all that the modules of the package list in `__all__`."
    package, found = importlib.import_module(PACKAGE), {}
    for info in pkgutil.walk_packages(package.__path__, f'{PACKAGE}.'):
        if '._' in info.name:
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, '__all__', ()):
            thing = getattr(module, name)
            home = getattr(thing, '__module__', None) or info.name
            if name not in found or home == info.name:
                found[name] = info.name, thing
    return found


def named(name):
    "Return the public object of that name, or of a name it had before."
    for n in (name, *NAMES.get(name, ())):
        if n in public():
            return public()[n][1]
    raise LookupError(f'{PACKAGE} has no public {name}: add its new name to NAMES in {__file__}')


def call(name, *args, **kw):
    "Call the public function of that name; arguments get the names that it has for them."
    known = inspect.signature(named(name)).parameters

    def own(k):
        return next((n for n in (k, *ARGUMENTS.get(k, ())) if n in known), k)

    return named(name)(*args, **{own(k): v for k, v in kw.items()})


# ---- digests


def digest(*arrays):
    "Return 16 letters for the shapes and whole numbers of arrays, or for their exact floats."
    found = hashlib.sha256()
    for x in map(np.asarray, arrays):
        whole = x.dtype.kind in 'biu'
        found.update(repr(x.shape).encode())
        found.update(np.ascontiguousarray(x, '<i8' if whole else x.dtype).tobytes())
    return found.hexdigest()[:16]


def rounded(x, digits):
    "Return numbers as a flat list."
    return (np.round(np.asarray(x, float).ravel(), digits) + 0.0).tolist()  # without -0


# ---- 1: which photos make a batch

LAYOUTS = {  # photos of each product
    'even': [6] * 8,
    'one large': [30, 3, 3, 4, 2, 5],
    'many pairs': [2] * 24,
    'some single': [1, 5, 1, 4, 2, 1, 7, 3, 1, 6, 2, 4, 9],
}

CASES = [  # seed, (i, n) for part i of n, first step: each pair of values comes once
    (0, (0, 1), 0),
    (0, (1, 2), 5),
    (1, (0, 1), 5),
    (1, (1, 2), 0),
]

KINDS = {
    'triplet': dict(name='triplet_dataset', batch_size=6),
    'P x K': dict(name='pk_dataset', P=3, K=4, steps=8),
}


def layout_labels(layout):
    "Return the product of each photo, the photos of all products in mixed order."
    sizes = LAYOUTS[layout]
    return np.random.default_rng(3).permutation(np.repeat(np.arange(len(sizes)), sizes))


def batches(kind, catalog, passes=3, **kw):
    "Return the batches of some passes over a dataset, each as (list of image tensors, labels)."
    import tensorflow as tf

    how = KINDS[kind] | kw
    ds = call(how.pop('name'), catalog, **how)
    found = [b for _ in range(passes) for b in ds.as_numpy_iterator()]
    return [(tf.nest.flatten(images), labels) for images, labels in found]


def positions_of(kind, catalog, **kw):
    "Return the digest of which photos come, where row i of the inputs holds the number i."
    inputs = np.arange(len(catalog), dtype=np.float32)[:, None]
    found = batches(kind, catalog, **{'inputs': inputs} | kw)
    rows = [x for images, labels in found for x in (*images, labels[:, None])]
    return digest(*(np.rint(x[..., 0]).astype(int) for x in rows))


def positions():
    "Digests of the photos in three epochs, for layouts, seeds, parts and first steps."
    found = {}
    for layout, kind, (seed, shard, step) in itertools.product(LAYOUTS, KINDS, CASES):
        labels = layout_labels(layout)
        catalog = named('Catalog')([f'{i}.png' for i in range(len(labels))], labels)
        what = f'{kind}, {layout}, seed {seed}, part {shard[0]} of {shard[1]}, from step {step}'
        found[what] = positions_of(kind, catalog, seed=seed, shard=shard, first_step=step)
    return found | other_positions(catalog)


def other_positions(catalog):
    "Digests of the photos where other arguments choose them."
    kinds = [f'kind {i % 4}' for i in range(catalog.num_classes)]
    copies = np.arange(3 * len(catalog), dtype=np.float32).reshape(-1, 3, 1)
    cases = {
        'the same each pass': dict(fresh=False),
        'copies': dict(inputs=copies, copies=3),
        'from epoch 7': dict(first_epoch=7, passes=1),
    }
    found = {
        f'{kind}, {what}': positions_of(kind, catalog, **kw)
        for kind in KINDS
        for what, kw in cases.items()
    }
    found['P x K, categories'] = positions_of('P x K', catalog, categories=kinds)
    found['P x K, one of a category'] = positions_of(
        'P x K', catalog, categories=kinds, per_category=1
    )
    return found


# ---- 1, with photos that cannot be read


def numbered_photos(folder, labels, broken=()):
    "Write photos of one colour, (position, product, 0), by product; return their Catalog."
    for i, label in enumerate(labels):
        path = Path(folder) / f'{label:03}' / f'{i:03}.png'
        path.parent.mkdir(exist_ok=True)
        Image.new('RGB', (2, 2), (i, int(label), 0)).save(path)
        if i in broken:
            path.write_bytes(b'no photo')
    paths = [Path(folder) / f'{c:03}' / f'{i:03}.png' for i, c in enumerate(labels)]
    return named('Catalog')(paths, labels)


def broken_photos(labels):
    "Return the positions of every sixth photo, and of all but one of product 2."
    every = np.random.default_rng(4).permutation(len(labels))[::6]
    return {*every.tolist(), *np.flatnonzero(labels == 2)[1:].tolist()}


def positions_with_unreadable():
    "Digests of the photos in three epochs where others stand in for photos that cannot be read."
    found = {}
    for (i, layout), kind in itertools.product(enumerate(LAYOUTS), KINDS):
        seed, shard, step = CASES[i]
        labels = layout_labels(layout)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action='ignore'):
            catalog = numbered_photos(folder, labels, broken_photos(labels))
            seen = batches(kind, catalog, size=(2, 2), seed=seed, shard=shard, first_step=step)
        what = f'{kind}, {layout}, seed {seed}, part {shard[0]} of {shard[1]}, from step {step}'
        found[what] = digest(*(x[:, 0, 0, 0].astype(int) for images, _ in seen for x in images))
    return found


def positions_of_input_triplet_gen():
    "Digests of the photos in ten batches, as drawn here and by the original notebook."
    found, how = {}, dict(batch_size=4, target_size=(2, 2), seed=5)
    with tempfile.TemporaryDirectory() as folder:
        numbered_photos(folder, layout_labels('even'))
        for what, kw in {'': {}, ', like the original': dict(like_original=True)}.items():
            seen = itertools.islice(call('input_triplet_gen', None, folder, **how, **kw), 10)
            found[f'input_triplet_gen{what}'] = digest(
                *(x[:, 0, 0, 0].astype(int) for images, _ in seen for x in images)
            )
    return found


# ---- 2: pixels of an augmented batch


def coloured_photos(folder, labels):
    "Write small photos that differ from place to place and from one another; return their Catalog."
    y, x = np.mgrid[:16, :20]
    paths = [Path(folder) / f'{i:03}.png' for i in range(len(labels))]
    for i, path in enumerate(paths):
        colours = np.stack([8 * x + 3 * i, 12 * y, 255 - 5 * x - 2 * i], -1).clip(0, 255)
        Image.fromarray(colours.astype(np.uint8)).save(path)
    return named('Catalog')(paths, labels)


AUGMENTED = {
    'P x K': dict(kind='P x K'),
    'P x K, part 1 of 2': dict(kind='P x K', shard=(1, 2)),
    'triplet': dict(kind='triplet', fit='crop'),
}


def augmented_pixels():
    "Return {case: pixels, float32 (b, h, w, 3)} of the fourth batch of an epoch, augmented."
    labels = layout_labels('even')
    with tempfile.TemporaryDirectory() as folder:
        catalog = coloured_photos(folder, labels)
        how = dict(size=(12, 16), augment=True, first_epoch=1, first_step=3, passes=1)
        return {
            what: np.concatenate(batches(catalog=catalog, **how | case)[0][0])
            for what, case in AUGMENTED.items()
        }


def augmented():
    "Mean levels of the quarters of each photo of an augmented batch."

    def quarters(x):
        return x.reshape(len(x), 2, 6, 2, 8, 3).mean((2, 4, 5))

    return {what: rounded(quarters(x), 2) for what, x in augmented_pixels().items()}


def augmented_exactly():
    "Digests of the pixels of an augmented batch, as they are on this machine."
    return {what: digest(x) for what, x in augmented_pixels().items()}


# ---- 5: metrics


def embeddings():
    "Return {name: (whole numbers as embeddings, float32 (n, d), their labels)}."
    rng = np.random.default_rng(6)
    even, uneven = np.arange(40) % 8, np.repeat(np.arange(9), [12, 7, 5, 5, 4, 3, 2, 1, 1])
    centres = rng.integers(-9, 10, (9, 5))
    return {
        name: (x.astype(np.float32), y)
        for name, x, y in [
            ('noise', rng.integers(-9, 10, (40, 6)), even),
            ('many ties', rng.integers(0, 2, (40, 4)) + 1, uneven),
            ('products', centres[uneven] + rng.integers(-4, 5, (40, 5)), uneven),
        ]
    }


def retrieval_values(*args, **kw):
    "Return the figures of `retrieval_metrics`, what chance gives, and two intervals."
    found = call('retrieval_metrics', *args, **kw)
    ends = [found.interval(name) for name in ('R@1', 'MAP@R')]
    return rounded([*found.values(), *found.chance.values(), *np.ravel(ends)], 6)


def verification_values(x, labels, metric):
    "Return the figures of `verification_report` and thresholds by each rule."
    same, different = call('pair_distances', x, labels, n=150, metric=metric)
    report = call('verification_report', same, different)
    rules = None, 'eer', 'f1', 0.1
    thresholds = [call('calibrate_threshold', same, different, fmr=rule) for rule in rules]
    figures = [len(same), len(different), report.auc, report.eer, report.accuracy]
    return rounded([*figures, *report.at(report.threshold), report.fnmr_at(0.1), *thresholds], 5)


def metrics():
    "Figures of retrieval, of verification and of the vote of neighbours; neighbours and triplets."
    found = {}
    for name, (x, y) in embeddings().items():
        for metric in ('cosine', 'euclidean'):
            how = f'{name}, {metric}'
            asked = np.arange(len(x)) % 3 == 0
            apart = x[asked], y[asked], x[~asked], y[~asked]
            found[f'retrieval, {how}'] = retrieval_values(x, y, metric=metric)
            found[f'retrieval, {how}, gallery'] = retrieval_values(*apart, metric=metric)
            votes = [call('knn_accuracy', x, y, k=k, metric=metric) for k in (1, 3, 8)]
            found[f'k-NN, {how}'] = rounded(votes, 6)
            found[f'verification, {how}'] = verification_values(x, y, metric)
        distances, neighbours = call('nearest', x, k=12, metric='sqeuclidean')
        found[f'neighbours, {name}'] = digest(np.rint(distances).astype(int), neighbours)
        hard = call('hard_triplets', x, y, metric='sqeuclidean')
        found[f'hard triplets, {name}'] = digest(*hard[:3])
        found[f'random triplets, {name}'] = digest(*call('random_triplets', y, 50, seed=2))
    return found


# ---- 3: every way from a file to pixels

SIZE = 30, 22
FITS = 'stretch', 'crop', 'pad'


def written(folder, files):
    "Write files of {name: bytes}; return their paths."
    for name, data in files.items():
        (Path(folder) / name).write_bytes(data)
    return [str(Path(folder) / name) for name in files]


def quarters(x):
    "Return the mean levels of the four quarters of pictures (..., 30, 22, 3)."
    return np.asarray(x, float).reshape(*x.shape[:-3], 2, 15, 2, 11, 3).mean((-4, -2, -1))


def problem_of(function, *args, **kw):
    "Return the kind of problem in the PhotoError that a function raises; '' where there is none."
    import tensorflow as tf

    try:
        function(*args, **kw)
    except (ValueError, tf.errors.OpError) as e:
        return call('photo_error', e).problem.split(':')[0]
    return ''


def pixels():
    "Digests of what `read_image` gives of 40 odd files; of lossy ones sizes and mean levels."
    found, lossy, read = {}, odd_files.jpegs(), named('read_image')
    with tempfile.TemporaryDirectory() as folder:
        for path in written(folder, odd_files.good_files()):
            whole, fitted = read(path), np.stack([read(path, SIZE, fit) for fit in FITS])
            name = Path(path).name
            levels = [*whole.shape[:2], *rounded(quarters(fitted), 1)]
            found[name] = levels if name in lossy else digest(whole, fitted)
        for path in written(folder, odd_files.broken_files()):
            found[Path(path).name] = problem_of(read, path)
    return found


def as_is():
    "Return a network that gives back the pixels it is shown."
    import keras

    photo = keras.Input((*SIZE, 3))
    return keras.Model(photo, keras.layers.Flatten()(photo))


def by_dataset(paths, fit):
    "Return the pixels that `image_dataset` gives of files."
    ds = call('image_dataset', paths, SIZE, 16, fit=fit)
    return np.concatenate([images for images, _ in ds.as_numpy_iterator()])


def by_encode(paths, fit):
    "Return the pixels that `encode` shows a network."
    return call('encode', paths, as_is(), fit=fit).reshape(-1, *SIZE, 3)


WAYS = {'image_dataset': by_dataset, 'encode': by_encode}


def ways():
    "Levels between ways from odd files to pixels and `read_image`: the largest, file by file."
    found, read = {}, named('read_image')
    with tempfile.TemporaryDirectory() as folder:
        paths = written(folder, odd_files.good_files())
        for fit, (way, pixels_of) in zip(('crop', 'pad'), WAYS.items()):
            want = np.stack([read(path, SIZE, fit) for path in paths])
            found[f'{way}, {fit}'] = largest(pixels_of(paths, fit) - want)
        found['thumbnail'] = [level for path in paths for level in beside_thumbnail(path)]
        broken = written(folder, odd_files.broken_files())
        found |= problems_by_way(paths[0], broken)
    return found


def problems_by_way(good, broken):
    "Return {way: kinds of problems of broken files}."
    lost = {}
    with warnings.catch_warnings(action='ignore'):
        call('encode', [good, *broken], as_is(), bad=lost)
    by_dataset_too = [problem_of(by_dataset, [good, path], 'stretch') for path in broken]
    return {
        'image_dataset, broken': ', '.join(by_dataset_too),
        'encode, broken': ', '.join(text.split(':')[0] for text in lost.values()),
    }


def largest(gap):
    return np.abs(gap).max((1, 2, 3)).tolist()


def beside_thumbnail(path):
    "Return the largest difference between a thumbnail and `read_image` at its size."
    small = np.asarray(call('thumbnail', path, 24), float)
    return largest((small - named('read_image')(path, small.shape[:2]))[None])


def pixels_exactly():
    "Digests of the pixels of odd files, way by way."
    found, read = {}, named('read_image')
    with tempfile.TemporaryDirectory() as folder:
        paths = written(folder, odd_files.good_files())
        for fit in FITS:
            for way, pixels_of in WAYS.items():
                for path, x in zip(paths, pixels_of(paths, fit)):
                    found[f'{way}, {fit}, {Path(path).name}'] = digest(x)
            for path in paths:
                found[f'read_image, {fit}, {Path(path).name}'] = digest(read(path, SIZE, fit))
    return found


def saved_model():
    "Digests of the pixels that the decoder of a SavedModel makes of odd files, or 'refused'."
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        served = call('load_export', call('export', as_is(), Path(folder) / 'served'))
        for name, data in (odd_files.good_files() | odd_files.broken_files()).items():
            try:
                found[name] = digest(served.files([data]))
            except ValueError:
                found[name] = 'refused'
    return found


# ---- 6: files of networks


def answers(net, photos):
    "Return what a network answers to the first photo."
    inputs = [photos] * len(net.inputs)
    found = net.predict(inputs if len(inputs) > 1 else photos, verbose=0)
    return rounded(found[0], 5)


def keras_2_files():
    "Return the answers of networks that Keras 2 wrote."
    folder, found = TESTS / 'referees' / 'keras2_nets', {}
    x = np.load(folder / 'answers.npz')['x']
    pairs = ('base.json', 'base.h5'), ('model_2_1.json', 'whole.h5'), (None, 'whole.h5')
    for pair in pairs:
        net = call('load_model', *(name and folder / name for name in pair))
        found[f'Keras 2, {pair[0]} and {pair[1]}'] = answers(net, x)
    return found


def keras_2_checkpoints():
    "Return the answers of a network that goes on from checkpoints of Keras 2."
    import keras

    layers, folder, found = keras.layers, TESTS / 'referees', {}
    x = np.load(folder / 'keras2.npz')['x']
    for name in ('keras2_base.h5', '000001-1.0883.h5'):
        lower = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Conv2D(4, 3, strides=2, padding='same', use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.GlobalAveragePooling2D(),
            ]
        )
        net = call('base_network', (8, 8, 3), 6, lower, hidden=(5,), rescale=None)
        model = net if 'base' in name else call('compile_triplet', call('triplet_model', net))
        epoch = call('continue_from', model, folder / name)
        found[f'Keras 2, {name}'] = [epoch, *answers(net, x)]
    return found


def old_bundle():
    "Return the answers and the notes of a bundle of version 1."
    net, meta = call('load_bundle', TESTS / 'fixtures' / 'bundle_v1.tfz')
    x = np.random.default_rng(0).integers(0, 256, (2, *net.input_shape[1:])).astype('uint8')
    notes = json.dumps([meta, net.threshold], sort_keys=True)
    return {'bundle of version 1': answers(net, x), 'its notes': digest(list(notes.encode()))}


def round_trips():
    "Return how far networks answer otherwise after they were saved and opened again."
    import keras

    keras.utils.set_random_seed(0)
    net = call('base_network', (32, 32, 3), 6, backbone='small', weights=None, hidden=(8,))
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype('uint8')
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder) / 'net.json', Path(folder) / 'net.h5'
        call('save_model', net, *pair)
        bundle = call('save_bundle', Path(folder) / 'bundle', net, note=[1, 'a'])
        again, meta = call('load_bundle', bundle)
        opened = {'two files': call('load_model', *pair), 'bundle': again}
        gaps = {
            f'{what}, written and opened': [
                float(np.abs(o.predict(x, verbose=0) - net.predict(x, verbose=0)).max())
            ]
            for what, o in opened.items()
        }
    return gaps | {'notes of a bundle': json.dumps(meta)}


def files():
    "Answers of networks in files: of Keras 2, of an old bundle, and of today's forms."
    return keras_2_files() | keras_2_checkpoints() | old_bundle() | round_trips()


# ---- 4: trainings


def small_backbone():
    "Return a backbone that stands for one that was trained elsewhere."
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(3)
    x = photo = keras.Input((32, 32, 3))
    for width in 6, 8:
        x = layers.Conv2D(width, 3, strides=2, padding='same', use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Add()([x, layers.Conv2D(width, 3, padding='same')(x)])
    return keras.Model(photo, layers.GlobalAveragePooling2D()(x))


SMALL = dict(epochs=2, steps=5, size=(32, 32), out_dims=8, seed=1, verbose=0)
PK = SMALL | dict(P=4, K=3)

RUNS = {  # settings of `fit`, and the steps after which it is interrupted
    'original': (SMALL | dict(batch_size=6), [7]),
    'scratch': (PK, [7]),
    'strong': (PK, [3, 7]),
    'products': (PK | dict(discriminant=3, dropout=0.1), [7]),
    'deep': (PK | dict(unfreeze=0.5, tune_epochs=2, copies=2), [7, 16]),
}


def interruption(after):
    "Return a callback that interrupts a training after so many steps; never with 0."
    import keras

    steps = itertools.count(1)  # not in the callback, whose own numbers a run keeps and puts back

    class Interruption(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if next(steps) == after:
                raise KeyboardInterrupt

    return Interruption()


def known_recipe(name):
    "Return the name that the package has for a recipe."
    known = named('Recipe').names if 'Recipe' in public() else named('RECIPES')
    return next(n for n in (name, *NAMES.get(name, ())) if n in known)


def trained(name, photos, after=0, **kw):
    "Return what `fit` makes of a recipe; None where it was interrupted."
    seen, unseen = photos.split(0.34, seed=1)
    how = RUNS[name][0] | dict(backbone=small_backbone(), callbacks=[interruption(after)]) | kw
    try:
        return call('fit', seen, valid=unseen, recipe=known_recipe(name), **how)
    except KeyboardInterrupt:
        return None


def resumed(name, photos, after, folder):
    "Return what `fit` makes of a recipe that is interrupted once and goes on."

    def keep():
        return call('RunFolder', folder, steps=2)

    assert trained(name, photos, after, run_dir=keep()) is None, f'{name} had no step {after}'
    return trained(name, photos, run_dir=keep())


def run_digests(what, run):
    "Return the history of a run, and digests of its weights."
    found = {f'{what}, history, {k}': list(map(float, v)) for k, v in run.history.items()}
    return found | {f'{what}, weights': digest(*run.net.get_weights())}


def recipes():
    "Histories and weights of short trainings, whole, and interrupted in each stage."
    found = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action='ignore'):
        photos = call('draw_catalog', Path(folder) / 'photos', 9, 5, size=(32, 32))
        for name, (_, stops) in RUNS.items():
            found |= run_digests(f'{name}, whole', trained(name, photos))
            for after in stops:
                run = resumed(name, photos, after, Path(folder) / f'{name} {after}')
                found |= run_digests(f'{name}, interrupted after {after} steps', run)
        Path(photos.paths[3]).write_bytes(b'no photo')
        found |= run_digests('strong, a photo unreadable', trained('strong', photos))
    return found
