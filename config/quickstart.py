"""
Your first run: a small modern GPT on the source code of Python's standard library. Nothing to download, works anywhere.

    python train.py config/quickstart.py

Two minutes on two cores of an AMD EPYC (Zen 4): val loss 1.21 nats, 1.75 bits per byte (one run).
"""

out_dir = 'out-quickstart'
eval_interval = 250
eval_iters = 40
log_interval = 25
sample_tokens = 500

dataset = 'python_stdlib'
data_order = 'shuffled'
batch_size = 8
block_size = 256
gradient_accumulation_steps = 1

n_layer = 3
n_head = 6
n_embd = 96
n_inner = 320

# Qwen3's block
pos = 'rotary'
norm = 'rmsnorm'
mlp = 'swiglu'
qk_norm = True
tie_weights = False

optimizer = 'muon'
learning_rate = 2e-2
weight_decay = 0.1
grad_clip = 0.0       # the size of a Muon step does not depend on the gradient norm

lr_schedule = 'linear'
cooldown = 0.7
max_iters = 1000
lr_decay_iters = max_iters
warmup_iters = 0
min_lr = 0
