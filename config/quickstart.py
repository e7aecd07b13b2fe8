"""
The first run: a small modern GPT on the source of Python's standard library. No download, any machine.

    python train.py config/quickstart.py

Under three minutes on two cores of an AMD EPYC (Zen 4): val loss about 1.30 nats, 1.88 bits per byte.
"""
out_dir = 'out-quickstart'
dataset = 'python_stdlib'
eval_interval = 400
eval_iters = 40
log_interval = 25
sample_tokens = 500

gradient_accumulation_steps = 1
batch_size = 8
block_size = 128

n_layer = 4
n_head = 4
n_embd = 128
pos, norm, mlp, qk_norm, tie_weights = 'rotary', 'rmsnorm', 'swiglu', True, False   # Qwen3's block

learning_rate = 3e-3
min_lr = 0
lr_schedule = 'linear'
max_iters = 2000
lr_decay_iters = max_iters
warmup_iters = 50
beta2 = 0.99
