"""Makes a float model easier to quantize without changing its results, and a quantized model less biased.

smooth_                     SmoothQuant: moves activation outliers into weights         before quantize_
cross_layer_equalize_       equalizes the ranges of channels between Linears            before quantize_
smoothing_groups            lists what these two can scale in a model, and why not the rest
correct_bias_               subtracts the mean error of every output from the bias      after quantize_
"""

from tritonq.optimize.equalize.bias_correction import correct_bias_
from tritonq.optimize.equalize.cross_layer import cross_layer_equalize_
from tritonq.optimize.equalize.finding import smoothing_groups
from tritonq.optimize.equalize.groups import Group, Groups
from tritonq.optimize.equalize.smoothquant import smooth_

__all__ = ["Group", "Groups", "correct_bias_", "cross_layer_equalize_", "smooth_", "smoothing_groups"]
