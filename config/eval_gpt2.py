"""How well OpenAI's GPT-2 (124M: 12 layers, 12 heads, 768 wide) predicts a dataset, OpenWebText unless told otherwise."""
batch_size = 8
eval_iters = 500   # many batches: a steady figure
eval_only = True
wandb_log = False
init_from = 'gpt2'
