"""
3. The four equations of backpropagation.

The cost of one image is C = |y - a^L|^2 / 2. How does it change with every weight and bias? Go forward and remember
every a^l, then walk back from the last layer (* is number by number):

    BP1    delta^L = (a^L - y) * sigma'(z^L)
    BP2    delta^l = ((w^{l+1})^T delta^{l+1}) * sigma'(z^l)
    BP3    dC/db^l = delta^l
    BP4    dC/dw^l = delta^l (a^{l-1})^T

Return the sums over the m images, not the means.

Shapes: x (n_1, m), y (n_L, m), z^l, a^l and delta^l (n_l, m), one image in each column; w^l and nabla_w^l
(n_l, n_{l-1}); b^l and nabla_b^l (n_l, 1). Both lists go from the first layer with weights (l = 2) to the last.

Hint: sigma'(z) = sigma(z) (1 - sigma(z)) = a (1 - a). In BP4 the matrix product adds up the images; in BP3 you must:
sum(dim=1, keepdim=True).
Answer: mlp_mnist.py, `backprop`.
"""



def backprop(weights, biases, x, y):
    """
    weights: list of w^l (n_l, n_{l-1}); biases: list of b^l (n_l, 1); x (n_1, m); y (n_L, m).
    Returns two lists, nabla_w and nabla_b, with the shapes of weights and biases.
    """
    raise NotImplementedError
