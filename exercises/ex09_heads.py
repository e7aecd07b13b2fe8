"""
9. Many heads.

H heads look at the same tokens, each in its own part of the vector, of width D = C / H. For head h:

    Q, K, V = x W_Q^T, x W_K^T, x W_V^T        head_h = softmax(Q_h K_h^T / sqrt(D) + M) V_h
    output  = (head_1 | head_2 | ... | head_H) W_O^T        (heads side by side)

Shapes: x (B, T, C); W_qkv (3C, C): W_Q on top of W_K on top of W_V, (C, C) each; W_O (C, C); M (T, T), the mask of
exercise 8. Q, K, V (B, T, C) each, split into heads (B, H, T, D). The result is (B, T, C). There are no biases.

Hint: head h owns the columns hD .. (h+1)D - 1. Split with view(B, T, H, D), then transpose(1, 2). A direct
view(B, H, T, D) has the right shape but mixes up the tokens. Here you may call F.scaled_dot_product_attention.
Answer: model.py, `CausalSelfAttention.forward`.
"""



def heads(x, w_qkv, w_o, H):
    """x (B, T, C); w_qkv (3C, C); w_o (C, C); H: number of heads. Returns (B, T, C)."""
    raise NotImplementedError
