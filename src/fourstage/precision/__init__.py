"""In which precision matrix products are computed: by training, rollouts, scores and measurements.

Weights, gradients and moments are fp32 always; a product's inputs are rounded for it (autocast:
Micikevicius et al., *Mixed Precision Training*, 2018). Norms, softmax, losses and log-probabilities
stay in fp32. One precision holds for all models of a process, so that a policy's responses are
drawn with the numbers that it is then trained with.
"""

from fourstage.precision.policy import (
    autocast,
    described,
    product_dtype,
    resolve,
    trains_in_fp8,
    use,
)

__all__ = ["autocast", "described", "product_dtype", "resolve", "trains_in_fp8", "use"]
