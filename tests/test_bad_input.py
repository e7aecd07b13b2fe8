"""
What can be wrong, and what is said: one line on stderr, exit code 2, no traceback, nothing written.

Each case is a command and a part of the line that it ends with.
"""

import json
import os

import numpy as np
import pytest
import torch
from conftest import settings

import sample
import train
from gradus import checkpoint, configurator, data

TINY = ['--dataset=babble', '--device=cpu', '--block_size=16', '--n_layer=1', '--n_head=2', '--n_embd=8', '--batch_size=2',
        '--gradient_accumulation_steps=1', '--max_iters=2', '--eval_interval=2', '--eval_iters=1', '--warmup_iters=0', '--lr_decay_iters=2']
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
    ('--learning_rate=-1', 'learning_rate=-1.0: expected at least 0'),
    ('--learning_rate=1e999', 'learning_rate=inf: expected at least 0'),
    ('--beta2=1', 'beta2=1.0: expected between 0 and'),
    ('--seed=-1', 'seed=-1: expected between 0 and'),
    ('--dtype=float8', "dtype='float8': expected one of auto, float32, bfloat16, float16"),
    ('--lr_schedule=cosin', "lr_schedule='cosin': expected one of cosine, linear; did you mean cosine?"),
    ('--out_dir=.', "out_dir='.': expected a folder of its own"),
    ('--out_dir=', "out_dir='': expected a folder of its own"),
    ('--out_dir=binary.txt', 'out_dir=binary.txt: cannot be written (File exists)'),
    ('--device=tpu9', 'device=tpu9: expected auto, cpu, mps, cuda or cuda:N'),
    ('--device=meta', 'device=meta: expected auto'),
    pytest.param('--device=cuda', 'device=cuda: this machine has no CUDA', marks=NO_CUDA),
    ('--init_from=gtp2', 'init_from=gtp2: expected scratch, resume, auto, gpt2'),
    ('--init_from=resume', 'out/ckpt.pt: not found; expected a checkpoint of train.py; runs here: alien, best, broken, small (--out_dir=...)'),
    ('--init_from=resume --out_dir=small --n_layer=3', 'small/ckpt.pt has n_layer=1, but the settings say n_layer=3'),
    ('--init_from=resume --out_dir=small --block_size=8', 'small/ckpt.pt has block_size=16, but the settings say block_size=8'),
    ('--init_from=resume --out_dir=small --pos=rotary', 'small/ckpt.pt has pos=learned, but the settings say pos=rotary'),
    ('--init_from=resume --out_dir=small --dataset=bytes', 'small/ckpt.pt was trained with another tokenizer (vocab_size=10)'),
    ('--init_from=resume --out_dir=best', 'best/ckpt.pt: no optimizer state to resume from'),
    ('--init_from=resume --out_dir=broken', 'broken/ckpt.pt: damaged, or no PyTorch checkpoint'),
    ('--init_from=resume --out_dir=alien', 'alien/ckpt.pt: model_args and weights do not fit: '),
    ('--dataset=missing', 'data/missing: no such dataset; expected a folder with train.bin and val.bin (here: babble, big, '),
    ('--dataset=unprepared', 'data/unprepared: no train.bin; prepare the dataset first: python data/unprepared/prepare.py'),
    ('--dataset=unmade', 'data/unmade/train.bin: not found; prepare the dataset first'),
    ('--dataset=failing', 'data/failing: could not be prepared, see above'),
    ('--dataset=empty', 'data/empty/train.bin: 0 tokens; expected at least block_size + 1 = 17'),
    ('--dataset=short', 'data/short/val.bin: 16 tokens; expected at least block_size + 1 = 17'),
    ('--dataset=odd', 'data/odd/train.bin: 101 bytes; expected a multiple of 2'),
    ('--dataset=big', 'data/big/train.bin: token id 99; expected ids below the vocabulary size 10'),
    ('--dataset=pickled', "data/pickled/meta.pkl: expected nanoGPT's plain dictionary"),
    ('--dataset=typed', 'data/typed/meta.json: expected vocab_size, dtype'),
    ('--dataset=magic', "tokenizer {'kind': 'magic'}: expected a kind among byte, char, gpt2"),
    ('--wandb_log=True', 'wandb_log=True needs wandb; pip install wandb'),
]

SAMPLE = [
    ('--start=ab!', "character '!' at position 2 of the text 'ab!'"),
    ('--start=FILE:missing.txt', 'missing.txt: No such file'),
    ('--start=FILE:binary.txt', 'binary.txt: not UTF-8 text'),
    ('--out_dir=nowhere', 'nowhere/ckpt.pt: not found; expected a checkpoint of train.py; runs here: alien, best, broken, small (--out_dir=...)'),
    ('--checkpoint=../small/ckpt.pt', 'checkpoint=../small/ckpt.pt: expected the name of a file in out_dir'),
    ('--checkpoint=third.pt', 'small/third.pt: not found'),
    ('--temperature=-1', 'temperature=-1.0: expected at least 0'),
    ('--num_samples=0', 'num_samples=0: expected at least 1'),
    ('--top_k=-3', 'top_k=-3: expected at least 0'),
    ('--max_new_tokens=-1', 'max_new_tokens=-1: expected at least 0'),
    ('--top_q=0.9', '--top_q: unknown key; did you mean top_'),
    ('--out_dir=broken', 'broken/ckpt.pt: damaged, or no PyTorch checkpoint'),
    ('--out_dir=alien', 'alien/ckpt.pt: model_args and weights do not fit'),
    ('--dataset=missing', 'data/missing: no such dataset; expected a folder with train.bin and val.bin (here: babble, big, '),
    ('--dataset=bytes', 'small/best.pt: a tokenizer of 256 tokens for a model of 10'),
    pytest.param('--device=cuda', 'device=cuda: this machine has no CUDA', marks=NO_CUDA),
]


