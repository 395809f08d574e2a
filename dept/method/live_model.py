"""The one model in memory, whose parameters and optimizer state are swapped between sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dept.method.variants import Role

# Learned positions go by these names in MPT and GPT-2 (wpe), OPT (embed_positions) and others.
POSITION_NAMES = re.compile(r"(^|[._])(wpe|pos|position|positions)([._]|$)")


def transformer_of(model: nn.Module) -> nn.Module:
    """The transformers (or MPT) model inside a ComposerModel, which names its embeddings."""
    return getattr(model, "model", model)


def named_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters with their names in checkpoints, the same with and without activation
    checkpointing."""
    found = model.named_parameters()
    return [(name.replace("_checkpoint_wrapped_module.", ""), value) for name, value in found]


def vocabulary_modules(model: nn.Module) -> list[nn.Module]:
    """The modules with one row per token: the embedding, and the head if it is not tied.

    Raises:
        ValueError: the model does not name its input embedding.
    """
    transformer = transformer_of(model)
    embedding = transformer.get_input_embeddings()
    if embedding is None:
        raise ValueError(f"{type(transformer).__name__}.get_input_embeddings() names no embedding")
    head = transformer.get_output_embeddings()
    return [embedding] if head is None or head is embedding else [embedding, head]


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """The role of each parameter of the model, by name: body theta, phi or psi.

    Raises:
        ValueError: the model holds an embedding that is neither of tokens nor of positions.
    """
    by_token = {
        id(parameter)
        for module in vocabulary_modules(model)
        for parameter in module.parameters(recurse=False)
    }
    by_position = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and id(module.weight) not in by_token:
            if not POSITION_NAMES.search(name):
                raise ValueError(f"{name} is an embedding of neither tokens nor positions")
            by_position.add(id(module.weight))
    return {
        name: Role.TOKENS
        if id(parameter) in by_token
        else Role.POSITIONS
        if id(parameter) in by_position
        else Role.BODY
        for name, parameter in named_parameters(model)
    }


