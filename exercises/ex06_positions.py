"""
6. Positions as sines and cosines.

Attention alone does not know the order of the tokens. So each position gets its own vector, from fast to slow waves:

    PE(pos, 2i)     = sin(pos / 10000^(2i/C))
    PE(pos, 2i + 1) = cos(pos / 10000^(2i/C))        for i = 0 .. C/2 - 1

Shapes: PE (n, C): row pos belongs to position pos = 0 .. n-1. C is even.

Hint: sines stand in the even columns and cosines in the odd ones, alternating. pe[:, 0::2] are the even columns.
Answer: model.py, `sinusoidal`.
"""



def positions(n, C):
    """n: number of positions; C: width of a token's vector, even. Returns PE (n, C), float32."""
    raise NotImplementedError
