"""
A GPT that translates from German to English: a sentence is the prompt, its translation the completion.

    python train.py config/translate_de_en.py
    python sample.py --out_dir=out-translate-de-en --start="Ein Mann schläft auf einer Bank." --beams=5
    python sample.py --out_dir=out-translate-de-en --eval=data/multi30k/test.tsv

On two cores of an AMD EPYC (Zen 4): 16 minutes, val loss 1.597; BLEU on the test set of 2016: 37.5 by greedy search,
38.8 with five beams (one run).
"""

out_dir = 'out-translate-de-en'
eval_interval = 500
eval_iters = 16       # all of the 1,014 pairs held out
log_interval = 50

dataset = 'multi30k'
data_order = 'shuffled'
batch_size = 64
block_size = 168
gradient_accumulation_steps = 1

n_layer = 4
n_head = 4
n_embd = 128
n_inner = 320
dropout = 0.2         # each sentence is seen 13 times

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
