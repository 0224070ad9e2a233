"""DeepSpeed (ZeRO): optimizer states, gradients and parameters split among processes, or kept in the CPU's memory.

It runs in processes of its own (``launch``, ``process``), one engine a process: DeepSpeed changes its environment, and
what it allocates ends with the process. Weights are in the model before DeepSpeed is set up and leave once, whole, so
nothing is ever written into a running engine, which would lose it without a word.

Parameters stay float32, and bfloat16 is torch's autocast, as in the torch engine: DeepSpeed's own bfloat16 would train
a rounded model, whose layers in float32 (batch norm, our losses) it rounds too.
"""

import sys
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.encoders.base import PatchEncoder
from fedpath.core.errors import ConfigError
from fedpath.core.models.protocol import BagModel, BagOutput
from fedpath.core.training.engines.base import EngineSettings, changing, parameter_groups, set_learning_rate
from fedpath.core.training.engines.outputs import rebuilt, shown_as_tensors, tensors_of
from fedpath.core.training.precision import Chosen, forward

_BUCKET = 2**22
"""Elements that are sent at once: 16 MB. Larger buckets are no faster between a few processes and cost memory twice."""
_WHOLE = 100_000
"""Parameters of so many elements are not split at stage 3: gathering them costs more than it saves."""


class DeepSpeedEngine:
    """See ``Engine``. torch.distributed must be set up."""

    def __init__(
        self,
        model: BagModel,
        settings: EngineSettings,
        *,
        weight_decay: float,
        device: torch.device,
        precision: Chosen,
    ) -> None:
        deepspeed = _imported()
        self.rank, self.processes = distributed.get_rank(), distributed.get_world_size()
        self._model, self._stage = model, settings.zero_stage
        groups = parameter_groups(model)
        self._trained = [parameter for group in groups for parameter in group["params"]]
        odd = sorted({str(parameter.dtype) for parameter in self._trained} - {"torch.float32"})
        if odd:
            raise ConfigError(
                f"the DeepSpeed engine trains float32 parameters, not {', '.join(odd)}",
                remedy='set compute.engine = "torch" in site.toml',
            )
        # Which parameters gradients reached: in this backward pass, in their order, and in the whole call.
        self._reached: list[int] = []
        self._ever = torch.zeros(len(self._trained), dtype=torch.int64, device=device)
        for index, parameter in enumerate(self._trained):
            parameter.register_hook(lambda _, index=index: self._reached.append(index))
        self._model_on_device = _OnDevice(model, device, precision)
        with shown_as_tensors(model):
            self._engine, self._optimizer, *_ = deepspeed.initialize(
                model=self._model_on_device,
                optimizer=torch.optim.AdamW(groups, 0.0, weight_decay=weight_decay, fused=True),
                config=configuration(settings, whole_up_to=_whole_up_to(model)),
                dist_init_required=False,
            )

    def forward(self, bag: Bag) -> BagOutput:
        """Return the model's output, in float32."""
        tensors = self._engine(bag)
        output, self._model_on_device.output = self._model_on_device.output, None
        assert output is not None
        return rebuilt(output, tensors)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar; DeepSpeed takes the mean over the processes."""
        self._reached.clear()
        self._engine.backward(loss * self.processes)
        self._ever[self._reached] = 1

    def losses(self, loss: Tensor) -> list[float]:
        """Return what each process passed, by rank.

        Raises:
            ConfigError: the bags' gradients reached different parameters, where DeepSpeed would mix them up.
        """
        if self.processes == 1:
            return [loss.item()]
        order = hash(tuple(self._reached))
        mine = torch.tensor([loss.item()], dtype=torch.float64).view(torch.int64)
        told_2 = torch.cat([mine, torch.tensor([order])]).to(self._ever.device)
        told_P2 = [torch.empty_like(told_2) for _ in range(self.processes)]
        distributed.all_gather(told_P2, told_2)
        if self._stage >= 2 and len({int(told[1]) for told in told_P2}) > 1:
            raise ConfigError(
                f"DeepSpeed's stage {self._stage} needs bags that train the same parameters, and they differ",
                remedy='set compute.deepspeed.zero_stage = 1, or compute.engine = "torch"',
            )
        return [told[:1].cpu().view(torch.float64).item() for told in told_P2]

    def step(self, learning_rate: float) -> None:
        """Step the weights, and forget the gradients."""
        if self.processes > 1 and self._stage == 1:
            # Each process must send the gradients of the same parameters.
            for parameter in self._trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        set_learning_rate(self._optimizer.param_groups, learning_rate)
        self._engine.step()

    def state(self) -> dict[str, Tensor]:
        """Return what training changed, whole, in float32, on the CPU.

        Parameters that no gradient ever reached are left out: DeepSpeed steps all at once, and weight decay has shrunk
        them. Buffers are the mean of the processes'.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        if self.processes > 1:
            distributed.all_reduce(self._ever, distributed.ReduceOp.MAX)
        reached = {id(self._trained[index]) for index in self._ever.nonzero().flatten().tolist()}
        parameters = dict(self._model.named_parameters())
        state = {}
        for name, tensor in changing(self._model).items():
            if name not in parameters:
                state[name] = self._mean(tensor)
            elif id(parameters[name]) in reached:
                # A collective at stage 3. None where DeepSpeed keeps no copy of its own: at stage 0.
                master = safe_get_full_fp32_param(parameters[name])
                state[name] = (parameters[name].detach() if master is None else master).cpu()
        return state

    def _mean(self, buffer: Tensor) -> Tensor:
        if self.processes > 1 and buffer.is_floating_point():
            buffer = buffer.clone()
            distributed.all_reduce(buffer)
            buffer /= self.processes
        return buffer.cpu()


