"""The architecture of DESIGN in one test: modules import no module, scripts import no script."""

import ast
import sys

import pytest
from conftest import REPO

MODULES = {'model', 'configurator', 'tokenizer', 'loader', 'optim', 'checkpoint', 'parallel', 'interop', 'evaluation', 'sampling', 'inference'}
SCRIPTS = {p.stem for p in REPO.glob('*.py')} - MODULES
CORE = {'torch', 'numpy', 'tiktoken', 'tqdm'}
OPTIONAL = {'PIL', 'safetensors', 'huggingface_hub', 'wandb', 'datasets', 'gguf', 'xllamacpp'}


def imports(path):
    """(name, lazily?) of every module that the file imports; lazily = inside a function."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    top = set(ast.walk(ast.Module(body=[n for n in tree.body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))], type_ignores=[])))
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            yield name.split('.')[0], node not in top


@pytest.mark.parametrize('name', sorted(MODULES | SCRIPTS))
def test_floor(name):
    for imported, lazily in imports(REPO / f'{name}.py'):
        assert imported not in SCRIPTS, f'{name}.py imports the script {imported}.py'
        assert imported not in MODULES or name in SCRIPTS, f'the module {name}.py imports the module {imported}.py'
        assert imported in sys.stdlib_module_names | CORE | MODULES or imported in OPTIONAL and lazily, f'{name}.py imports {imported}'


def test_benchmarks_stand_on_the_ground_floor_too():
    for path in (REPO / 'benchmarks').glob('*.py'):
        for imported, lazily in imports(path):
            assert imported in sys.stdlib_module_names | CORE | MODULES | {'benchmarks'} or imported in OPTIONAL and lazily, f'{path.name} imports {imported}'


def test_every_module_is_there():
    assert all((REPO / f'{name}.py').exists() for name in MODULES) and {'train', 'sample', 'mlp_mnist', 'export'} <= SCRIPTS


def test_what_the_floor_test_would_find(tmp_path):
    """Negative control: it sees imports wherever they hide."""
    (tmp_path / 'x.py').write_text('import loader\ndef f():\n    from wandb.sdk import init\nif 1:\n    import train as t\n')
    assert sorted(imports(tmp_path / 'x.py')) == [('loader', False), ('train', False), ('wandb', True)]


@pytest.mark.parametrize('path', sorted(p.relative_to(REPO).as_posix() for part in ('*', 'benchmarks/*', 'config/*', 'data/**/*', 'tests/*') for p in REPO.glob(part + '.py')))
def test_files_stay_short(path):
    assert len((REPO / path).read_text(encoding='utf-8').splitlines()) <= 430
