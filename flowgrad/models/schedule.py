"""Noise schedules as velocity fields: Euler's N steps on the field are the N steps of the model's own sampler.

A state on the way is z = k ((1 - s) x1 + s e), with clean data x1, noise e and the noise's share s in [0, 1]. Along
the probability flow dz/ds = k (e - x1) with the network's present estimates of the two, so that an Euler step in s
from s_k to s_{k+1} gives k ((1 - s_{k+1}) x1 + s_{k+1} e). This is a step of the flow-matching Euler sampler, and it
is a step of DDIM (Song et al., ICLR 2021) too, whose states a x1 + b e are these, divided by a + b, with
s = b / (a + b). The clock t in [0, 1] is made so that s and the network's own time are piecewise linear through the
sampler's steps, at t = k / N: on that grid, Euler agrees with the sampler exactly, not only to first order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from flowgrad.errors import FlowgradError, UsageError, reason
from flowgrad.models.diffusers_folder import read_json
from flowgrad.models.parts import Network

SCHEDULER = "scheduler_config.json"
TRAIN_TIMESTEPS = 1000
PREDICTIONS = ("flow", "epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Schedule:
    """The network's times and shares of noise, (N + 1,) each, at t = k / N; in float64 where the device has it.

    Raises UsageError unless they have one length, above 1, and the shares decrease.
    """

    times: Tensor
    shares: Tensor

    def __post_init__(self) -> None:
        if self.times.shape != self.shares.shape or len(self.shares) < 2 or bool((self.shares.diff() >= 0).any()):
            raise UsageError("a schedule needs as many times as shares of noise, and shares that decrease")

    def to(self, device: torch.device) -> "Schedule":
        """The same on a device."""
        if self.times.device == device:
            return self
        dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        return Schedule(self.times.to(device, dtype), self.shares.to(device, dtype))

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For t () or (B,): the network's time, the share s, and ds/dt to the right of t (to the left at 1)."""
        steps = len(self.times) - 1
        position = t.to(self.shares) * steps
        nearest = position.round()
        position = torch.where((position - nearest).abs() < 1e-4, nearest, position)  # k/N in float32 is k/N
        k = position.long().clamp(0, steps - 1)
        slope = (self.shares[k + 1] - self.shares[k]) * steps
        within = position - k
        return torch.lerp(self.times[k], self.times[k + 1], within), self.shares[k] + slope * within / steps, slope


def ddim_schedule(alphas: Tensor, timesteps: Sequence[int], final: float) -> Schedule:
    """DDIM's steps: cumulative alphas (T,), the N decreasing timesteps it uses, and the alpha that it ends at."""
    chosen = torch.cat([alphas.double()[list(timesteps)], torch.tensor([final], dtype=torch.float64)])
    signal, noise = chosen.sqrt(), (1 - chosen).sqrt()
    return Schedule(torch.tensor([*timesteps, 0], dtype=torch.float64), noise / (signal + noise))


def load_scheduler(folder: Path) -> Any:
    """A flow-matching Euler scheduler, or DDIM with the betas of whichever diffusion scheduler the folder has.

    Raises FlowgradError for another kind, or if there is none.
    """
    path = next((path for path in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER) if path.is_file()), None)
    if path is None:
        raise FlowgradError(f"{folder} has no scheduler/{SCHEDULER}: save the model with its scheduler")
    settings = read_json(path)
    if settings.get("_class_name") == FlowMatchEulerDiscreteScheduler.__name__:
        return FlowMatchEulerDiscreteScheduler.from_config(settings)
    if "beta_schedule" in settings or "beta_start" in settings:
        return DDIMScheduler.from_config(settings)
    kind = settings.get("_class_name")
    raise FlowgradError(f"{path} is a {kind}: only flow-matching Euler and relatives of DDPM can be read")


def to_schedule(scheduler: Any, steps: int, tokens: int | None = None, even: bool = False) -> tuple[Schedule, str]:
    """The steps of a diffusers scheduler, and what the network predicts (one of PREDICTIONS).

    tokens: of an image, which a flow-matching scheduler may shift its steps by. even: such a scheduler is given even
    steps to shift, as FLUX's pipeline does. Clipping and thresholding of a diffusion scheduler are left out: they are
    no part of the ODE. A last step that would do nothing (`set_alpha_to_one: false` without `steps_offset`) goes to
    clean data instead. Raises FlowgradError for steps that the scheduler cannot give.
    """
    try:
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            return _flow_schedule(scheduler, steps, tokens, even), "flow"
        scheduler.set_timesteps(steps)
        timesteps, final = scheduler.timesteps.tolist(), float(scheduler.final_alpha_cumprod)
        if final <= float(scheduler.alphas_cumprod[timesteps[-1]]):
            final = 1.0
        return ddim_schedule(scheduler.alphas_cumprod, timesteps, final), str(scheduler.config["prediction_type"])
    except (ValueError, IndexError, UsageError) as error:
        problem = f"the scheduler does not give {steps} steps ({reason(error)})"
        raise FlowgradError(f"{problem}: change `steps`, or its {SCHEDULER}") from error


