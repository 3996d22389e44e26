"""Probabilities as whole numbers, the same on every processor for the same logits.

A range coder needs probabilities that encoder and decoder agree on to the last bit. `exp` and sums of floating-point
numbers differ in the last bits between processors and libraries. What IEEE 754 rounds correctly does not, and neither
do integers: here are only + - * /, one by one, and then integers.
"""

import numpy as np


PRECISION = 24  # bits: constriction's range coder takes probabilities in units of 2**-24
WEIGHT_BITS = 30  # of the likeliest token's weight, before the weights of a row are scaled to 2**PRECISION
LN2 = 0.6931471805599453
TERMS = 8  # of the series of 2**r, |r| <= 1/2: a relative error of 2**-27


def exp2(x: np.ndarray) -> np.ndarray:
    """2**x, float64, by the Taylor series of a fraction and a shift of the exponent; -1000 < x <= 0."""
    whole = np.rint(x)
    r = (x - whole) * LN2
    power = np.ones_like(r)
    for k in range(TERMS - 1, 0, -1):
        power = power * r / k + 1.0
    return np.ldexp(power, whole.astype(np.int32))


def integer_probabilities(logits: np.ndarray) -> np.ndarray:
    """Round the softmax of logits to multiples of 2**-24 that are at least 2**-24 and sum to 1.

    Args:
        logits: Finite float32 (B, V).

    Returns:
        In units of 2**-24, int64 (B, V).
    """
    below = (logits.astype(np.float64) - logits.max(axis=1, keepdims=True)) / LN2  # log2(p / largest p)
    weights = np.floor(exp2(np.maximum(below, -100.0)) * 2**WEIGHT_BITS).astype(np.int64)
    free = 2**PRECISION - weights.shape[1]  # what is left when each token has its 2**-24
    rounded = weights * free // weights.sum(axis=1, keepdims=True)
    rounded[np.arange(len(rounded)), weights.argmax(axis=1)] += free - rounded.sum(axis=1)  # to the likeliest
    return rounded + 1
