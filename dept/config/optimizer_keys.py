"""The sections ``optimizer`` and ``scheduler`` of a yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import nan
from typing import Any

import torch

from dept.config.schema import FLAG, PATTERN, ListOf, Named, Section, Value, integer, number, time
from dept.errors import ConfigError, shown
from dept.method.outer_optimizer import TORCH_OPTIMIZERS

LARGEST_RATE = 1e4

RATE = number(0, LARGEST_RATE)
BETAS = Value(
    "two numbers of 0 or more and below 1",
    lambda v: isinstance(v, (list, tuple)) and len(v) == 2 and all(_BETA.fits(b) for b in v),
)
_BETA = number(0, 1 - 1e-12)
# Options that several have, whose types torch does not always check.
USUAL = {
    "lr": RATE,
    "betas": BETAS,
    "eps": number(0, 1),
    "weight_decay": number(0, 1e3),
    "momentum": number(0, 1),
    "dampening": number(0, 1),
    "amsgrad": FLAG,
    "nesterov": FLAG,
    "maximize": FLAG,
    "foreach": FLAG,
    "capturable": FLAG,
    "differentiable": FLAG,
    "fused": FLAG,
    "centered": FLAG,
}
_GROUPS = {
    "param_groups": ListOf(
        Section({"param_str_match": PATTERN, **USUAL}, required=("param_str_match",), is_open=True)
    ),
    "disable_grad": Value(
        "a regular expression of names of parameters, or a list of them",
        lambda v: PATTERN.fits(v) or (isinstance(v, list) and all(map(PATTERN.fits, v))),
    ),
}


def _with(*names: str, **more: Any) -> Section:
    return Section({**{name: USUAL[name] for name in names}, **more, **_GROUPS})


_CLIPPED = {"outlier_threshold": number(0, above=True)}
# Of Composer and llm-foundry; those of torch are asked themselves.
OTHERS = {
    "decoupled_adamw": _with("lr", "betas", "eps", "weight_decay", "amsgrad"),
    "decoupled_lionw": _with("lr", "betas", "weight_decay"),
    "clip_lion": _with("lr", "betas", "weight_decay", **_CLIPPED),
    "adalr_lion": _with(
        "lr",
        "betas",
        "weight_decay",
        timeout=integer(1),
        lr_penalty=number(0, 1),
        min_scale=number(0, 1),
        **_CLIPPED,
    ),
    "no_op": Section(_GROUPS, is_open=True),
}
OPTIMIZER = Named(
    OTHERS | dict.fromkeys(TORCH_OPTIMIZERS, Section({**USUAL, **_GROUPS}, is_open=True))
)

_WHEN = time("ep", "ba", "sp", "tok", "dur")
_UNTIL = time("ep", "ba", "sp", "tok", "dur", least=1, most=1e6)
_FACTOR = number(0, 1e6)
SCHEDULER = Named(
    {
        "constant_with_warmup": Section(
            {"t_warmup": _WHEN, "alpha": _FACTOR, "t_max": _UNTIL, "scale_warmup": FLAG},
            required=("t_warmup",),
        ),
        "cosine_with_warmup": Section(
            {"t_warmup": _WHEN, "t_max": _UNTIL, "alpha_f": _FACTOR, "scale_warmup": FLAG},
            required=("t_warmup",),
        ),
        "linear_decay_with_warmup": Section(
            {
                "t_warmup": _WHEN,
                "t_max": _UNTIL,
                "alpha_i": _FACTOR,
                "alpha_f": _FACTOR,
                "scale_warmup": FLAG,
            },
            required=("t_warmup",),
        ),
        "inv_sqrt_with_warmup": Section(
            {
                "t_warmup": time("ep", "ba", "sp", "tok"),
                "t_scale": time("ep", "ba", "sp", "tok", least=1),
                "t_cooldown": time("ep", "ba", "sp", "tok"),
                "t_max": _UNTIL,
                "alpha_f_decay": _FACTOR,
                "alpha_f_cooldown": _FACTOR,
            },
            required=("t_warmup", "t_scale", "t_cooldown"),
        ),
    }
)


def try_step(section: str, build: Callable[..., torch.optim.Optimizer]) -> None:
    """Let an optimizer of torch take a step, to know that it can, with its options.

    Args:
        section: of the yaml, for the error.
        build: given a list of parameters, gives the optimizer.

    Raises:
        ConfigError: it cannot: an option is unknown or has no such value, or it needs another loop
            than Composer's.
    """
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    try:
        build([parameter]).step()
    except Exception as error:  # torch has many
        what = shown(" ".join(str(error).split())).strip("'\"")
        raise ConfigError(f"{section} cannot take a step: {what}") from None


def check_optimizer(optimizer: Mapping[str, Any]) -> None:
    """Refuse options that an optimizer of torch has not; types are checked before.

    Raises:
        ConfigError: see :func:`try_step`.
    """
    options = {k: v for k, v in optimizer.items() if k not in (*_GROUPS, "name")}
    cls = None if optimizer["name"] in OTHERS else TORCH_OPTIMIZERS[optimizer["name"]]
    if cls is None:
        return
    try_step("optimizer", lambda parameters: cls(parameters, **options))


def check_schedule(
    where: str, scheduler: Mapping[str, Any], max_duration: Any, epoch: int | None
) -> None:
    """Refuse times that cannot be compared with the duration of training, or end before it.

    Args:
        where: section of the yaml, for the error.
        scheduler: its options; types are checked before.
        max_duration: what it is a part of.
        epoch: batches in an epoch, if known.

    Raises:
        ConfigError: a time is of another unit, or ``t_max`` is before the end.
    """
    duration = f"{max_duration}ep" if isinstance(max_duration, int) else str(max_duration)
    end, unit = _in_batches(duration, duration, epoch)
    last, of_last = _in_batches(scheduler.get("t_max", "1dur"), duration, epoch)
    if of_last == unit and last < end:
        raise ConfigError(
            f"{where}.t_max is {scheduler['t_max']}, before the end of training at {duration}: set "
            f"it to {duration} or more, or leave it out"
        )
    for key in ("t_warmup", "t_scale", "t_cooldown"):
        if key not in scheduler:
            continue
        if scheduler["name"] == "inv_sqrt_with_warmup":
            of_this = scheduler[key].lower().lstrip("0123456789")
            fits = of_this == duration.lower().lstrip("0123456789")
        else:
            fits = _in_batches(scheduler[key], duration, epoch)[1] == of_last
        if not fits:
            raise ConfigError(
                f"{where}.{key} is {scheduler[key]}, of another unit than "
                f"{scheduler.get('t_max', duration)}: write it in the unit of max_duration"
            )
    if scheduler.get("alpha_f_decay", 0) < scheduler.get("alpha_f_cooldown", 0):
        raise ConfigError(
            f"{where}.alpha_f_decay is below alpha_f_cooldown: set it to that or more"
        )


def _in_batches(text: str, duration: str, epoch: int | None) -> tuple[float, str]:
    """A time as Composer compares it: epochs are so many batches."""
    text = text.lower()
    unit = text.lstrip("0123456789.")
    value = float(text.removesuffix(unit))
    if unit == "dur":
        of_all, unit = _in_batches(duration, duration, epoch)
        return value * of_all, unit
    if unit == "ep":
        return value * (nan if epoch is None else epoch), "ba"
    return value, unit
