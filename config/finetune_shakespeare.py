"""Teach the largest GPT-2 Shakespeare, as nanoGPT does it: 20 gentle steps, a bit more than two passes over the text."""
import time

out_dir = 'out-shakespeare'
eval_interval = 5
eval_iters = 40
wandb_log = False
wandb_project = 'shakespeare'
wandb_run_name = 'ft-' + str(time.time())

dataset = 'shakespeare'
init_from = 'gpt2-xl'
always_save_checkpoint = False

# 1 sequence x 1024 tokens x 32 micro-batches = 32,768 tokens a step
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5  # constant
decay_lr = False
