"""
What a first run on a GPU must show: the same numbers as on the CPU, and nothing left behind on it. Each test runs on
the CPU too, so that it is known to work before there is a GPU.
"""

import copy

import numpy as np
import pytest
import torch
from conftest import read_log, run_main, run_script, settings, sha256_of

import sample
import train
from benchmarks import step, step_profile
from gradus import checkpoint, data, evaluation, inference, optim, parallel
from gradus.sampling import Sampler
from model import GPT, GPTConfig, KVCache

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
ON_CUDA = pytest.param('cuda', marks=[pytest.mark.cuda, NEEDS_GPU])
BOTH = pytest.mark.parametrize('device', ['cpu', ON_CUDA])

SIZES = dict(block_size=32, vocab_size=64, n_layer=2, n_head=4, n_embd=64)
SHAPES = {
    'gpt2': dict(),
    'sinusoidal': dict(pos='sinusoidal', bias=False),
    'qwen3': dict(pos='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True, n_kv_head=2, tie_weights=False, bias=False),
    'what_if': dict(score='squared', mask='none', norm='none'),
}
OF_EACH_SHAPE = pytest.mark.parametrize('shape', SHAPES)


@pytest.fixture(autouse=True)
def as_before():
    """parallel.init allows TF32 and set_deterministic forbids much: neither may reach other tests."""
    precision = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(deterministic)


def make_model(shape='qwen3', scale=3.0):
    """A GPT whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, **SHAPES[shape]))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale if p.dim() > 1 else 1)
    return model


def batch(n=4):
    """Inputs and targets (n, T), some of which do not count."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randint(SIZES['vocab_size'], (2, n, SIZES['block_size']), generator=generator)
    y[:, :5] = -1
    return x, y


def forward_backward(model, worker):
    """Logits, loss and all gradients of one batch, on the CPU in float32."""
    with worker.autocast():
        logits, loss = model(*worker.to_device(*batch()))
    loss.backward()
    return logits.detach().float().cpu(), loss.item(), [p.grad.cpu() for p in model.parameters()]


# ---------------------------------------------------------------------------- the same numbers

@BOTH
@OF_EACH_SHAPE
def test_float32_gives_the_same_numbers(shape, device):
    model = make_model(shape)
    expected = forward_backward(copy.deepcopy(model), parallel.init('cpu'))
    worker = parallel.init(device, 'float32', compile=False)
    torch.set_float32_matmul_precision('highest')     # no TF32: this is about the formulas
    found = forward_backward(model.to(worker.device), worker)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@BOTH
@OF_EACH_SHAPE
def test_bfloat16_gives_nearly_the_same(shape, device):
    model = make_model(shape, scale=1.0)
    logits, loss, grads = forward_backward(copy.deepcopy(model), parallel.init('cpu'))
    worker = parallel.init(device, 'bfloat16', compile=False)
    found_logits, found_loss, found_grads = forward_backward(model.to(worker.device), worker)

    assert found_loss == pytest.approx(loss, abs=0.02)
    assert (found_logits - logits).norm() < 0.02 * logits.norm()
    for found, expected in zip(found_grads, grads):
        assert (found - expected).norm() < 0.1 * expected.norm() + 1e-3


@BOTH
def test_muon_orthogonalizes_in_16_bits(device):
    torch.manual_seed(0)
    for shape in ((3, 64, 64), (2, 48, 96), (2, 96, 48)):
        matrices = torch.randn(shape)
        expected = optim.orthogonalize(matrices)
        found = optim.orthogonalize(matrices.to(device), torch.bfloat16).cpu()
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.05 * expected.norm()
        assert (found - expected).norm() > 1e-4 * expected.norm()               # it did compute in 16 bits


@BOTH
def test_copies_to_the_device_are_right_though_they_overlap(device):
    """The pinned memory of a copy may only be used again when the copy is done."""
    worker = parallel.init(device, compile=False)
    wanted = [torch.full((500, 500), n) for n in range(50)]
    found = [worker.to_device(tensor.clone())[0] for tensor in wanted]
    assert all(tensor.device == worker.device for tensor in found)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted))


