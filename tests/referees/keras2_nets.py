"""Make keras2_nets/: networks as Keras 2 wrote them, JSON and HDF5, and what they answered, for test_persistence.py.

    pip install tf_keras && python tests/referees/keras2_nets.py

A small residual network inside a Sequential base inside a three-input model, as the seed has ResNet50.
`tf_keras` writes the dialect of TensorFlow 2.15; `as_in_2_1` turns a JSON into that of TensorFlow 2.1.
"""
import json
from pathlib import Path
import numpy as np, tf_keras as k
L = k.layers

def resnet(shape, name='resnet', freeze=0):
    "Two residual blocks in the layers that ResNet50 is made of."
    conv = lambda x, n, size, strides, name: L.Activation('relu', name=name + '_relu')(L.BatchNormalization(epsilon=1.001e-5, name=name + '_bn')(L.Conv2D(n, size, strides, padding='same', name=name + '_conv')(x)))
    i = L.Input(shape)
    x = L.MaxPooling2D(3, 2, name='pool1_pool')(L.ZeroPadding2D(((1, 1), (1, 1)), name='pool1_pad')(conv(L.ZeroPadding2D(1, name='conv1_pad')(i), 4, 3, 2, 'conv1')))
    for b in '23':
        short = L.BatchNormalization(name=f'conv{b}_0_bn')(L.Conv2D(6, 1, name=f'conv{b}_0_conv')(x))
        x = L.Activation('relu', name=f'conv{b}_out')(L.Add(name=f'conv{b}_add')([short, conv(conv(x, 4, 1, 1, f'conv{b}_1'), 6, 3, 1, f'conv{b}_2')]))
    net = k.Model(i, L.GlobalAveragePooling2D(name='avg_pool')(x), name=name)
    for layer in net.layers[:freeze]: layer.trainable = False
    return net

def base(shape=(16, 16, 3), out=6, activation='sigmoid', backbone=None, hidden=5):
    return k.Sequential([backbone or resnet(shape), L.Dense(hidden, activation='relu'), L.Dense(out, activation=activation)])

def triplet(net):
    inputs = [k.Input(net.input_shape[1:], name=n) for n in ('anchor', 'positive', 'negative')]
    return k.Model(inputs, L.concatenate([net(i) for i in inputs]))

def shaken(net, rng):
    "Numbers in every weight that are neither 0 nor 1, so that a weight in the wrong place shows."
    net.set_weights([(rng.uniform(.5, 1.5, w.shape) if w.ndim == 1 else rng.normal(size=w.shape)/np.sqrt(np.prod(w.shape[:-1]))).astype('float32') for w in net.get_weights()])
    return net

def as_in_2_1(text):
    "JSON of today's tf_keras in the dialect of TensorFlow 2.1: `Model`, no modules, no input layer in a Sequential."
    def old(c):
        if isinstance(c, list): return [old(o) for o in c]
        if not isinstance(c, dict): return c
        c = {n: old(v) for n, v in c.items() if n not in ('module', 'registered_name', 'build_config', 'optional', 'keepdims')}
        if c.get('class_name') == 'Functional': c['class_name'] = 'Model'; c['config'].pop('trainable', None)
        if c.get('class_name') == 'Conv2D': c['config'].pop('groups', None)
        if c.get('class_name') == 'Sequential' and c['config']['layers'][0]['class_name'] == 'InputLayer':
            first, *rest = c['config']['layers']
            if rest[0]['class_name'] != 'Model': rest[0]['config']['batch_input_shape'] = first['config']['batch_input_shape']
            c['config'] |= dict(layers=rest, build_input_shape=first['config']['batch_input_shape'])
        return c
    return json.dumps(old(json.loads(text)) | dict(keras_version='2.2.4-tf'))

def write(net, folder, name):
    (folder/f'{name}.json').write_text(net.to_json())
    net.save_weights(folder/f'{name}.h5')

if __name__ == '__main__':
    here = Path(__file__).with_name('keras2_nets')
    here.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (3, 16, 16, 3)).astype('float32')
    net = shaken(base(), rng)
    model = triplet(net)
    write(net, here, 'base'); write(model, here, 'model')
    (here/'base_2_1.json').write_text(as_in_2_1(net.to_json())); (here/'model_2_1.json').write_text(as_in_2_1(model.to_json()))
    model.compile(k.optimizers.Adam(1e-4), lambda y, p: k.backend.mean(p, -1))
    model.train_on_batch([x, x, x], np.zeros((3, 18)))
    model.save(here/'whole.h5', include_optimizer=True)
    np.savez_compressed(here/'answers.npz', x=x, after=net.predict(x, verbose=0))
    net.load_weights(here/'base.h5')
    np.savez_compressed(here/'answers.npz', x=x, y=net.predict(x, verbose=0), after=np.load(here/'answers.npz')['after'])