class LiveModel:
    """The one model in memory, which holds the parameters of one source after another.

    Args:
        model: the model the trainer holds.
        optimizer: its inner optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.roles = parameter_roles(model)
        # A tied matrix is one parameter that several modules hold; a swap must update all of them.
        self._holders: dict[str, list[tuple[nn.Module, str]]] = {}
        by_id = {id(parameter): name for name, parameter in named_parameters(model)}
        for module in model.modules():
            own = module.named_parameters(recurse=False, remove_duplicate=False)
            for attribute, parameter in own:
                self._holders.setdefault(by_id[id(parameter)], []).append((module, attribute))

        model.register_load_state_dict_pre_hook(self._refuse_other_rows)

    def _refuse_other_rows(self, _: nn.Module, state: Mapping[str, Any], *__: Any) -> None:
        for name in self.names(Role.TOKENS):
            here, there = self.parameter(name).shape, state[name].shape if name in state else None
            if there is not None and here != there:
                raise ValueError(
                    f"{name} has {there[0]} rows in the checkpoint and {here[0]} in this run: it "
                    f"is of another variant, model or tokenizer; load one of the same"
                )

    def wrapped(self, current: nn.Module, ranks: int) -> nn.Module:
        """Wrap the model in DDP, so that the ranks of a worker average their gradients.

        Each call makes a new wrapper, since DDP keeps the parameters that it was built with.

        Args:
            current: the module that the trainer has called so far.
            ranks: how many ranks train the model together; with one there is no wrapper.
        """
        if isinstance(current, DistributedDataParallel):
            current._remove_autograd_hooks()
        return DistributedDataParallel(self.model) if ranks > 1 else self.model

    def drop_gradients(self) -> None:
        """Free the gradients of the last step; the next one makes its own."""
        for parameter in self.model.parameters():
            parameter.grad = None

    def average_gradients(self) -> None:
        """After the backward pass: nothing is left to do here, see ``ShardedModel``."""

    def names(self, *roles: Role) -> list[str]:
        """Names of the parameters of these roles, in the order of the model."""
        return [name for name, role in self.roles.items() if role in roles]

    def parameter(self, name: str) -> nn.Parameter:
        """The current parameter of that name."""
        module, attribute = self._holders[name][0]
        return getattr(module, attribute)

    def values(self) -> dict[str, Tensor]:
        """The tensor of every parameter, not copied: the next ``load`` may write into it."""
        return {name: self.parameter(name).detach() for name in self.roles}

    def load(
        self,
        values: Mapping[str, Tensor],
        states: Mapping[str, dict[str, Any]],
        *,
        copy_states: bool = False,
    ) -> None:
        """Load the parameters and the optimizer state of another source.

        Args:
            values: tensors by name, for any of the parameters; they are copied. Token matrices may
                have another number of rows than the ones they replace.
            states: optimizer state by name; it is moved. A parameter of ``values`` without an entry
                starts with an empty state.
            copy_states: copy ``states`` instead, so that training does not change the argument.
        """
        for name, value in values.items():
            parameter = self.parameter(name)
            self.optimizer.state.pop(parameter, None)
            if parameter.shape == value.shape:
                self._copy(parameter, value)
            else:
                parameter = self._replace(name, parameter, value)
            if name in states:
                counts = parameter.device if self._counts_on_device(parameter) else None
                self.optimizer.state[parameter] = {
                    key: self._state_like(parameter, entry, counts, copy=copy_states)
                    if isinstance(entry, Tensor)
                    else entry
                    for key, entry in states[name].items()
                }
        self._update_vocabulary_size()

    def _copy(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.data.copy_(value, non_blocking=True)

    def _state_like(
        self, parameter: nn.Parameter, entry: Tensor, counts: torch.device | None, *, copy: bool
    ) -> Tensor:
        device = parameter.device if entry.dim() else counts or entry.device
        return entry.to(device, non_blocking=True, copy=copy)

    def _counts_on_device(self, parameter: nn.Parameter) -> bool:
        """Whether the optimizer needs step counts on the device of the parameter, as torch's do
        that are fused or capturable; others also count on the CPU, where that costs no wait."""
        for group in self.optimizer.param_groups:
            if any(each is parameter for each in group["params"]):
                return bool(group.get("fused") or group.get("capturable"))
        return False

    def states(self) -> dict[str, dict[str, Any]]:
        """The optimizer's state by parameter name, not copied."""
        found = {name: self.optimizer.state.get(self.parameter(name)) for name in self.roles}
        return {name: state for name, state in found.items() if state}

    def take_states(self) -> dict[str, dict[str, Any]]:
        """Remove and return the optimizer's state by parameter name; it is then as newly built."""
        states = {}
        for name in self.roles:
            state = self.optimizer.state.pop(self.parameter(name), None)
            if state:
                states[name] = state
        return states

    def _replace(self, name: str, old: nn.Parameter, value: Tensor) -> nn.Parameter:
        # It must be a new Parameter, since autograd keeps the shape of the old one. It takes the
        # same place in its group, since sums over parameters (gradient norms) depend on the order.
        new = nn.Parameter(value.detach().to(old.device, old.dtype, non_blocking=True, copy=True))
        new.requires_grad_(old.requires_grad)
        for module, attribute in self._holders[name]:
            setattr(module, attribute, new)
        self._exchange(old, new)
        return new

    def _exchange(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """Put a parameter in the place of another one in the optimizer."""
        for group in self.optimizer.param_groups:
            group["params"] = [
                new if parameter is old else parameter for parameter in group["params"]
            ]

    def _update_vocabulary_size(self) -> None:
        """Update attributes derived from the number of rows, which losses and exports read."""
        for module in vocabulary_modules(self.model):
            rows = module.weight.shape[0]
            if isinstance(module, nn.Embedding):
                module.num_embeddings = rows
                module.padding_idx = None  # it is of another vocabulary; samples are never padded
            else:
                module.out_features = rows
        transformer = transformer_of(self.model)
        rows = transformer.get_input_embeddings().weight.shape[0]
        transformer.config.vocab_size = rows
        if hasattr(transformer, "vocab_size"):
            transformer.vocab_size = rows
        for counted in ("n_total_params", "n_active_params"):  # MPT caches them
            vars(self.model).pop(counted, None)


def random_embedding(model: nn.Module, names: list[str], rows: int, seed: int) -> dict[str, Tensor]:
    """Draw a random phi and psi with the initialiser of the model.

    Args:
        model: gives architecture and initialiser; it is not changed.
        names: the parameters to draw: token matrices (``rows`` rows each) or positions.
        rows: ``|V_k|``.
        seed: seed of the stream (:func:`dept.method.streams.seed_of`).

    Returns:
        Tensors by parameter name, on the device of the model.
    """
    transformer = transformer_of(model)
    initialise = getattr(transformer, "param_init_fn", None) or transformer._init_weights
    # llm-foundry initialises the backbone alone: an untied head of MPT keeps torch's own values.
    as_made = transformer.get_output_embeddings() if hasattr(transformer, "param_init_fn") else None
    if as_made is transformer.get_input_embeddings():
        as_made = None
    by_token = vocabulary_modules(model)
    wanted = {id(model.get_parameter(name)): name for name in names}
    result: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            held = {k: p for k, p in module.named_parameters(recurse=False) if id(p) in wanted}
            if not held or all(wanted[id(p)] in result for p in held.values()):
                continue  # not requested, or a second holder of a tied matrix
            is_vocabulary = any(module is other for other in by_token)
            fresh = module_like(module, rows if is_vocabulary else module.weight.shape[0])
            if module is not as_made:
                initialise(fresh)
            for attribute, parameter in held.items():
                value = getattr(fresh, attribute).detach()
                result[wanted[id(parameter)]] = value.to(parameter.device, parameter.dtype)
    return result


def module_like(module: nn.Module, rows: int) -> nn.Module:
    """A module of the same kind with another number of rows, on the CPU, not yet initialised.

    Args:
        module: an embedding, or a head.
        rows: rows of its matrix.
    """
    if isinstance(module, nn.Embedding):
        return type(module)(rows, module.embedding_dim)
    return nn.Linear(module.in_features, rows, bias=module.bias is not None)