@BOTH
def test_evaluation_is_the_same(device):
    ids = np.random.default_rng(0).integers(0, 64, 1000)
    tokens = data.Tokens.from_ids(ids, 64, SIZES['block_size'])
    lengths = torch.ones(64, dtype=torch.int64)
    model = make_model()
    expected = evaluation.evaluate(copy.deepcopy(model), tokens, 8, 0, parallel.init('cpu'), lengths)
    worker = parallel.init(device, 'float32', compile=False)
    torch.set_float32_matmul_precision('highest')
    found = evaluation.evaluate(model.to(worker.device), tokens, 8, 0, worker, lengths)
    assert found == pytest.approx(expected, rel=1e-4)


@OF_EACH_SHAPE
def test_nothing_is_made_on_another_device(shape):
    """On torch's device without numbers, which refuses to meet a tensor of the CPU, as a GPU does."""
    with pytest.raises(RuntimeError, match='device'):
        torch.zeros(3) + torch.zeros(3, device='meta')
    model = make_model(shape).to('meta')
    x, y = (tensor.to('meta') for tensor in batch())
    _, loss = model(x, y)
    loss.backward()
    optim.Muon(optim.muon_groups(model, 0.1), torch.bfloat16, lr=0.01, betas=(0.9, 0.95)).step()
    if model.config.mask == 'causal':
        cache = KVCache(model.config)
        for n in (5, 1, 4):
            logits, _ = model(x[:, :n], cache=cache)
        assert logits.device.type == 'meta'


# ---------------------------------------------------------------------------- text

@BOTH
@OF_EACH_SHAPE
def test_the_same_text_with_and_without_a_cache(shape, device):
    """Longer than the context, so that the cache is filled twice."""
    model = make_model(shape).to(device).eval()
    start = torch.tensor([[3, 1, 4], [2, 7, 1]], device=device)
    text = model.generate(start, 28)                  # still within the context
    assert text.device.type == device
    for row in text:
        for n in (3, 17, 30):
            if SHAPES[shape].get('mask') != 'none':
                logits, _ = model(row[None, :n], row[None, :n])
                assert logits[0, -1, row[n]] > logits[0, -1].max() - 1e-3
    assert model.generate(start, 80, Sampler(0.8, 20, seeds=[1, 2])).shape == (2, 83)


@BOTH
def test_a_prepared_model_samples_ids_below_the_vocabulary(device):
    worker = parallel.init(device, compile=False)
    model = inference.prepare(make_model().to(worker.device).eval(), worker.dtype)
    with worker.autocast():
        text = model.generate(torch.zeros(5, 1, dtype=torch.int64, device=worker.device), 50, Sampler(seeds=range(5)),
                              n_vocab=40)
    assert text.max() < 40 and text.device == worker.device


# ---------------------------------------------------------------------------- training

def make_side(cfg):
    """A model, an optimizer and tokens for train_step, as bench.py makes them."""
    worker = parallel.init(cfg.device, cfg.dtype, cfg.compile)
    tokens = data.Tokens.from_ids(np.arange(3000) % 64, SIZES['vocab_size'], SIZES['block_size'])
    torch.manual_seed(0)
    return step.Ours(cfg, worker, GPTConfig(**SIZES, **SHAPES['qwen3']), tokens)


def take(side, i):
    """Step i: (loss, was it taken?)"""
    optim.set_step(side.optimizer, i, side.cfg.learning_rate)
    loss, _, taken = train.train_step(side.fast, side.optimizer, side.scaler, side.tokens, i, side.cfg, side.worker)
    return loss.item(), taken


def losses_of_steps(cfg, n=8):
    """The losses of the first n steps."""
    side = make_side(cfg)
    return [take(side, i)[0] for i in range(n)]


