"""keep_interval: the weights of every N-th iteration stay, and change nothing."""

import os
from dataclasses import replace

import pytest
import torch
from conftest import run_main, settings, sha256_of

import sample
import train
from gradus import checkpoint
from gradus.errors import UserError


def weights(path):
    return sha256_of(checkpoint.load(path)['model'])


def kept(folder='out'):
    return sorted(name for name in os.listdir(folder) if name.startswith('step-'))


def test_the_weights_of_every_nth_iteration_are_kept(place):
    whole = settings(max_iters=12, keep_interval=5)
    train.main(whole)
    assert kept() == ['step-000000.pt', 'step-000005.pt', 'step-000010.pt']
    assert len({weights(f'out/{name}') for name in kept()}) == 3
    assert 'optimizer' not in torch.load('out/step-000005.pt', weights_only=True)

    train.main(replace(whole, out_dir='short', max_iters=5, keep_interval=0, lr_decay_iters=whole.lr_decay_iters))
    assert weights('out/step-000005.pt') == weights('short/ckpt.pt')
    assert kept('short') == []
    train.main(replace(whole, out_dir='none', keep_interval=0))
    assert weights('none/ckpt.pt') == weights('out/ckpt.pt')


def test_a_resumed_run_goes_on_keeping(place):
    train.main(settings(max_iters=7, keep_interval=5))
    train.main(settings(max_iters=16, keep_interval=5, init_from='resume'))
    assert kept() == ['step-000000.pt', 'step-000005.pt', 'step-000010.pt', 'step-000015.pt']


def test_a_new_run_in_the_folder_moves_them_aside(place):
    train.main(settings(max_iters=6, keep_interval=5))
    train.main(settings(max_iters=2))
    assert kept() == []
    assert kept('out-1') == ['step-000000.pt', 'step-000005.pt']


def test_sample_py_reads_them(place):
    train.main(settings(max_iters=6, keep_interval=5))
    texts = [run_main(sample, '--out_dir=out', f'--checkpoint={name}', '--num_samples=1', '--max_new_tokens=60',
                      '--device=cpu').stdout for name in kept()]
    assert all(texts) and texts[0] != texts[1]


def test_a_negative_interval(place):
    with pytest.raises(UserError, match='keep_interval=-1'):
        train.main(settings(keep_interval=-1))