@pytest.fixture(scope='module')
def ground(tmp_path_factory):
    """A working folder with everything that can be wrong in it."""
    here, place = os.getcwd(), tmp_path_factory.mktemp('ground')
    os.chdir(place)
    chars = {'kind': 'char', 'chars': list('\n abcdefgh')}
    meta = json.dumps(dict(vocab_size=10, dtype='uint16', tokenizer=chars))

    def dataset(name, train_bin=bytes(400), val_bin=bytes(400), meta=meta, meta_name='meta.json'):
        os.makedirs(f'data/{name}')
        for file, content in (('train.bin', train_bin), ('val.bin', val_bin), (meta_name, meta.encode() if isinstance(meta, str) else meta)):
            open(f'data/{name}/{file}', 'wb').write(content)
    dataset('babble', np.tile(np.arange(10, dtype='<u2'), 100).tobytes())
    dataset('bytes', meta=json.dumps(dict(vocab_size=256, dtype='uint16', tokenizer={'kind': 'byte'})))
    dataset('empty', b'')
    dataset('short', val_bin=bytes(32))
    dataset('odd', bytes(101))
    dataset('big', np.full(100, 99, dtype='<u2').tobytes())
    dataset('pickled', meta=b'cos\nsystem\n(S"touch was_here"\ntR.', meta_name='meta.pkl')
    dataset('typed', meta='{"vocab_size": "ten"}')
    dataset('magic', meta=json.dumps(dict(vocab_size=10, dtype='uint16', tokenizer={'kind': 'magic'})))
    for name, text in (('unprepared', 'import big_download'), ('failing', 'AUTOMATIC = True\nraise SystemExit(3)')):
        os.makedirs(f'data/{name}')
        open(f'data/{name}/prepare.py', 'w').write(text)
    os.makedirs('data/unmade')
    for name, text in (('bad_syntax', 'a = 1\nb = = 2\n'), ('bad_name', 'x = missing\n'), ('bad_type', 'batch_size = "many"\n')):
        open(f'{name}.py', 'w').write(text)
    open('binary.txt', 'wb').write(b'\xff\xfe')
    configurator.load(train.TrainConfig, TINY)
    train.main(configurator.load(train.TrainConfig, [*TINY, '--out_dir=small']))
    state = checkpoint.load('small/ckpt.pt')
    for name in ('best', 'alien', 'broken'):
        os.mkdir(name)
    checkpoint.save('best/ckpt.pt', {k: v for k, v in state.items() if k != 'optimizer'})
    del state['model']['transformer.ln_f.weight']
    checkpoint.save('alien/ckpt.pt', state)
    open('broken/ckpt.pt', 'wb').write(b'not a checkpoint')
    yield place
    os.chdir(here)


def contents(folder):
    return {os.path.join(d, f): open(os.path.join(d, f), 'rb').read() for d, _, files in os.walk(folder) for f in files}


def refused(script, cls, argv, expected, ground, monkeypatch, capsys):
    """Run it; it must end as the docstring of this file says."""
    monkeypatch.chdir(ground)
    monkeypatch.setitem(__import__('sys').modules, 'wandb', None)
    before = contents('.')
    with pytest.raises(SystemExit) as e:
        configurator.run(script.main, cls, script.ERRORS, argv)
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if not line.startswith('warning: ')]
    assert e.value.code == 2 and len(lines) == 1 and lines[0].startswith(f'error: {expected}'), err
    assert contents('.') == before


@pytest.mark.parametrize('args, expected', TRAIN)
def test_train(args, expected, ground, monkeypatch, capsys):
    refused(train, train.TrainConfig, TINY + args.split(), expected, ground, monkeypatch, capsys)


@pytest.mark.parametrize('args, expected', SAMPLE)
def test_sample(args, expected, ground, monkeypatch, capsys):
    refused(sample, sample.SampleConfig, ['--out_dir=small', '--device=cpu', *args.split()], expected, ground, monkeypatch, capsys)


def test_what_is_right_is_not_refused(ground, monkeypatch):
    """Negative control: the settings that every case above starts from."""
    monkeypatch.chdir(ground)
    configurator.run(train.main, train.TrainConfig, train.ERRORS, [*TINY, '--out_dir=fine'])
    configurator.run(sample.main, sample.SampleConfig, sample.ERRORS, ['--out_dir=fine', '--device=cpu', '--num_samples=1', '--max_new_tokens=1'])


@pytest.mark.parametrize('changes, expected', [
    (dict(lr_decay_iters=600_000), 'lr_decay_iters=600000 is far beyond max_iters=3'), (dict(warmup_iters=3), 'warmup_iters=3 is not less than'),
    (dict(), None)])
def test_traps_get_a_warning(changes, expected, capsys):
    train.check(settings(**{**dict(max_iters=3, lr_decay_iters=3, warmup_iters=0), **changes}))
    err = capsys.readouterr().err
    assert expected in err if expected else err == ''


def test_loader_errors_are_the_users(ground):
    """What is caught at the top is named there; anything else keeps its traceback."""
    assert data.DataError in train.ERRORS and ValueError not in train.ERRORS

    def bug(cfg):
        raise ValueError('a bug of ours')
    with pytest.raises(ValueError, match='a bug of ours'):
        configurator.run(bug, train.TrainConfig, train.ERRORS, [])
