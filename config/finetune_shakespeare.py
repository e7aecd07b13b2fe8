"""Fine-tune the largest GPT-2 on Shakespeare, as nanoGPT does: 20 gentle steps, a little over two epochs."""

import time

out_dir = 'out-shakespeare'
eval_interval = 5
eval_iters = 40
always_save_checkpoint = False

wandb_log = False
wandb_project = 'shakespeare'
wandb_run_name = 'ft-' + str(time.time())

dataset = 'shakespeare'
init_from = 'gpt2-xl'

# 1 sequence x 1024 tokens x 32 micro-batches = 32,768 tokens a step
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

# constant learning rate
learning_rate = 3e-5
decay_lr = False
