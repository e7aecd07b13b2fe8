"""Datasets of pairs through the scripts: prepared, trained on by one process or two, resumed, fine-tuned, completed."""

import hashlib
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, read_log, run_script
from test_parallel import losses, train_two

import export
import sample
import train
from gradus import checkpoint, configurator, data, metadata, preparation, pretrained
from gradus.errors import UserError

SUMS = [(f'{a}+{b}', str(a + b)[::-1]) for a in range(60) for b in range(60)]
TRAIN = ('--dataset=sums --device=cpu --block_size=16 --batch_size=16 --n_layer=1 --n_head=2 --n_embd=16 '
         '--gradient_accumulation_steps=1 --max_iters=20 --lr_decay_iters=20 --warmup_iters=2 --learning_rate=0.01 '
         '--eval_interval=10 --eval_iters=0 --sample_tokens=10 --data_order=shuffled').split()
ADDER = ('--optimizer=muon --learning_rate=0.02 --grad_clip=0 --lr_schedule=linear --cooldown=0.7 --warmup_iters=0 '
         '--min_lr=0 --pos=rotary --norm=rmsnorm --mlp=swiglu --qk_norm=True --tie_weights=False --n_layer=2 '
         '--n_head=4 --n_embd=32 --batch_size=64 --max_iters=600 --lr_decay_iters=600 --eval_interval=600 '
         '--log_interval=100').split()


@pytest.fixture
def sums(tmp_path, monkeypatch):
    """Work in an empty folder with data/sums."""
    monkeypatch.chdir(tmp_path)
    Path('sums.tsv').write_text(''.join(f'{a}\t{b}\n' for a, b in SUMS[::7]))
    prepare('sums.tsv')
    return tmp_path


def run(monkeypatch, path, *args):
    with monkeypatch.context() as m:
        m.setattr(sys, 'argv', [str(path), *args])
        m.setattr(sys, 'path', list(sys.path))
        runpy.run_path(str(path), run_name='__main__')


def prepare(*args, out='data/sums'):
    with pytest.MonkeyPatch.context() as patch:
        run(patch, REPO / 'data/prepare.py', '--pairs', f'--out={out}', '--overwrite', *args)


def train_here(*flags):
    train.main(configurator.load(train.TrainConfig, [*TRAIN, *flags]))


def sample_here(capsys, *flags):
    capsys.readouterr()
    sample.main(configurator.load(sample.SampleConfig, ['--device=cpu', *flags]))
    return capsys.readouterr().out


def typed(monkeypatch, *lines):
    """Let input() return these lines, and then the end of the file."""
    remaining = iter(lines)

    def read(prompt):
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr('builtins.input', read)


def opened(block_size=64, folder='data/sums'):
    meta = metadata.read_meta(folder)
    return data.open_dataset(folder, meta, meta['vocab_size'], block_size)


# ---------------------------------------------------------------------------- data/prepare.py --pairs

