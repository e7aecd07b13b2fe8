"""
Tiny Shakespeare by characters in ten seconds without a GPU: below the loss (1.90) that nanoGPT's CPU recipe reaches after 100.

On two cores of an AMD EPYC (Zen 4) 9 to 11 s from start to exit, loss 1.83 to 1.86 over the whole val split (three seeds).

    python train.py config/shakespeare_char_cpu.py
"""
out_dir = 'out-shakespeare-char-cpu'
dataset = 'shakespeare_char'
device = 'cpu'
eval_interval = 1000  # at the beginning and at the end
eval_iters = 20
log_interval = 10

gradient_accumulation_steps = 1
batch_size = 16
block_size = 64
data_order = 'shuffled'

n_layer = 2           # small and shallow: in ten seconds many small steps learn more than few large ones
n_head = 4
n_embd = 64
n_inner = 256
pos, norm, mlp, qk_norm, tie_weights = 'rotary', 'rmsnorm', 'swiglu', True, False   # Qwen3's block

optimizer = 'muon'
learning_rate = 3e-2
weight_decay = 0.1
lr_schedule = 'linear'
cooldown = 0.9
max_iters = 310
lr_decay_iters = max_iters
warmup_iters = 0
min_lr = 0
grad_clip = 0.0       # a step of Muon does not depend on the gradient's length
