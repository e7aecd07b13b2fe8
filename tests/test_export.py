"""export.py: what it refuses, and that a failed export leaves nothing behind."""

import os
import shutil
import sys
from dataclasses import asdict, replace

import pytest
from conftest import limited, run_script
from test_families import BYTES, random_model

import export
from gradus import checkpoint, pretrained
from gradus.errors import UserError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with a checkpoint of the llama family, and nothing else."""
    monkeypatch.chdir(tmp_path)
    model = random_model('llama')
    state = dict(model=model.state_dict(), model_args=checkpoint.model_args(model.config), tokenizer=BYTES, iter_num=5,
                 optimizer={}, config={})
    checkpoint.save('out/ckpt.pt', state)
    return model


def test_a_destination_is_never_overwritten(run, tmp_path):
    export.main(export.ExportConfig(to='hf', dest='there'))
    with open('there/config.json', 'a') as f:
        f.write('mine')
    (tmp_path / 'there' / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='^there: exists; give another --dest, or --force'):
        export.main(export.ExportConfig(to='hf', dest='there'))
    assert 'mine' in open('there/config.json').read()

    export.main(export.ExportConfig(to='hf', dest='there', force=True))
    assert 'mine' not in open('there/config.json').read()
    assert 'notes.txt' in os.listdir('there')
    assert sorted(os.listdir('.')) == ['out', 'there']


@pytest.mark.parametrize('to', ['hf', 'gguf', 'safetensors', 'onnx', 'nanogpt'])
def test_a_failed_export_leaves_nothing(to, run, monkeypatch):
    """A weight that is NaN is found when it is read, in the middle of writing."""
    for name in dict(gguf=['gguf'], onnx=['onnx', 'onnxscript']).get(to, []):
        pytest.importorskip(name, reason=f'the format needs it: pip install {name}')
    state = checkpoint.load('out/ckpt.pt')
    state['model']['transformer.h.1.mlp.c_proj.weight'][0, 0] = float('nan')
    checkpoint.save('out/best.pt', state)
    with pytest.raises(UserError, match='out/best.pt: '):
        export.main(export.ExportConfig(to=to, dest='there'))
    assert sorted(os.listdir('.')) == ['out']


@pytest.mark.parametrize('to', ['hf', 'gguf', 'nanogpt', 'safetensors'])
def test_a_place_that_is_not_there(to, run):
    if to == 'gguf':
        pytest.importorskip('gguf', reason='the format needs it: pip install gguf')
    if to == 'nanogpt':
        model = random_model('gpt2', mlp='gelu')
        checkpoint.save('out/best.pt', dict(model=model.state_dict(), model_args=checkpoint.model_args(model.config),
                                            tokenizer={'kind': 'char', 'chars': list('abc')}))
    with pytest.raises(UserError, match='^no/where[^\n]*: could not be written '):
        export.main(export.ExportConfig(to=to, dest='no/where'))
    assert sorted(os.listdir('.')) == ['out']


@pytest.mark.skipif(sys.platform == 'win32', reason='needs resource limits')
@pytest.mark.parametrize('to', ['hf', 'gguf', 'safetensors'])
def test_an_export_on_a_full_disk(to, run):
    if to == 'gguf':
        pytest.importorskip('gguf', reason='the format needs it: pip install gguf')
    with limited('RLIMIT_FSIZE', 20_000), pytest.raises(UserError, match='^there[^\n]*: could not be written '):
        export.main(export.ExportConfig(to=to, dest='there'))
    assert sorted(os.listdir('.')) == ['out']


@pytest.mark.parametrize('changes, message', [
    (dict(to='pdf'), "to='pdf'"),
    (dict(dtype='q4'), "dtype='q4'"),
    (dict(to='hf', dtype='f16'), 'dtype=f16: only --to=gguf'),
    (dict(init_from='gpt2'), 'expected --dest'),
    (dict(checkpoint='../x.pt'), 'checkpoint=../x.pt'),
    (dict(to='nanogpt', dest='there'), 'pos=rotary: nanoGPT knows only pos=learned'),
])
def test_settings_that_make_no_sense(changes, message, run):
    with pytest.raises(UserError, match='[^\n]*') as e:
        export.main(export.ExportConfig(**changes))
    assert message in str(e.value)


@pytest.mark.slow
def test_the_scripts_on_what_was_exported(run, tmp_path):
    """sample.py says the same from a checkpoint and from each of our exports."""
    pytest.importorskip('safetensors', reason='the format of the weights: pip install safetensors')
    pytest.importorskip('gguf', reason='the format of llama.cpp: pip install gguf')

    def text(*flags):
        result = run_script('sample.py', *flags, '--num_samples=1', '--max_new_tokens=8', '--device=cpu', '--start=a')
        assert result.returncode == 0, result.stderr
        return result.stdout

    expected = text('--out_dir=out')
    for to in ('hf', 'gguf', 'safetensors'):
        result = run_script('export.py', '--out_dir=out', f'--to={to}')
        assert result.returncode == 0, result.stderr
    for name in ('hf', 'model.gguf', 'model.safetensors'):
        assert text(f'--init_from=out/{name}') == expected
    shutil.rmtree('out/hf')


def test_more_memory_is_not_needed_than_for_the_model(run):
    """The built model's tensors are the ones that were read; tied ones are one."""
    found = pretrained.load_checkpoint('out/ckpt.pt')
    model = pretrained.build(found)
    assert model.transformer.wte.weight is model.lm_head.weight
    assert asdict(model.config) == asdict(replace(found.config, dropout=0.0))
    assert all(p.requires_grad for p in model.parameters())
