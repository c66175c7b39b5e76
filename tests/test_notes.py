"Notes beside foundation models, shaped as timm, OpenCLIP and Hugging Face write them."

import json

import numpy as np
import pytest

from triplet_fashion.input_scaling import InputScaling, read_preprocessing

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
OPENAI = dict(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
HALF = dict(mean=(0.5,) * 3, std=(0.5,) * 3)


def of_transformers(kind, pixels, **more):
    "Return a note of Hugging Face, as its versions from 4.26 on write it."
    steps = dict(do_normalize=True, do_rescale=True, do_resize=True, resample=3)
    steps |= dict(rescale_factor=0.00392156862745098, image_processor_type=kind)
    return steps | dict(image_mean=[*pixels['mean']], image_std=[*pixels['std']]) | more


def of_timm(pixels, **more):
    "Return a note of timm, as it stands in `config.json` on the hub."
    cut = dict(interpolation='bicubic', crop_pct=0.9, crop_mode='center', num_classes=1000)
    said = dict(tag='augreg', custom_load=True, input_size=[3, 224, 224], fixed_input_size=True)
    said |= {k: [*v] for k, v in pixels.items()} | cut | dict(pool_size=None, classifier='head')
    return dict(architecture='vit_base_patch16_224', num_features=768, pretrained_cfg=said | more)


def of_open_clip(pixels, **more):
    "Return a note of OpenCLIP."
    said = {k: [*v] for k, v in pixels.items()} | more
    vision = dict(image_size=224, timm_model_name='vit_base_patch16_siglip_224')
    return dict(model_cfg=dict(embed_dim=768, vision_cfg=vision), preprocess_cfg=said)


OLD_CLIP = dict(
    crop_size=224,
    do_center_crop=True,
    do_normalize=True,
    do_resize=True,
    feature_extractor_type='CLIPFeatureExtractor',
    image_mean=[*OPENAI['mean']],
    image_std=[*OPENAI['std']],
    resample=3,
    size=224,
)
OLD_VIT = dict(
    do_normalize=True,
    do_resize=True,
    feature_extractor_type='ViTFeatureExtractor',
    image_mean=[0.5] * 3,
    image_std=[0.5] * 3,
    resample=2,
    size=224,
)
SQUARE = dict(height=224, width=224)
CUT = dict(do_center_crop=True, crop_size=SQUARE)
HF, TIMM, OPEN = 'preprocessor_config.json', 'config.json', 'open_clip_config.json'

CASES = {
    'CLIP, 2021': (HF, OLD_CLIP, OPENAI, 'crop'),
    'CLIP': (
        HF,
        of_transformers('CLIPImageProcessor', OPENAI, size=dict(shortest_edge=224), **CUT),
        OPENAI,
        'crop',
    ),
    'SigLIP': (HF, of_transformers('SiglipImageProcessor', HALF, size=SQUARE), HALF, 'stretch'),
    'DINOv2': (
        HF,
        of_transformers('BitImageProcessor', IMAGENET, size=dict(shortest_edge=256), **CUT),
        IMAGENET,
        'crop',
    ),
    'ViT, 2021': (HF, OLD_VIT, HALF, 'stretch'),
    'ViT': (HF, of_transformers('ViTImageProcessor', HALF, size=SQUARE), HALF, 'stretch'),
    'ConvNeXt': (
        HF,
        of_transformers(
            'ConvNextImageProcessor', IMAGENET, size=dict(shortest_edge=224), crop_pct=0.875
        ),
        IMAGENET,
        'crop',
    ),
    'ConvNeXt, 2022': (
        HF,
        dict(OLD_VIT, image_mean=IMAGENET['mean'], image_std=IMAGENET['std'], crop_pct=0.875),
        IMAGENET,
        'crop',
    ),
    'BEiT cuts nothing': (
        HF,
        of_transformers(
            'BeitImageProcessor', HALF, size=SQUARE, do_center_crop=False, crop_size=SQUARE
        ),
        HALF,
        'stretch',
    ),
    'SigLIP, transformers 5': (
        'processor_config.json',
        dict(image_processor=of_transformers('SiglipImageProcessor', HALF, size=SQUARE)),
        HALF,
        'stretch',
    ),
    'timm': (TIMM, of_timm(HALF), HALF, 'crop'),
    'timm, SigLIP': (TIMM, of_timm(HALF, crop_mode='squash', crop_pct=1.0), HALF, 'stretch'),
    'timm, with borders': (TIMM, of_timm(IMAGENET, crop_mode='border'), IMAGENET, 'pad'),
    'timm, flat': (TIMM, of_timm(IMAGENET)['pretrained_cfg'], IMAGENET, 'crop'),
    'OpenCLIP': (OPEN, of_open_clip(OPENAI), OPENAI, 'crop'),
    'OpenCLIP, SigLIP': (OPEN, of_open_clip(HALF, resize_mode='squash'), HALF, 'stretch'),
    'OpenCLIP, padded': (OPEN, of_open_clip(HALF, resize_mode='longest'), HALF, 'pad'),
}


@pytest.fixture
def write(tmp_path):
    def note(name, said):
        (tmp_path / name).write_text(json.dumps(said))
        return tmp_path

    return note


@pytest.mark.parametrize('name, note, pixels, fit', CASES.values(), ids=CASES)
def test_what_a_note_says_is_what_a_layer_does(write, name, note, pixels, fit):
    said = read_preprocessing(write(name, note) / 'model.onnx')
    assert said.size == (224, 224) and said.fit == fit and said.order == 'rgb'
    photo = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype('uint8')
    want = (photo / 255 - np.array(pixels['mean'])) / np.array(pixels['std'])
    np.testing.assert_allclose(InputScaling(said)(photo), want, atol=1e-5)


@pytest.mark.parametrize(
    'changed, black, white',
    [
        (dict(do_normalize=False), 0, 1),
        (dict(do_normalize=False, do_rescale=False), 0, 255),
        (dict(do_rescale=False), -1, 509),
        (dict(rescale_factor=1 / 127.5), -1, 3),
    ],
)
def test_steps_that_are_left_out(write, changed, black, white):
    note = of_transformers('SiglipImageProcessor', HALF, size=SQUARE, **changed)
    if not note['do_normalize']:
        note = {k: v for k, v in note.items() if not k.startswith('image_mean')}
    layer = InputScaling(read_preprocessing(write(HF, note)))
    found = np.asarray(layer(np.array([[0, 0, 0], [255, 255, 255]], 'uint8')))[:, 0]
    np.testing.assert_allclose(found, [black, white], atol=1e-4)


@pytest.mark.parametrize(
    'said, size, fit',
    [
        (dict(size=384), (384, 384), 'stretch'),
        (dict(size=[256, 128]), (256, 128), 'stretch'),
        (dict(size=dict(height=256, width=128)), (256, 128), 'stretch'),
        (dict(size=dict(shortest_edge=384)), (384, 384), 'crop'),
        (dict(size=dict(shortest_edge=384), crop_pct=1.0), (384, 384), 'stretch'),
        (dict(size=256, crop_size=224, do_center_crop=True), (224, 224), 'crop'),
        (dict(size=dict(longest_edge=512)), None, 'stretch'),
        (dict(size=SQUARE, do_resize=False), None, 'stretch'),
        (dict(), None, 'stretch'),
    ],
)
def test_sizes_in_all_their_spellings(write, said, size, fit):
    found = read_preprocessing(write(HF, of_transformers('ViTImageProcessor', HALF, **said)))
    assert (found.size, found.fit) == (size, fit)


def test_a_file_in_the_folder_onnx_has_its_note_above(write, tmp_path):
    write(HF, OLD_VIT)
    (tmp_path / 'onnx').mkdir()
    (tmp_path / 'other').mkdir()
    assert read_preprocessing(tmp_path / 'onnx' / 'model.onnx').source == str(tmp_path / HF)
    assert read_preprocessing(tmp_path / 'other' / 'model.onnx') is None
    nearer = dict(OLD_VIT, size=96)
    (tmp_path / 'onnx' / HF).write_text(json.dumps(nearer))
    assert read_preprocessing(tmp_path / 'onnx' / 'model.onnx').size == (96, 96)


def test_notes_of_other_things_are_passed_over(write):
    write('config.json', dict(model_type='clip', vision_config=dict(image_size=224)))
    folder = write('processor_config.json', dict(processor_class='CLIPProcessor'))
    assert read_preprocessing(folder) is None
    assert read_preprocessing(write(OPEN, of_open_clip(HALF))).mean == HALF['mean']


@pytest.mark.parametrize(
    'name, note',
    [
        (HF, dict(OLD_VIT, image_mean=[0.5, 0.5])),
        (HF, dict(OLD_VIT, image_std=[0.5, 0, 0.5])),
        (HF, {k: v for k, v in OLD_VIT.items() if k != 'image_std'}),
        (HF, dict(OLD_VIT, size='large')),
        (TIMM, of_timm(HALF, std=None)),
        (OPEN, of_open_clip(HALF, std=None)),
        ('processor_config.json', dict(image_processor=dict(size=SQUARE))),
        (HF, []),
    ],
)
def test_a_note_that_says_nothing_of_pixels_is_named(write, name, note):
    with pytest.raises(ValueError, match=name):
        read_preprocessing(write(name, note))
