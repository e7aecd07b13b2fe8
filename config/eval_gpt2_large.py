"""Evaluate OpenAI's GPT-2 (774M: 36 layers, 20 heads, 1280 wide) on a dataset: OpenWebText by default."""

init_from = 'gpt2-large'
eval_only = True
eval_iters = 500      # many batches, for a stable estimate
batch_size = 8
wandb_log = False