def test_prepared_pairs(sums):
    dataset = opened()
    n = len(SUMS[::7])
    assert len(dataset.train.ends) + len(dataset.val.ends) == n
    assert len(dataset.val.ends) == n // 10
    held_out = [SUMS[::7][i] for i in range(n) if i % 10 == 9]
    for i, (prompt, _) in enumerate(held_out[:n // 10]):
        assert dataset.tokenizer.decode(dataset.val.prompt(i)[:-1]) == prompt
    meta = json.loads(Path('data/sums/meta.json').read_text(encoding='utf-8'))
    assert meta['source'] == 'sums.tsv'
    assert len(meta['sha256']) == 64


@pytest.mark.parametrize('content, args, expected', [
    ('a\tb\n', [], '1 pairs, of which --val_fraction=0.1 holds out 0'),
    ('', [], '0 pairs'),
    ('a\tb\n' * 50, ['--val_fraction=0'], 'expected a number between 0 and 1'),
    ('a\tb\n' * 50 + 'c\n', [], 'bad.tsv: line 51: 1 column'),
    ('a\tb\n' * 50, ['--tokenizer=bpe', '--vocab_size=200'], '--vocab_size'),
    ('a\tb\n' * 50, ['--tokenizer=bpe', '--vocab_size='], '--vocab_size=: expected an integer'),
    ('a\tb\n' * 50, ['--field=text'], '--field=text: not for --pairs'),
    ('a\tb\n' * 50, ['--separator='], 'expected a text'),
])
def test_pairs_that_cannot_be(content, args, expected, sums, monkeypatch, capsys):
    Path('bad.tsv').write_text(content)
    with pytest.raises(SystemExit) as e:
        prepare('bad.tsv', *args, out='data/bad')
    assert e.value.code == 2
    assert expected in capsys.readouterr().err
    assert not os.path.exists('data/bad/train.bin')


def test_a_separator_needs_pairs(sums, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, REPO / 'data/prepare.py', '--out=data/x', '--separator=:', 'sums.tsv')
    assert '--separator=:: expected a text, together with --pairs' in capsys.readouterr().err


# ---------------------------------------------------------------------------- training

def hash_of(path):
    state = checkpoint.load(path)
    digest = hashlib.sha256()
    for name in sorted(state['model']):
        digest.update(state['model'][name].numpy().tobytes())
    return digest.hexdigest()


def test_a_resumed_run_on_pairs_ends_where_the_uninterrupted_one_does(sums, capsys):
    train_here('--out_dir=whole')
    out = capsys.readouterr().out
    tokens = round(16 * opened(16).train.row_tokens)
    assert f'{tokens} tokens per iteration' in out
    assert read_log('whole')[-1]['tokens'] == 20 * tokens
    prompt = opened().tokenizer.decode(opened().val.prompt(0)[:-1])
    assert f'---------------\n{prompt}\n' in out      # the sample answers a prompt that was held out

    train_here('--out_dir=half', '--max_iters=10')
    train_here('--out_dir=half', '--init_from=resume')
    assert hash_of('half/ckpt.pt') == hash_of('whole/ckpt.pt')
    train_here('--out_dir=other', '--seed=1')         # negative control
    assert hash_of('other/ckpt.pt') != hash_of('whole/ckpt.pt')


@pytest.mark.slow
@pytest.mark.parametrize('order', data.ORDERS)
def test_two_processes_follow_one_although_their_targets_differ_in_number(sums, order):
    flags = [*TRAIN, f'--data_order={order}', '--batch_size=4', '--gradient_accumulation_steps=4', '--sample_tokens=0']
    train_here(*flags, '--out_dir=one')
    train_two('two', *flags)
    one, two = losses('one'), losses('two')
    assert len(one) == len(two) == 23
    assert all(i == j and abs(a - b) < 1e-4 for (i, a), (j, b) in zip(one, two))
    assert one[0][1] - one[-1][1] > 0.1


def test_fine_tuning_on_pairs(sums, capsys):
    """A byte model of a text goes on with pairs: same tokens, so no warning; its weights are where it starts."""
    Path('text.txt').write_text('12+34 and so on\n' * 40)
    with pytest.MonkeyPatch.context() as patch:
        run(patch, REPO / 'data/prepare.py', '--out=data/text', '--tokenizer=byte', 'text.txt')
    train_here('--dataset=text', '--out_dir=base')
    prepare('sums.tsv', '--tokenizer=base', out='data/tuned')
    assert metadata.read_meta('data/tuned')['tokenizer'] == {'kind': 'byte', 'separator': [254], 'end_id': 255}

    capsys.readouterr()
    train_here('--dataset=tuned', '--init_from=base', '--out_dir=tuned', '--learning_rate=0', '--weight_decay=0',
               '--decay_lr=False')
    assert 'warning' not in capsys.readouterr().err
    before, after = checkpoint.load('base/ckpt.pt')['model'], checkpoint.load('tuned/ckpt.pt')['model']
    assert all(torch.equal(before[name], after[name]) for name in before)

    # and back: the tokenizer of a model of pairs, for a text
    with pytest.MonkeyPatch.context() as patch:
        run(patch, REPO / 'data/prepare.py', '--out=data/again', '--tokenizer=tuned', 'text.txt')
    assert metadata.read_meta('data/again')['tokenizer'] == {'kind': 'byte'}

    # another tokenizer is still noticed
    prepare('sums.tsv', '--tokenizer=char', out='data/chars')
    train_here('--dataset=chars', '--init_from=base', '--out_dir=chars', '--max_iters=1')
    assert 'data/chars has another tokenizer than base' in capsys.readouterr().err


def test_fine_tuning_gpt2_on_pairs(sums, gpt2, capsys):
    prepare('sums.tsv', '--tokenizer=gpt2', out='data/gpt2')
    spec = metadata.read_meta('data/gpt2')['tokenizer']
    assert spec == {'kind': 'gpt2', 'separator': [198], 'end_id': 50256}
    train_here('--dataset=gpt2', '--out_dir=tuned', '--max_iters=1')
    assert pretrained.load('tuned').tokenizer == spec
    assert sample_here(capsys, '--out_dir=tuned', '--start=1+1', '--num_samples=1', '--json').startswith('{"prompt"')


# ---------------------------------------------------------------------------- completing

@pytest.fixture(scope='module')
def adder(tmp_path_factory):
    """A run that can add, somewhat."""
    folder = tmp_path_factory.mktemp('adder')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path('sums.tsv').write_text(''.join(f'{a}\t{b}\n' for a, b in SUMS if (a, b) not in SUMS[::50]))
        Path('test.tsv').write_text(''.join(f'{a}\t{b}\n' for a, b in SUMS[::50]))
        prepare('sums.tsv')
        train_here(*ADDER, '--out_dir=adder')
    return folder


@pytest.mark.slow
def test_sums_it_has_never_seen(adder, monkeypatch, capsys):
    """Arithmetic in miniature: two digits, 500 steps."""
    monkeypatch.chdir(adder)
    out = sample_here(capsys, '--out_dir=adder', '--eval=test.tsv').splitlines()
    assert [line.partition(':')[0] for line in out] == ['test.tsv'] * 2
    assert 'greedy' in out[0] and '5 beams' in out[1]
    exact = [float(line.partition('exact match ')[2].partition('%')[0]) for line in out]
    assert min(exact) >= 90

    prompt, answer = SUMS[50]
    for how in (['--temperature=0', '--num_samples=1'], ['--beams=3']):
        out = sample_here(capsys, '--out_dir=adder', f'--start={prompt}', *how)
        assert out == f'{prompt}\n{answer}\n---------------\n'
    record = json.loads(sample_here(capsys, '--out_dir=adder', f'--start={prompt}', '--beams=3', '--json'))
    assert record['text'] == answer


@pytest.mark.slow
def test_each_line_is_a_prompt_of_its_own(adder, monkeypatch, capsys):
    monkeypatch.chdir(adder)
    typed(monkeypatch, '1+2', '30+3')
    assert sample_here(capsys, '--out_dir=adder', '--interactive', '--temperature=0') == '3\n33\n'


def test_an_evaluation_that_cannot_be(sums, capsys):
    train_here('--out_dir=out', '--max_iters=1')
    long = '1' * 16
    for content, error in (('', 'no pairs'), ('1+1 2\n', 'line 1: 1 column'),
                           ('1\t2\nx\t2\n', "test.tsv: pair 2: character 'x'"),
                           (f'{long}\t2\n', 'pair 1 has a prompt of 17 tokens')):
        Path('test.tsv').write_text(content)
        with pytest.raises(UserError, match=error):
            sample_here(capsys, '--out_dir=out', '--eval=test.tsv')
    with pytest.raises(UserError, match='beam search needs room'):
        sample_here(capsys, '--out_dir=out', '--beams=2', f'--start={"1" * 16}')


def test_evaluations(sums, capsys):
    train_here('--out_dir=out', '--max_iters=1')
    Path('TEST.TSV').write_text('1+1\t2\n')
    for flags, searches in (('', 2), ('--beams=3', 2), ('--beams=1', 1)):
        lines = sample_here(capsys, '--out_dir=out', '--eval=TEST.TSV', *flags.split()).splitlines()
        assert [line.partition('1 pairs, ')[0] for line in lines] == ['TEST.TSV: '] * searches

    # special tokens in a prompt are text, as they were in training
    prepare('sums.tsv', '--tokenizer=byte', out='data/bytes')
    train_here('--dataset=bytes', '--out_dir=bytes', '--max_iters=1', '--block_size=40')
    model = pretrained.load('bytes')
    cfg = configurator.load(sample.SampleConfig, ['--eval=TEST.TSV'])
    prompts = sample.read_eval_pairs(cfg, pretrained.build(model), pretrained.tokenizer_for(model))[1]
    assert prompts == [[*b'1+1', 254]]

    # a model that was not trained on pairs
    Path('text.txt').write_text('12+34\t and so on\n' * 40)
    with pytest.MonkeyPatch.context() as patch:
        run(patch, REPO / 'data/prepare.py', '--out=data/text', 'text.txt')
    train_here('--dataset=text', '--out_dir=text', '--max_iters=1')
    sample.main(configurator.load(sample.SampleConfig, ['--device=cpu', '--out_dir=text', '--eval=text.txt']))
    assert 'plain text' not in capsys.readouterr().err
    Path('text.tsv').write_text('12+34\t and so on\n')
    sample.main(configurator.load(sample.SampleConfig, ['--device=cpu', '--out_dir=text', '--eval=text.tsv']))
    assert capsys.readouterr().err.startswith('warning: text.tsv: evaluated as plain text')


@pytest.mark.parametrize('to', ['hf', 'gguf', 'nanogpt', 'safetensors'])
def test_an_export_keeps_the_separator_or_says_that_it_cannot(to, sums, capsys):
    train_here('--out_dir=out', '--max_iters=1')
    export.main(configurator.load(export.ExportConfig, [f'--to={to}', f'--dest=x.{to}']))
    note = 'the model was trained on pairs, which this format cannot say: end each prompt with'
    expected = 0 if to == 'safetensors' else 1
    assert capsys.readouterr().err.count(note) == expected
    if to == 'hf':                                    # and what the note says works
        found = [sample_here(capsys, f'--init_from={source}', f'--start={start}', '--num_samples=1', '--temperature=0')
                 for source, start in (('out', '1+1'), ('x.hf', '1+1\x02'))]
        assert found[0].partition('\n')[2] == found[1].partition('\x02')[2]
    if to == 'safetensors':
        assert pretrained.load('x.safetensors').tokenizer['separator'] == [11]


def test_what_a_search_ignores_is_said(sums, monkeypatch, capsys):
    train_here('--out_dir=out', '--max_iters=1')
    capsys.readouterr()
    flags = ['--device=cpu', '--out_dir=out', '--beams=2', '--start=1+1', '--json']
    sample.main(configurator.load(sample.SampleConfig, flags))
    found = capsys.readouterr()
    assert 'ignored' not in found.err
    assert json.loads(found.out)['prompt'] == '1+1'
    sample.main(configurator.load(sample.SampleConfig, [*flags, '--temperature=0', '--logprobs']))
    assert 'ignored: temperature, logprobs\n' in capsys.readouterr().err

    # line by line too; a prompt that is too long is an error, but not the end
    typed(monkeypatch, '1+1', '1' * 16, '1+1')
    sample.main(configurator.load(sample.SampleConfig, [*flags, '--interactive']))
    shown = capsys.readouterr()
    text = json.loads(found.out)['text']
    assert shown.out == f'{text}\n\n{text}\n'
    assert shown.err.count('beam search needs room') == 1


# ---------------------------------------------------------------------------- the datasets that come with it

def test_arithmetic(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = REPO / 'data/arithmetic/prepare.py'
    for args, reverse in ((['--out=a'], True), (['--out=b', '--digits=2', '--examples=1000', '--no-reverse'], False)):
        run(monkeypatch, script, *args)
        folder = args[0].removeprefix('--out=')
        dataset = opened(24, folder)
        seen = set()
        for split in (dataset.train, dataset.val):
            for i in range(0, len(split.ends), max(1, len(split.ends) // 1000)):
                begin, middle, end = split.begins[i], split.completions[i], split.ends[i]
                prompt = dataset.tokenizer.decode(split.tokens.ids[begin:middle - 1])
                total = dataset.tokenizer.decode(split.tokens.ids[middle:end - 1])
                a, b = map(int, prompt.split('+'))
                assert total == str(a + b)[::-1 if reverse else 1]
                seen.add(prompt)
        test = [line.split('\t')[0] for line in Path(folder, 'test.tsv').read_text().splitlines()]
        assert len(set(test)) == 1000
        assert not seen & set(test)

    before = Path('a/train.bin').read_bytes()
    fingerprint = metadata.fingerprint('a')
    run(monkeypatch, script, '--out=a')
    assert Path('a/train.bin').read_bytes() == before
    assert metadata.fingerprint('a') == fingerprint
    run(monkeypatch, script, '--out=a', '--no-reverse')         # as many tokens, but a resumed run must notice
    assert metadata.fingerprint('a') != fingerprint
    for args in (['--digits=0'], ['--digits=1', '--examples=1000'], ['--examples=0'], ['--digits=three']):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            run(monkeypatch, script, '--out=c', *args)
        assert re.fullmatch('error: --(digits|examples)=.*: expected .*\n', capsys.readouterr().err)

    # test.tsv belongs to the dataset: it does not change before the dataset does
    before = Path('b/test.tsv').read_bytes()
    monkeypatch.setattr(preparation, '_rename', interrupt)
    with pytest.raises(SystemExit):
        run(monkeypatch, script, '--out=b')
    assert Path('b/test.tsv').read_bytes() == before
    assert sorted(os.listdir('b')) == sorted(os.listdir('a'))


def interrupt(*args):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_multi30k(test_data, tmp_path, monkeypatch, capsys):
    pytest.importorskip('tokenizers', reason='it trains a vocabulary: pip install tokenizers')
    source = test_data / 'multi30k'
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, REPO / 'data/multi30k/prepare.py', f'--source={source}', '--out=a', '--vocab_size=1000')
    dataset = opened(200, 'a')
    assert (len(dataset.train.ends), len(dataset.val.ends), dataset.tokenizer.n_vocab) == (29_000, 1014, 1000)
    split = dataset.train
    first = dataset.tokenizer.decode(split.tokens.ids[:split.ends[0]])
    assert first == ('Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.<|separator|>'
                     'Two young, White males are outside near many bushes.<|endoftext|>')
    test = Path('a/test.tsv').read_text(encoding='utf-8').splitlines()
    assert len(test) == 1000
    assert test[0].endswith('\tA man in an orange hat starring at something.')
    assert np.diff(split.lengths).any()

    # a file that is missing, or another one
    shutil.copytree(source, 'copy')
    os.chmod('copy', 0o755)
    for change, error in ((lambda path: path.unlink(), 'val.en.gz: not found; expected the folder of --source to have'),
                          (lambda path: path.write_bytes(b'x'), 'val.en.gz: sha256 2d711642b726.*, expected 14f7')):
        change(Path('copy/val.en.gz'))
        with pytest.raises(SystemExit):
            run(monkeypatch, REPO / 'data/multi30k/prepare.py', '--source=copy', '--out=b')
        assert not Path('b/train.bin').exists()
        assert re.search(error, capsys.readouterr().err)


@pytest.mark.slow
def test_as_real_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run_script('data/arithmetic/prepare.py', '--out=data/arithmetic')
    assert ran.returncode == 0, ran.stderr
    small = ['--max_iters=2', '--eval_iters=1', '--batch_size=4', '--device=cpu']
    ran = run_script('train.py', REPO / 'config/arithmetic.py', *small)
    assert ran.returncode == 0, ran.stderr
    ran = run_script('sample.py', '--eval=data/arithmetic/test.tsv', '--max_new_tokens=4')
    assert ran.returncode == 0, ran.stderr
    assert '1,000 pairs, greedy: exact match' in ran.stdout
