"""An observer that keeps most of the distribution's information, like the calibration of TensorRT.

For each threshold it compares two distributions. P is clipped at the threshold: the counts cut off are added to its
ends. Q has the same bins, merged into as many levels as the grid has and then spread over the bins that are not empty.
The observer takes the threshold with the least Kullback-Leibler divergence Σ P log(P / Q). A small window suffers from
the counts piled up at its ends, a large one from merging.

Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017. For an affine grid the window is the part of the observed
range within ± the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.observers.histogram import CountingObserver
from tritonq.reference import histogram as binning

#: Thresholds tried, evenly spaced over the window.
_THRESHOLDS = 512
#: Count of a level that holds only cut-off values. With 0 the divergence is infinite, and an outlier is never cut.
_LEAST_COUNT = 1e-4


class EntropyObserver(CountingObserver):
    """Cuts the range where the Kullback-Leibler divergence of the quantized distribution is least.

    Args:
        bins, dtype, qscheme, …: see HistogramObserver.
    """

    def cut(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        place, bins, device = self.window(), self.bins, self.histogram.device
        # [C]: how many bins a window has on either side of the one that holds zero, up to all of them
        radius = torch.arange(bins - 1, -1, -max(1, bins // _THRESHOLDS), device=device).flip(0)
        zero = -place.origin
        counts = without_zeros(self.histogram, zero)
        if self.symmetric:
            counts = binning.magnitudes(counts, place)
            first, last, levels = torch.zeros_like(radius), radius + 1, self.qmax + 1
        else:
            first, last = (zero - radius).clamp(min=0), (zero + radius + 1).clamp(max=bins)
            levels = self.qmax - self.qmin + 1
        found = divergences(counts, first, last, levels).argmin(
            dim=0, keepdim=True
        )  # [1], an index tensor: the host does not wait
        if self.symmetric:
            amax = torch.minimum(last[found][0] * place.width, self.widest()[1])
            return -amax, amax
        edges = self.edges().float()
        low, high = edges[first[found]][0], edges[last[found]][0]
        return torch.maximum(low, self.min_val), torch.minimum(high, self.max_val)


def without_zeros(counts: Tensor, zero: Tensor) -> Tensor:
    """Replace the count of the bin around zero, two widths wide, by its neighbours' counts.

    ReLU and padding make many exact zeros, which every grid represents. Counted, they would outweigh all other values.
    """
    padded = torch.nn.functional.pad(counts, (1, 1))
    place = torch.arange(counts.numel(), device=counts.device)
    return torch.where(place == zero, padded[:-2] + padded[2:], counts)


def divergences(counts: Tensor, first: Tensor, last: Tensor, levels: int) -> Tensor:
    """Kullback-Leibler divergence, in nats, between C windows of a histogram and the same windows merged into levels.

    Args:
        counts: int64 [bins].
        first, last: int [C]: the first bin of each window, and the bin behind its last; the last window is the largest.
        levels: levels of the grid. A window with fewer bins loses nothing by merging, however much it cuts off, so it
            is not eligible unless it is the largest.

    Returns:
        float64 [C]; inf for windows that are not eligible or empty.
    """
    c = counts.double()
    total = c.sum()
    sums = torch.nn.functional.pad(c.cumsum(0), (1, 0))
    filled = torch.nn.functional.pad((c > 0).double().cumsum(0), (1, 0))
    logs = torch.nn.functional.pad(torch.xlogy(c, c).cumsum(0), (1, 0))

    width = (last - first).long()  # [C]
    used = width.clamp(max=levels)
    level = torch.arange(levels + 1, device=counts.device)
    # Level l begins with bin ceil(l · width / used); levels that are not used have none.
    ceiling = (level * width[:, None] + used[:, None] - 1) // used[:, None]
    bounds = first[:, None] + torch.minimum(ceiling, width[:, None])
    inside = sums[bounds].diff(dim=1)  # [C, levels]
    spread = filled[bounds].diff(dim=1)

    # The counts cut off, which pile up on the first and the last bin.
    before, behind = sums[first], total - sums[last]
    c_first, c_last = c[first], c[last - 1]
    single = width == 1
    p_first = c_first + before + torch.where(single, behind, 0.0)
    p_last = torch.where(single, p_first, c_last + behind)
    ends = torch.stack([torch.zeros_like(used), used - 1], dim=1)  # [C, 2]: their levels
    piled = torch.zeros_like(inside).scatter_add_(1, ends, torch.stack([before, behind], dim=1))
    newly = torch.stack([(c_first == 0) & (p_first > 0), (c_last == 0) & (p_last > 0) & ~single], dim=1)
    spread = spread.scatter_add(1, ends, newly.double())

    p_log_p = logs[last] - logs[first] - torch.xlogy(c_first, c_first) + torch.xlogy(p_first, p_first)
    p_log_p += torch.where(single, 0.0, torch.xlogy(p_last, p_last) - torch.xlogy(c_last, c_last))
    each = torch.where(piled > 0, inside.clamp(min=_LEAST_COUNT), inside) / spread
    p_log_q = torch.where(inside + piled > 0, (inside + piled) * each.log(), 0.0).sum(dim=1)
    p_log_q -= total * inside.sum(dim=1).log()
    divergence = (p_log_p - total * total.log() - p_log_q) / total
    eligible = ((width >= levels) | (width == width[-1])) & (sums[last] > sums[first])
    return torch.where(eligible, divergence, torch.inf)
