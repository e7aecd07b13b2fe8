"""
Mistakes of the user and what they get: one line on stderr, exit code 2, no traceback, nothing written.

Each case is the arguments of a script and the beginning of the error.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import settings, snapshot

import sample
import train
from gradus import checkpoint, configurator
from gradus.errors import UserError

TINY = (
    '--dataset=babble --device=cpu --block_size=16 --batch_size=2 --gradient_accumulation_steps=1 '
    '--n_layer=1 --n_head=2 --n_embd=8 '
    '--max_iters=2 --lr_decay_iters=2 --warmup_iters=0 --eval_interval=2 --eval_iters=1'
).split()
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has CUDA')

TRAIN = [
    ('--learning_rat=1', '--learning_rat: unknown key; did you mean learning_rate?'),
    ('--xyzzy=1', '--xyzzy: unknown key; --help lists all'),
    ('--learning_rate', '--learning_rate: expected --key=value'),
    ('-v', '-v: expected --key=value'),
    ('--learning_rate=fast', "--learning_rate=fast: expected float, found 'fast'"),
    ('--max_iters=1.5', '--max_iters=1.5: expected int, found 1.5'),
    ('--bias=maybe', "--bias=maybe: expected bool, found 'maybe'"),
    ('--compile=perhaps', "compile='perhaps': expected one of auto, True, False"),
    ('config/missing.py', 'config/missing.py: no such config file'),
    ('bad_syntax.py', 'bad_syntax.py:2: '),
    ('bad_name.py', "bad_name.py:1: NameError: name 'missing' is not defined"),
    ('bad_type.py', "bad_type.py: batch_size: expected int, found 'many'"),
    ('--dropout=1.5', 'dropout=1.5: expected at least 0 and less than 1'),
    ('--dropout=-0.1', 'dropout=-0.1: expected at least 0'),
    ('--batch_size=0', 'batch_size=0: expected at least 1'),
    ('--block_size=-5', 'block_size=-5: expected an integer of 1 or more'),
    ('--n_embd=9', 'n_embd=9, n_head=2: expected n_embd to be a multiple of n_head'),
    ('--n_kv_head=3', 'n_head=2, n_kv_head=3: expected n_head to be a multiple of n_kv_head'),
    ('--n_layer=0', 'n_layer=0: expected an integer of 1 or more'),
    ('--pos=polar', "pos='polar': expected one of learned, sinusoidal, rotary"),
    ('--max_iters=-1', 'max_iters=-1: expected at least 0'),
    ('--eval_interval=0', 'eval_interval=0: expected at least 1'),
    ('--learning_rate=-1', 'learning_rate=-1.0: expected between 0 and 1000000'),
    ('--learning_rate=1e39 --optimizer=muon', 'learning_rate=1e+39: expected between 0 and'),
    ('--learning_rate=1e999', 'learning_rate=inf: expected between 0 and'),
    ('--rope_theta=1e999', 'rope_theta=inf: expected between 0.001 and'),
    ('--rope_theta=1e-320', 'rope_theta=1e-320: expected between 0.001 and'),
    ('--beta2=1', 'beta2=1.0: expected between 0 and'),
    ('--seed=-1', 'seed=-1: expected between 0 and'),
    ('--dtype=float8', "dtype='float8': expected one of auto, float32, bfloat16, float16"),
    ('--lr_schedule=cosin', "lr_schedule='cosin': expected one of cosine, linear; did you mean cosine?"),
    ('--out_dir=.', "out_dir='.': expected a folder of its own"),
    ('--out_dir=', "out_dir='': expected a folder of its own"),
    ('--out_dir=binary.txt', "out_dir='binary.txt': expected a folder of its own for the run; this is a file"),
    ('--device=tpu9', 'device=tpu9: expected auto, cpu, mps, cuda or cuda:N'),
    ('--device=meta', 'device=meta: expected auto'),
    pytest.param('--device=cuda', 'device=cuda: this machine has no CUDA', marks=NO_CUDA),
    ('--init_from=gtp2', 'init_from=gtp2: expected scratch, resume, auto, gpt2'),
    (
        '--init_from=resume',
        'out/ckpt.pt: not found; expected a checkpoint of train.py; '
        'runs here: alien, best, broken, small (--out_dir=...)',
    ),
    ('--init_from=resume --out_dir=small --n_layer=3', 'small/ckpt.pt has n_layer=1, but the settings say n_layer=3'),
    (
        '--init_from=resume --out_dir=small --block_size=8',
        'small/ckpt.pt has block_size=16, but the settings say block_size=8',
    ),
    (
        '--init_from=resume --out_dir=small --pos=rotary',
        'small/ckpt.pt has pos=learned, but the settings say pos=rotary',
    ),
    (
        '--init_from=resume --out_dir=small --dataset=bytes',
        'small/ckpt.pt was trained with another tokenizer (vocab_size=10)',
    ),
    ('--init_from=resume --out_dir=best', 'best/ckpt.pt: no optimizer state to resume from'),
    ('--init_from=resume --out_dir=broken', 'broken/ckpt.pt: damaged, or not a PyTorch checkpoint'),
    ('--init_from=resume --out_dir=alien', 'alien/ckpt.pt: model_args and weights do not fit: '),
    (
        '--dataset=missing',
        'data/missing: no such dataset; expected a folder with train.bin and val.bin (here: babble, big, ',
    ),
    (
        '--dataset=unprepared',
        'data/unprepared: no train.bin; prepare the dataset first: python data/unprepared/prepare.py',
    ),
    ('--dataset=unmade', 'data/unmade/train.bin: not found; prepare the dataset first'),
    ('--dataset=failing', 'data/failing: could not be prepared, see above'),
    ('--dataset=empty', 'data/empty/train.bin: 0 tokens; expected at least block_size + 1 = 17'),
    ('--dataset=short', 'data/short/val.bin: 16 tokens; expected at least block_size + 1 = 17'),
    ('--dataset=odd', 'data/odd/train.bin: 101 bytes; expected a multiple of 2'),
    ('--dataset=big', 'data/big/train.bin: token id 99; expected ids below the vocabulary size 10'),
    ('--dataset=pickled', "data/pickled/meta.pkl: expected nanoGPT's plain dictionary"),
    ('--dataset=typed', "data/typed/meta.json: vocab_size is 'ten'; expected an integer from 1 to"),
    ('--dataset=magic', "data/magic/meta.json: tokenizer {'kind': 'magic'}: expected a kind among byte, char, gpt2"),
    ('--wandb_log=True', 'wandb_log=True needs wandb; pip install wandb'),
]

SAMPLE = [
    ('--start=ab!', "character '!' at position 2 of the text 'ab!'"),
    ('--start=FILE:missing.txt', 'missing.txt: No such file'),
    ('--start=FILE:binary.txt', 'binary.txt: not UTF-8 text'),
    (
        '--out_dir=nowhere',
        'nowhere/ckpt.pt: not found; expected a checkpoint of train.py; '
        'runs here: alien, best, broken, small (--out_dir=...)',
    ),
    ('--checkpoint=../small/ckpt.pt', 'checkpoint=../small/ckpt.pt: expected the name of a file in out_dir'),
    ('--checkpoint=third.pt', 'small/third.pt: not found'),
    ('--temperature=-1', 'temperature=-1.0: expected at least 0'),
    ('--max_new_tokens=99999999999999999999', '--max_new_tokens=99999999999999999999: expected int up to 2^64'),
    ('--num_samples=10000000', 'num_samples=10000000: expected between 1 and 100000'),
    ('--num_samples=0', 'num_samples=0: expected between 1 and 100000'),
    ('--top_k=-3', 'top_k=-3: expected at least 0'),
    ('--max_new_tokens=-1', 'max_new_tokens=-1: expected at least 0'),
    ('--top_q=0.9', '--top_q: unknown key; did you mean top_'),
    ('--out_dir=broken', 'broken/ckpt.pt: damaged, or not a PyTorch checkpoint'),
    ('--out_dir=alien', 'alien/ckpt.pt: model_args and weights do not fit'),
    (
        '--dataset=missing',
        'data/missing: no such dataset; expected a folder with train.bin and val.bin (here: babble, big, ',
    ),
    ('--dataset=bytes', 'small/best.pt: a tokenizer of 256 tokens for a model of 10'),
    pytest.param('--device=cuda', 'device=cuda: this machine has no CUDA', marks=NO_CUDA),
]


def meta_of(vocab_size, tokenizer):
    return json.dumps(dict(vocab_size=vocab_size, dtype='uint16', tokenizer=tokenizer)).encode()


CHARS_META = meta_of(10, {'kind': 'char', 'chars': list('\n abcdefgh')})


def write_dataset(name, train_bin=bytes(400), val_bin=bytes(400), meta=CHARS_META, meta_name='meta.json'):
    folder = Path('data', name)
    folder.mkdir(parents=True)
    (folder / 'train.bin').write_bytes(train_bin)
    (folder / 'val.bin').write_bytes(val_bin)
    (folder / meta_name).write_bytes(meta)


def write_datasets():
    """One good dataset, and one for each thing that can be wrong with a dataset."""
    write_dataset('babble', np.tile(np.arange(10, dtype='<u2'), 100).tobytes())
    write_dataset('bytes', meta=meta_of(256, {'kind': 'byte'}))
    write_dataset('empty', b'')
    write_dataset('short', val_bin=bytes(32))
    write_dataset('odd', bytes(101))
    write_dataset('big', np.full(100, 99, dtype='<u2').tobytes())
    write_dataset('pickled', meta=b'cos\nsystem\n(S"touch was_here"\ntR.', meta_name='meta.pkl')
    write_dataset('typed', meta=b'{"vocab_size": "ten"}')
    write_dataset('magic', meta=meta_of(10, {'kind': 'magic'}))

    for name in ('unmade', 'unprepared', 'failing'):
        os.makedirs(f'data/{name}')
    Path('data/unprepared/prepare.py').write_text('import big_download')
    Path('data/failing/prepare.py').write_text('AUTOMATIC = True\nraise SystemExit(3)')


def write_runs():
    """A good run, `small`, and three that are not."""
    train.main(configurator.load(train.TrainConfig, [*TINY, '--out_dir=small']))
    state = checkpoint.load('small/ckpt.pt')
    for name in ('best', 'alien', 'broken'):
        os.mkdir(name)

    checkpoint.save('best/ckpt.pt', {key: value for key, value in state.items() if key != 'optimizer'})
    del state['model']['transformer.ln_f.weight']
    checkpoint.save('alien/ckpt.pt', state)
    Path('broken/ckpt.pt').write_bytes(b'not a checkpoint')


@pytest.fixture(scope='module')
def ground(tmp_path_factory):
    """A working folder with everything that can be wrong in it."""
    place = tmp_path_factory.mktemp('ground')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Path('bad_syntax.py').write_text('a = 1\nb = = 2\n')
        Path('bad_name.py').write_text('x = missing\n')
        Path('bad_type.py').write_text('batch_size = "many"\n')
        Path('binary.txt').write_bytes(b'\xff\xfe')
        write_datasets()
        write_runs()
    return place


def refused(script, cls, argv, expected, ground, monkeypatch, capsys):
    """Run the script, which must end as the docstring of this file says."""
    monkeypatch.chdir(ground)
    monkeypatch.setitem(sys.modules, 'wandb', None)
    before = snapshot('.')

    with pytest.raises(SystemExit) as e:
        configurator.launch(script.main, cls, argv)

    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if not line.startswith('warning: ')]
    assert e.value.code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith(f'error: {expected}'), err
    assert snapshot('.') == before


@pytest.mark.parametrize('args, expected', TRAIN)
def test_train(args, expected, ground, monkeypatch, capsys):
    argv = [*TINY, *args.split()]
    refused(train, train.TrainConfig, argv, expected, ground, monkeypatch, capsys)


@pytest.mark.parametrize('args, expected', SAMPLE)
def test_sample(args, expected, ground, monkeypatch, capsys):
    argv = ['--out_dir=small', '--device=cpu', *args.split()]
    refused(sample, sample.SampleConfig, argv, expected, ground, monkeypatch, capsys)


def test_good_settings_are_accepted(ground, monkeypatch):
    """Negative control: the settings that every case above starts from."""
    monkeypatch.chdir(ground)
    configurator.launch(train.main, train.TrainConfig, [*TINY, '--out_dir=fine'])

    argv = ['--out_dir=fine', '--device=cpu', '--num_samples=1', '--max_new_tokens=1']
    configurator.launch(sample.main, sample.SampleConfig, argv)


@pytest.mark.parametrize('changes, expected', [
    (dict(lr_decay_iters=600_000), 'lr_decay_iters=600000 is far beyond max_iters=3'),
    (dict(warmup_iters=3), 'warmup_iters=3 is not less than'),
    (dict(), None),
])
def test_traps_get_a_warning(changes, expected, capsys):
    short = dict(max_iters=3, lr_decay_iters=3, warmup_iters=0)
    train.check(settings(**{**short, **changes}))

    err = capsys.readouterr().err
    if expected:
        assert expected in err
    else:
        assert err == ''


def test_only_the_users_errors_lose_their_traceback(ground):
    """A UserError is one line; any other error keeps its traceback."""
    assert not issubclass(UserError, ValueError)
    assert not issubclass(ValueError, UserError)

    def bug(cfg):
        raise ValueError('a bug of ours')

    with pytest.raises(ValueError, match='a bug of ours'):
        configurator.launch(bug, train.TrainConfig, [])
