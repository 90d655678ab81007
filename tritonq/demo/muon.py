"""The Muon optimizer for the decoder's matrices: momentum with orthogonalized updates.

A few directions dominate Adam's updates of a matrix, and after a short run also the trained matrix. Muon (Keller
Jordan, 2024) replaces the momentum M = U S V^T by roughly U V^T. This moves all directions equally far and needs fewer
tokens for the same loss. A polynomial in M drives the singular values towards 1, so no decomposition is needed.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

# The published coefficients of a quintic: steep at 0, and close to 1 for singular values in (0, 1].
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about U V^T of `matrix` = U S V^T, with singular values between roughly 0.7 and 1.2."""
    linear, cubic, quintic = QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = linear * x + (cubic * gram + quintic * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized, with decoupled weight decay; for two-dimensional parameters only."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: nothing here evaluates the loss twice
        """Move every matrix by its orthogonalized momentum."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                if "average" not in state:
                    state["average"] = torch.zeros_like(matrix)
                average = state["average"]
                average.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalize(matrix.grad.lerp(average, group["momentum"]))
                # A tall matrix gets a longer step, so that its outputs move as far as those of a square one.
                stretch = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * stretch)
