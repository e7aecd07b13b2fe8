"""
Character-level tiny Shakespeare without a GPU, in about the time that nanoGPT's CPU recipe takes to reach 1.90.

    python train.py config/shakespeare_char_cpu_long.py

On two cores of an AMD EPYC (Zen 4), where nanoGPT took 87 to 124 s: 91 to 116 s from start to exit, loss 1.456 to
1.475 over the whole val split (four seeds, eight runs).
"""

out_dir = 'out-shakespeare-char-cpu-long'
device = 'cpu'
dtype = 'bfloat16'    # float32 where the processor has no instructions for it
eval_interval = 1000  # only at the start and at the end
eval_iters = 20
log_interval = 10

dataset = 'shakespeare_char'
data_order = 'shuffled'
batch_size = 8
block_size = 256
gradient_accumulation_steps = 1

n_layer = 3
n_head = 4
n_embd = 128
n_inner = 320
train_temperature = 0.9  # after three times through the text, a model is too sure of itself

# Qwen3's block
pos = 'rotary'
norm = 'rmsnorm'
mlp = 'swiglu'
qk_norm = True
tie_weights = False

optimizer = 'muon'
learning_rate = 3e-2
weight_decay = 0.1
grad_clip = 0.0       # the size of a Muon step does not depend on the gradient norm

lr_schedule = 'linear'
cooldown = 0.7
max_iters = 1500
lr_decay_iters = max_iters
warmup_iters = 0
min_lr = 0
