"""Make keras2_base.h5, 000001-1.0883.h5 and keras2.npz: files as Keras 2 wrote them, for test_training.py.

    pip install tf_keras && python tests/referees/keras2.py
"""
from pathlib import Path
import numpy as np, tf_keras as k

def base():
    lower = k.Sequential([k.layers.Conv2D(4, 3, strides=2, padding='same', use_bias=False), k.layers.BatchNormalization(), k.layers.ReLU(), k.layers.GlobalAveragePooling2D()], name='small')
    lower.build((None, 8, 8, 3))
    return k.Sequential([k.Input((8, 8, 3)), lower, k.layers.Dense(5, activation='relu'), k.layers.Dense(6, activation='sigmoid')])

here = Path(__file__).parent
k.utils.set_random_seed(0)
net = base()
rng = np.random.default_rng(0)
net.set_weights([rng.normal(size=w.shape).astype('float32')**2 for w in net.get_weights()])
inputs = [k.Input((8, 8, 3), name=n) for n in ('anchor', 'positive', 'negative')]
model = k.Model(inputs, k.layers.concatenate([net(i) for i in inputs]))
x = rng.uniform(size=(2, 8, 8, 3)).astype('float32')
model.compile(k.optimizers.Adam(1e-4), 'mse'); model.fit([x, x, x], np.zeros((2, 18)), verbose=0)
net.save_weights(here/'keras2_base.h5')
model.save(here/'000001-1.0883.h5')          # the whole model, as the seed's ModelCheckpoint wrote it
np.savez_compressed(here/'keras2.npz', x=x, y=net.predict(x, verbose=0))