@BOTH
@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_training_steps_give_the_same_losses(optimizer, device):
    cfg = settings(device='cpu', dtype='float32', optimizer=optimizer, dropout=0.0, compile=False)
    expected = losses_of_steps(cfg)
    cfg.device = device
    found = losses_of_steps(cfg)                      # with TF32 on CUDA
    assert found == pytest.approx(expected, abs=0.02)
    assert found[-1] < found[0] - 0.3

    cfg.dtype = 'bfloat16'
    assert losses_of_steps(cfg) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize('device', [pytest.param('cpu', marks=pytest.mark.slow), ON_CUDA])
def test_compiled_steps_give_the_same_losses(device):
    cfg = settings(device=device, dtype='float32', optimizer='muon', dropout=0.0, compile=False)
    expected = losses_of_steps(cfg)
    cfg.compile = True
    assert losses_of_steps(cfg) == pytest.approx(expected, abs=0.02)


@BOTH
def test_float16_scales_the_loss(device):
    """On the CPU it falls back to float32."""
    cfg = settings(device=device, dtype='float16', optimizer='muon', dropout=0.0, compile=False)
    losses = losses_of_steps(cfg, n=20)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.3


@BOTH
def test_a_step_that_is_not_finite_is_not_taken(device):
    side = make_side(settings(device=device, dtype='float32', compile=False, dropout=0.0))
    assert take(side, 0)[1]
    with torch.no_grad():
        side.model.transformer.wte.weight[5] = torch.nan
    before = sha256_of([side.model.state_dict(), side.optimizer.state_dict()])
    assert not take(side, 1)[1]
    assert sha256_of([side.model.state_dict(), side.optimizer.state_dict()]) == before


@BOTH
def test_what_bench_reads_of_a_step(device):
    side = make_side(settings(device=device, dtype='bfloat16', optimizer='muon', dropout=0.0, compile=False))
    side.step(0)
    memory = step.peak_memory(side, 1)
    if device == 'cuda':                              # weights, a moment of each or two, gradients
        assert 3 * 4 * side.model.num_params() < memory < 1e9
    else:
        assert memory == 0

    lines = []
    step_profile.explain(side, 2, lines.append)
    assert lines[0].count('ms') == 2
    assert len([line for line in lines if line.startswith('| `')]) == 10
    launches = int(lines[-1].split()[4])
    assert launches > 50 if device == 'cuda' else launches == 0, lines[-1]


# ---------------------------------------------------------------------------- whole runs

def flags(device, **changes):
    chosen = settings(device=device, optimizer='muon', qk_norm=True, **changes)
    return [f'--{key}={value}' for key, value in vars(chosen).items()]


@pytest.mark.parametrize('device', [pytest.param('cpu', marks=pytest.mark.slow), ON_CUDA])
def test_a_resumed_run_is_the_same_bit_for_bit(device, place):
    """In processes of their own, as train.py runs: cuBLAS reads its setting once. On CUDA all of it is compiled."""
    runs = [('whole', {}), ('halves', dict(max_iters=10)), ('halves', dict(init_from='resume'))]
    hashes = []
    for folder, changes in runs:
        ran = run_script('train.py', *flags(device, out_dir=folder, deterministic=True, eval_interval=10, **changes))
        assert ran.returncode == 0, ran.stderr
        assert 'not bit for bit' not in ran.stdout
        state = checkpoint.load(f'{folder}/ckpt.pt')
        hashes.append(sha256_of([state['model'], state['optimizer']['state']]))
    assert hashes[2] == hashes[0] != hashes[1]
    assert read_log('halves') == read_log('whole')


@BOTH
def test_a_run_and_its_samples(device, place):
    """A checkpoint of this device is read on it, and on the CPU; it holds no tensors of a GPU."""
    ran = run_main(train, *flags(device, max_iters=4, eval_interval=2, compile=False, sample_tokens=5))
    assert ran.returncode == 0, ran.stderr
    state = torch.load('out/ckpt.pt', weights_only=True, map_location=lambda storage, place: storage)
    assert state['iter_num'] == 4
    for where in {device, 'cpu'}:
        text = run_main(sample, '--out_dir=out', '--num_samples=2', '--max_new_tokens=40', f'--device={where}')
        assert text.returncode == 0, text.stderr
        assert text.stdout.count('---------------') == 2
