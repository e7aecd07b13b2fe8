"""plot.py parameters: the count equals that of the model itself, and 3Blue1Brown's of GPT-3."""

import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPO, prepare_babble, run_main

from gradus import accounting, checkpoint
from model import GPT, MLP, NORMS, POSITIONS, GPTConfig
from plots import parameters

pytest.importorskip('matplotlib')

GPT3 = ('--n_layer=96', '--n_head=96', '--n_embd=12288', '--block_size=2048', '--vocab_size=50257',
        '--tie_weights=False')


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder; only what is saved there as run.svg is really drawn."""
    monkeypatch.chdir(tmp_path)
    draw = parameters.draw
    monkeypatch.setattr(parameters, 'draw', lambda path, *args: path == 'run.svg' and draw(path, *args))


def plot(*args):
    """What `python plot.py parameters ...` returns, from a call in this process."""
    return run_main(parameters, *args)


def numbers_of(stdout):
    """{name: (matrices, weights)} of the printed table, in whose lines the share comes last."""
    table = {}
    for line in stdout.splitlines():
        found = re.match(r'(\S+(?: \S+)*?)  .*?([\d,]*)  +([\d,]+) +\d+\.\d\d%$', line)
        if found:
            name, matrices, weights = found.groups()
            table[name] = int(matrices.replace(',', '') or 0), int(weights.replace(',', ''))
    return table


def test_3blue1browns_gpt3():
    """His table in "Transformers, the tech behind LLMs": 175,181,291,520 weights in 27,938 matrices."""
    done = plot(*GPT3, '--pos=rotary')
    assert done.returncode == 0, done.stderr
    assert 'd_embed * n_vocab                      = 12,288 * 50,257  ' in done.stdout
    table = numbers_of(done.stdout)
    assert table['sum so far'] == (27_938, 175_181_291_520)
    assert table['embedding'] == table['unembedding'] == (1, 617_558_016)
    for name in ('query', 'key', 'value'):
        assert table[name] == (96 * 96, 14_495_514_624)
    assert table['output'] == (96, 14_495_514_624)
    assert table['up-projection'] == table['down-projection'] == (96, 57_982_058_496)
    assert 'position' not in table and 'gate' not in table and 'bias' not in table


def test_a_tied_matrix_counts_once():
    done = plot(*GPT3[:-1])
    assert numbers_of(done.stdout)['sum so far'] == (27_937, 175_181_291_520 - 617_558_016)
    assert 'the matrix of the embedding, counted there' in done.stdout


def test_gpt2_as_openai_counts_it():
    table = numbers_of(plot('--bias=True', '--vocab_size=50257').stdout)
    assert table['total'][1] == 124_439_808
    assert table['position'] == (1, 1024 * 768)


ODD = list(itertools.product(POSITIONS, NORMS, ('gelu', 'swiglu'), (False, True), (0, 2), (False, True), (False, True),
                             (0, 6)))


def test_every_kind_of_gpt_has_as_many_weights_as_counted():
    """By role, as the names of the parameters say it."""
    for pos, norm, mlp, qk_norm, n_kv_head, tied, bias, head_dim in ODD[::5]:
        config = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=4, n_embd=16, pos=pos, norm=norm, mlp=mlp,
                           qk_norm=qk_norm, n_kv_head=n_kv_head, tie_weights=tied, bias=bias, head_dim=head_dim)
        model = GPT(config)
        rows = {row.name: row.weights for row in parameters.rows_of(config)}
        assert sum(rows.values()) == model.num_params(), config

        sizes = {name: p.numel() for name, p in model.named_parameters()}
        assert rows.get('bias', 0) == sum(n for name, n in sizes.items() if name.endswith('bias'))
        assert rows.get('gate', 0) == sum(n for name, n in sizes.items() if 'c_gate.weight' in name)
        assert rows['down-projection'] == sum(n for name, n in sizes.items() if 'mlp.c_proj.weight' in name)
        assert rows['output'] == sum(n for name, n in sizes.items() if 'attn.c_proj.weight' in name)
        assert rows['query'] + rows['key'] + rows['value'] == sum(
            n for name, n in sizes.items() if 'c_attn.weight' in name)


def test_what_the_count_would_find():
    """Negative control: a model with one weight more has another number."""
    config = GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=16)
    model = GPT(config)
    model.extra = torch.nn.Parameter(torch.zeros(1))
    assert sum(row.weights for row in parameters.rows_of(config)) != model.num_params()


def test_the_numbers_of_a_formula_give_its_weights():
    config = GPTConfig(block_size=8, vocab_size=11, n_layer=3, n_head=4, n_embd=16, n_kv_head=2, qk_norm=True)
    for row in parameters.rows_of(config):
        if row.formula:
            assert accounting.evaluate(row.numbers.replace(',', ''), {}) == row.weights


# ---------------------------------------------------------------------------- which model

def test_the_vocabulary_is_that_of_the_dataset():
    prepare_babble()
    small = ('--n_layer=1', '--n_head=2', '--n_embd=8', '--dataset=babble')
    found = plot(*small)
    assert 'no data/' not in found.stdout
    assert numbers_of(found.stdout)['embedding'] == (1, 8 * 10)                 # a to h, space and newline
    assert numbers_of(plot(*small, '--vocab_size=50').stdout)['embedding'] == (1, 8 * 50)

    missing = plot(*small, '--dataset=none')
    assert missing.stdout.startswith('no data/none here')
    assert numbers_of(missing.stdout)['embedding'] == (1, 8 * 50304)


def test_a_config_file_and_a_run():
    shape = dict(n_layer=2, n_head=2, n_embd=8, block_size=16, bias=True, vocab_size=13, dropout=0.0)
    model = GPT(GPTConfig(**shape))
    checkpoint.save('run/ckpt.pt', dict(model=model.state_dict(), model_args=shape))
    for args in (('--init_from=run', '--out=run.svg'), ('--init_from=resume', '--out_dir=run')):
        done = plot(*args)
        assert numbers_of(done.stdout)['total'][1] == model.num_params(), done.stderr
    assert f'run: {model.num_params():,} weights' in Path('run.svg').read_text(encoding='utf-8')

    done = plot(REPO / 'config/shakespeare_char.py', '--vocab_size=65', '--n_layer=2')
    assert done.returncode == 0, done.stderr
    assert '= 384 * 65 ' in done.stdout


@pytest.mark.parametrize('args, expected', [
    ('--init_from=none', 'init_from=none: expected scratch, resume, gpt2'),
    ('--init_from=digits', 'digits/ckpt.pt: a digit network of mlp_mnist.py; expected a GPT'),
    ('--n_head=5', 'expected n_embd to be a multiple of n_head'),
    ('--vocab_size=-1', 'vocab_size=-1: expected between 0 and'),
    ('--out=x.jpg', 'out=x.jpg: expected a file ending with .png'),
    ('', 'plot.py needs matplotlib; pip install matplotlib'),
])
def test_refused_in_one_line(args, expected, monkeypatch):
    checkpoint.save('digits/ckpt.pt', dict(model=MLP([784, 10]).state_dict(), model_args=dict(sizes=[784, 10])))
    if 'pip' in expected:
        monkeypatch.setitem(sys.modules, 'matplotlib', None)
    done = plot(*args.split())
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert expected in done.stderr


def test_no_row_without_weights():
    with_norm, without = (GPTConfig(norm=norm, bias=False, tie_weights=False) for norm in ('layernorm', 'none'))
    assert [row.name for row in parameters.rows_of(with_norm)][-1] == 'norm'
    assert all(row.weights for row in parameters.rows_of(without))
