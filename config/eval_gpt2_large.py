"""How well OpenAI's GPT-2 (774M: 36 layers, 20 heads, 1280 wide) predicts a dataset, OpenWebText unless told otherwise."""
batch_size = 8
eval_iters = 500   # many batches: a steady figure
eval_only = True
wandb_log = False
init_from = 'gpt2-large'
