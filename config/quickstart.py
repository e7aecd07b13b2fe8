"""
The two-minute start: a small modern GPT on the source of Python's standard library. No download, any machine.

    python train.py config/quickstart.py
"""
out_dir = 'out-quickstart'
dataset = 'python_stdlib'
eval_interval = 250
eval_iters = 60
log_interval = 25

gradient_accumulation_steps = 1
batch_size = 16
block_size = 128

n_layer = 4
n_head = 4
n_embd = 128
pos, norm, mlp, qk_norm, tie_weights = 'rotary', 'rmsnorm', 'swiglu', True, False   # Qwen3's block

learning_rate = 3e-3
min_lr = 0
lr_schedule = 'linear'
max_iters = 1500
lr_decay_iters = max_iters
warmup_iters = 50
beta2 = 0.99
