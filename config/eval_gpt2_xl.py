"""How well OpenAI's GPT-2 (1558M: 48 layers, 25 heads, 1600 wide) predicts a dataset, OpenWebText unless told otherwise."""
batch_size = 8
eval_iters = 500   # many batches: a steady figure
eval_only = True
wandb_log = False
init_from = 'gpt2-xl'
