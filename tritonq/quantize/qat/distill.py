"""Distillation: trains the quantized student to match the float teacher's whole distribution."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional


def distill_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · mean over rows of KL(softmax(teacher / T) ‖ softmax(student / T)), in nats, computed in float32.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2; the factor T² keeps the gradient's
    size the same for any temperature.

    Args:
        student_logits: float [..., classes].
        teacher_logits: float, the same shape; no gradient flows to it.
        temperature: T, finite and > 0.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: shapes differ, there are no rows, or the temperature is out of range.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"distill_loss: teacher_logits must have the student's shape {list(student_logits.shape)}, found "
            f"{list(teacher_logits.shape)}"
        )
    if len(student_logits.shape) == 0 or 0 in student_logits.shape:
        raise ValueError(
            f"distill_loss: logits must be [..., classes], found shape {list(student_logits.shape)}"
        )
    number: object = temperature
    if not isinstance(number, (int, float)) or not 0 < number < math.inf:
        raise ValueError(f"distill_loss: temperature must be a finite number > 0, found {temperature!r}")
    classes = student_logits.shape[-1]
    student = functional.log_softmax(student_logits.float().reshape(-1, classes) / temperature, dim=-1)
    teacher = functional.log_softmax(
        teacher_logits.detach().float().reshape(-1, classes) / temperature, dim=-1
    )
    loss = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return loss * temperature**2
