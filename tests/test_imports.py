"""The architecture of the repo: scripts import gradus/, gradus/ imports model.py, and nothing the other way."""

import ast
import sys

import pytest
from conftest import REPO

SCRIPTS = {'train', 'sample', 'mlp_mnist', 'export', 'plot', 'bench'}

# The modules of gradus/, top first: a module may import those below it.
LAYERS = ['nanogpt', 'onnx_file', 'pretrained', 'page', 'gguf_file', 'hf', 'families', 'tokenizer_files', 'run_folder',
          'checkpoint', 'chart', 'log', 'mirrors', 'parallel', 'forecast', 'memory', 'accounting', 'updates',
          'interrupt', 'optim', 'evaluation', 'beam', 'sampling', 'inference', 'fused', 'kernel', 'digits', 'data',
          'pairs', 'bulk', 'corpus', 'bpe', 'preparation', 'documents', 'metadata', 'shards', 'tokenizer', 'unpickle',
          'configurator', 'lock', 'files', 'js_regex', 'shapes', 'errors']

CORE = {'torch', 'numpy', 'tiktoken', 'tqdm', 'regex'}     # tiktoken needs regex
OPTIONAL = {'PIL', 'safetensors', 'huggingface_hub', 'wandb', 'datasets', 'gguf', 'xllamacpp', 'matplotlib',
            'playwright', 'cycler', 'onnx', 'onnx_ir', 'onnxscript', 'sacrebleu', 'tokenizers', 'pyarrow',
            'tensorboard'}


def imports(path):
    """(name, lazily?) of every module that the file imports; 'gradus.x' for x of ours; lazily = inside a function."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    eager = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    eager = set(ast.walk(ast.Module(body=eager, type_ignores=[])))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == 'gradus':
            names = [f'gradus.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            yield name if name.startswith('gradus') else name.split('.')[0], node not in eager


def from_outside(name, lazily):
    """May any file of ours import this: the standard library, a core package, or, lazily, an optional one?"""
    return name in sys.stdlib_module_names | CORE or name in OPTIONAL and lazily


def ours(names):
    return {f'gradus.{name}' for name in names}


def test_model_stands_alone():
    for name, _ in imports(REPO / 'model.py'):
        assert name in sys.stdlib_module_names | {'torch'}, f'model.py imports {name}'


@pytest.mark.parametrize('module', LAYERS)
def test_a_module_imports_only_what_is_below_it(module):
    below = ours(LAYERS[LAYERS.index(module) + 1:]) | {'model'}
    for name, lazily in imports(REPO / 'gradus' / f'{module}.py'):
        assert name in below or from_outside(name, lazily), f'gradus/{module}.py imports {name}'


@pytest.mark.parametrize('path', [f'{name}.py' for name in sorted(SCRIPTS)]
                         + sorted(p.relative_to(REPO).as_posix() for p in REPO.glob('data/**/*.py')))
def test_a_script_imports_no_script(path):
    for name, lazily in imports(REPO / path):
        assert name in ours(LAYERS) | {'gradus', 'model'} or from_outside(name, lazily), f'{path} imports {name}'


@pytest.mark.parametrize('folder', ['benchmarks', 'plots'])
def test_benchmarks_and_pictures_may_import_scripts(folder):
    """They measure them, and draw what they do."""
    for path in (REPO / folder).glob('*.py'):
        for name, lazily in imports(path):
            known = ours(LAYERS) | SCRIPTS | {'model', 'plots', folder}
            ok = name in known or name.startswith(f'{folder}.') or from_outside(name, lazily)
            assert ok, f'{path} imports {name}'


def test_every_module_has_its_floor():
    assert {p.stem for p in REPO.glob('gradus/*.py')} == {*LAYERS, '__init__'}
    assert {p.stem for p in REPO.glob('*.py')} == SCRIPTS | {'model'}


def test_what_these_tests_would_find(tmp_path):
    """Negative control: imports are seen wherever they hide."""
    (tmp_path / 'x.py').write_text('from gradus import data\nfrom gradus.files import write\n'
                                   'def f():\n    from wandb.sdk import init\nif 1:\n    import train as t\n')
    found = [('gradus.data', False), ('gradus.files', False), ('train', False), ('wandb', True)]
    assert sorted(imports(tmp_path / 'x.py')) == found


FOLDERS = ('*', 'gradus/*', 'benchmarks/*', 'plots/*', 'exercises/*', 'config/*', 'data/**/*', 'tests/*')
FILES = sorted(path.relative_to(REPO).as_posix() for part in FOLDERS for path in REPO.glob(part + '.py'))


@pytest.mark.parametrize('path', FILES)
def test_files_stay_short(path):
    limit = 465 if path == 'model.py' else 430        # two networks, and each of their parts in several kinds
    assert len((REPO / path).read_text(encoding='utf-8').splitlines()) <= limit
