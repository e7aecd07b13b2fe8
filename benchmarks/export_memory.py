"""
How much memory reading and writing a large model takes: the peak of the process, without what Python and torch take,
over the size of the weights. The model has 350 million random weights in the shape of Llama; each step is a process of
its own.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile

STEPS = ('export hf', 'export gguf', 'export safetensors', 'build hf', 'build gguf', 'build safetensors')
SHAPE = dict(block_size=1024, vocab_size=32768, n_layer=24, n_head=16, n_embd=1024, pos='rotary', norm='rmsnorm',
             mlp='swiglu', bias=False)


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def make(folder):
    """A checkpoint with these weights in `folder`/out."""
    import torch

    from gradus import checkpoint
    from model import GPT, GPTConfig
    model = GPT(GPTConfig(**SHAPE))
    tensors = model.state_dict()
    checkpoint.save(os.path.join(folder, 'out', 'best.pt'),
                    dict(model=tensors, model_args=checkpoint.model_args(model.config), tokenizer={'kind': 'byte'}))
    print(sum(p.numel() for p in model.parameters()) * torch.float32.itemsize)


def step(folder, name):
    """Do one of STEPS and print the bytes that it took beyond the imports."""
    import export
    from gradus import gguf_file, hf, pretrained  # noqa: F401
    what, to = name.split()
    paths = dict(hf='hf', gguf='model.gguf', safetensors='model.safetensors')
    before = peak_bytes()
    if what == 'export':
        out_dir = os.path.join(folder, 'out')
        export.main(export.ExportConfig(out_dir=out_dir, to=to, dest=os.path.join(folder, paths[to])))
    else:
        pretrained.build(pretrained.load(os.path.join(folder, paths[to])))
    print(peak_bytes() - before)


def last_number(*args):
    """What this script prints last when it is called with these arguments."""
    command = [sys.executable, '-m', 'benchmarks.export_memory', *args]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return int(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', help='where to write (default: the temporary folder)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        weights = last_number('make', folder)
        print(f'{weights / 1e9:.2f} GB of weights')
        for name in STEPS:
            extra = last_number(name, folder)
            print(f'{name}: {extra / 1e9:.2f} GB, {extra / weights:.2f} times the weights')


if __name__ == '__main__':
    if len(sys.argv) == 3 and sys.argv[1] == 'make':
        make(sys.argv[2])
    elif len(sys.argv) == 3 and sys.argv[1] in STEPS:
        step(sys.argv[2], sys.argv[1])
    else:
        main()
