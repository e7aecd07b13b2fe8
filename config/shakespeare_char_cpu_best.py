"""
Character-level tiny Shakespeare without a GPU: a lower loss than nanoGPT's 10.65M weights reach on an A100 (1.4697).

    python train.py config/shakespeare_char_cpu_best.py

On two cores of an AMD EPYC (Zen 4): 18 min 0 s from start to exit (one run), loss 1.381 to 1.396 over the whole val
split (three seeds).
"""

out_dir = 'out-shakespeare-char-cpu-best'
device = 'cpu'
dtype = 'bfloat16'    # float32 where the processor has no instructions for it
eval_interval = 1000
eval_iters = 20
log_interval = 10

dataset = 'shakespeare_char'
data_order = 'shuffled'
batch_size = 8
block_size = 256
gradient_accumulation_steps = 1

# The text is read many times. Without dropout, the model would learn it by heart. Even so, it would be too sure of
# itself when it reads something new: trained at a temperature below 1, it is less so.
n_layer = 5
n_head = 5
n_embd = 160
n_inner = 448
dropout = 0.1
train_temperature = 0.8

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
max_iters = 6000
lr_decay_iters = max_iters
warmup_iters = 0
min_lr = 0
