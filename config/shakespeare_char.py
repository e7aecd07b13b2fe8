"""
Tiny Shakespeare by characters, the best recipe known so far: nanoGPT's size (10.65M) with today's block. For a GPU.

    python train.py config/shakespeare_char.py

Not measured on a GPU yet; LOG.md will say when it is.
"""
out_dir = 'out-shakespeare-char'
dataset = 'shakespeare_char'
eval_interval = 250
eval_iters = 0        # the whole of val: it is small
log_interval = 10

gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
pos, norm, mlp, qk_norm, tie_weights = 'rotary', 'rmsnorm', 'swiglu', True, False   # Qwen3's block
dropout = 0.2

learning_rate = 1e-3
lr_schedule = 'linear'
max_iters = 5000
lr_decay_iters = max_iters
min_lr = 0
warmup_iters = 100
beta2 = 0.99
