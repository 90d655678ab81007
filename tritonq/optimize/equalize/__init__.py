"""Making a float model easier to quantize without changing what it computes, and a quantized one less biased.

smooth_                     SmoothQuant: activations' outliers into weights            before quantize_
cross_layer_equalize_       pairs of Linears: ranges of channels made equal            before quantize_
smoothing_groups            what the two can scale in a model, and what not and why
correct_bias_               the mean error of every output, taken off the bias         after quantize_
"""

from tritonq.optimize.equalize.bias_correction import correct_bias_
from tritonq.optimize.equalize.cross_layer import cross_layer_equalize_
from tritonq.optimize.equalize.finding import smoothing_groups
from tritonq.optimize.equalize.groups import Group, Groups
from tritonq.optimize.equalize.smoothquant import smooth_

__all__ = ["Group", "Groups", "correct_bias_", "cross_layer_equalize_", "smooth_", "smoothing_groups"]
