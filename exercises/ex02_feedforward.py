"""
2. Feedforward.

Every layer turns the activations of the layer before into its own. Do all layers, for m images at once:

    a^1 = x        z^l = w^l a^{l-1} + b^l        a^l = sigma(z^l)        for l = 2..L

Shapes: x (n_1, m), one image in each column; w^l (n_l, n_{l-1}); b^l (n_l, 1); a^l (n_l, m). The result is a^L (n_L, m).

Hint: w^l a^{l-1} is a matrix product. The column b^l is added to every column. The last layer has a sigma too.
Answer: mlp_mnist.py, the first lines of `backprop`; model.py, `MLP.forward`, where images are rows.
"""



def feedforward(weights, biases, x):
    """weights: list of w^l (n_l, n_{l-1}); biases: list of b^l (n_l, 1); x (n_1, m). Returns a^L (n_L, m)."""
    raise NotImplementedError