def _flow_schedule(scheduler: Any, steps: int, tokens: int | None, even: bool) -> Schedule:
    settings, mu = scheduler.config, None
    if settings.use_dynamic_shifting and tokens is not None:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        ends = settings.base_image_seq_len, settings.max_image_seq_len, settings.base_shift, settings.max_shift
        mu = calculate_shift(tokens, *ends)
    shares = [1 - k / steps for k in range(steps)] if even and not settings.get("use_flow_sigmas") else None
    scheduler.set_timesteps(steps, sigmas=shares, mu=mu)
    times = torch.cat([scheduler.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
    return Schedule(times, scheduler.sigmas.double())


def rectified(network: Network, steps: int) -> tuple[Network, Schedule, str]:
    """A network that returns data minus noise at its time 1000 (1 - t), as Rectified Flow's authors train them.

    Turned to noise minus data, as schedules have it; even steps; and the name of that prediction.
    """
    shares = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return lambda x, time, t: -network(x, time, t), Schedule(TRAIN_TIMESTEPS * shares, shares), "flow"


def variance_preserving(share: Tensor) -> Tensor:
    """a + b where a^2 + b^2 = 1 and b / (a + b) is the share."""
    return 1 / (share.square() + (1 - share).square()).sqrt()


class ScheduledVelocity(nn.Module):
    """v(x, t) of a network that follows a schedule: x (B, *D), t () or (B,) in [0, 1].

    prediction: what the network returns, "flow" (noise minus data), or of a variance-preserving diffusion "epsilon"
    (noise), "v_prediction" (a noise - b data) or "sample" (data). A state at t = 0 is what the sampler starts from;
    at t = 1 it is what the sampler returns, times `gain`. A prediction of the data says nothing of noise where there
    is none: from the middle of the last step on, that network is asked as if it were there.
    Raises UsageError for another prediction, or one that cannot begin where the schedule does.
    """

    def __init__(self, network: Network, schedule: Schedule, prediction: str, dtype: torch.dtype) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise UsageError(f"a network must predict one of {', '.join(PREDICTIONS)}; got {prediction!r}")
        if prediction == "epsilon" and float(schedule.shares[0]) >= 1:
            raise UsageError(
                "a network that predicts noise (epsilon) says nothing of data where there is no signal: its scheduler "
                "must not begin at pure noise (rescale_betas_zero_snr)"
            )
        self.network, self.schedule, self.prediction, self.dtype = network, schedule, prediction, dtype
        self.scale = float(variance_preserving(schedule.shares[0])) if prediction != "flow" else 1.0
        self.gain = self.scale / float(variance_preserving(schedule.shares[-1])) if prediction != "flow" else 1.0
        self.latest = 1 - 0.5 / (len(schedule.shares) - 1) if prediction == "sample" else 1.0

    @property
    def conditions(self) -> str:
        """What the field depends on beside the network, for its fingerprint."""
        rows = zip(self.schedule.times.tolist(), self.schedule.shares.tolist(), strict=True)
        return f"{self.prediction} {' '.join(f'{time:.3f}/{share:.6f}' for time, share in rows)}"

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.schedule = self.schedule.to(x.device)  # once: a copy in every evaluation would make a GPU wait
        t = t.to(x.device).expand(len(x))
        time, share, slope = self.schedule.at(t.clamp(max=self.latest))
        share, slope = (value.to(x).view(-1, *[1] * (x.ndim - 1)) for value in (share, slope))
        if self.prediction == "flow":
            return slope * self._output(x, time, t)
        total = variance_preserving(share)
        signal, noise = (1 - share) * total, share * total
        state = x * (total / self.scale)
        out = self._output(state, time, t)
        return slope * self.scale * self._direction(out, state, signal, noise)

    def _output(self, state: Tensor, time: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(state.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            out = self.network(state, time.to(torch.float32), t)
        return out.to(state)

    def _direction(self, out: Tensor, state: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """The estimated noise minus the estimated data, from state = signal * data + noise-level * noise."""
        if self.prediction == "epsilon":
            return ((signal + noise) * out - state) / signal
        if self.prediction == "v_prediction":
            return (noise - signal) * state + (signal + noise) * out
        return (state - (signal + noise) * out) / noise