def configuration(settings: EngineSettings, *, whole_up_to: int) -> dict[str, Any]:
    """Return DeepSpeed's own configuration.

    Args:
        settings: of the engine.
        whole_up_to: parameters of so many elements are not split at stage 3.
    """
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": _BUCKET,
        "allgather_bucket_size": _BUCKET,
        "overlap_comm": False,
        "stage3_prefetch_bucket_size": _BUCKET,
        "stage3_max_live_parameters": 8 * _BUCKET,
        "stage3_param_persistence_threshold": whole_up_to,
    }
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        # The loop decides what a step is: the last one of an epoch may have fewer bags.
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,  # by default DeepSpeed clips at 1
        "zero_optimization": zero,
        # torch's fused AdamW, which is as fast as DeepSpeed's and needs no compiler.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _whole_up_to(model: BagModel) -> int:
    """Return the largest parameter outside of the layers of an encoder.

    Bag heads read their layers' weights in functions of their own, where DeepSpeed gathers nothing in a backward pass.
    """
    in_layers = {
        id(parameter)
        for encoder in model.modules()
        if isinstance(encoder, PatchEncoder)
        for layer in encoder.children()
        for parameter in layer.parameters()
    }
    return max(_WHOLE, *(parameter.numel() for parameter in model.parameters() if id(parameter) not in in_layers), 0)


class _OnDevice(nn.Module):
    """The model as DeepSpeed wants it: tensors come out of it, not a model's output. Autocast is inside."""

    def __init__(self, model: BagModel, device: torch.device, precision: Chosen) -> None:
        super().__init__()
        self.model = model
        self._device, self._precision = device, precision
        self.output: BagOutput | None = None
        """What the last call's tensors come from; whoever takes it takes it away."""

    def forward(self, bag: Bag) -> tuple[Tensor, ...]:
        self.output = forward(self.model, bag, device=self._device, precision=self._precision)
        return tensors_of(self.output)


def _imported() -> Any:
    """Import DeepSpeed with what it would compile switched off."""
    # Its search for settings, which nobody here starts, would import this where it is installed: for a second.
    sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]
    import deepspeed
    import deepspeed.ops

    # Semi-private: a faster exchange between processes on a CPU, which takes a compiler and a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
