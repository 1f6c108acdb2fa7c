"""A step of AdamW for many variables at once, in PyTorch.

`rows` are tuples `(value, gradient, m, v, factor, decay)` of tensors of one type on one device and
of two floats, as in `LayerwiseAdamW`. Values and moments are changed in place.
"""

import functools

import torch


@functools.cache
def _fused_on_processor():
    """Whether this PyTorch has AdamW as one pass over each variable's memory, on processors."""
    try:
        fused([(*torch.ones(4, 1), 1.0, 0.0)], 0.1, torch.tensor(1.0), (0.9, 0.999), 1e-8)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


def can_fuse(rows) -> bool:
    """Whether `fused` computes what `foreach` does: it reads memory as it lies."""
    return (
        rows[0][0].device.type == "cpu"
        and rows[0][0].dtype in (torch.float32, torch.float64)
        and all(tensor.is_contiguous() for value, _, m, v, *_ in rows for tensor in (value, m, v))
        and not torch.compiler.is_compiling()
        and _fused_on_processor()
    )


def fused(rows, learning_rate, step, betas, epsilon):
    """By PyTorch's own operation, once for each factor and decay: one pass over their memory."""
    groups = {}
    for *tensors, factor, decay in rows:
        groups.setdefault((factor, decay), []).append(tensors)
    for (factor, decay), tensors in groups.items():
        values, gradients, m, v = map(list, zip(*tensors, strict=True))
        torch._fused_adamw_(
            values,
            [gradient.contiguous() for gradient in gradients],
            *(m, v, [], [step] * len(values)),
            lr=float(learning_rate) * factor,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=decay,
            eps=epsilon,
            amsgrad=False,
            maximize=False,
        )


def foreach(rows, learning_rate, rate, root, betas, epsilon):
    """By operations on lists; `rate` and `root` are corrected for the moments' start at zero."""
    values, gradients, m, v, factors, decays = map(list, zip(*rows, strict=True))
    device, dtype = values[0].device, values[0].dtype
    torch._foreach_mul_(m, betas[0])
    torch._foreach_add_(m, gradients, alpha=1 - betas[0])
    torch._foreach_mul_(v, betas[1])
    torch._foreach_addcmul_(v, gradients, gradients, value=1 - betas[1])
    denominator = torch._foreach_sqrt(v)
    torch._foreach_div_(denominator, root.to(device, dtype))
    torch._foreach_add_(denominator, epsilon)
    update = torch._foreach_div(m, denominator)
    torch._foreach_mul_(update, factors)
    torch._foreach_mul_(update, rate.to(device, dtype))
    shrinks = [factor * decay for factor, decay in zip(factors, decays, strict=True)]
    decayed = [i for i, shrink in enumerate(shrinks) if shrink]
    if decayed:
        lost = torch._foreach_mul([values[i] for i in decayed], [shrinks[i] for i in decayed])
        torch._foreach_mul_(lost, learning_rate.to(device, dtype))
        torch._foreach_add_([update[i] for i in decayed], lost)
    torch._foreach_sub_(values, update)
