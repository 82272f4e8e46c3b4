"""How the head turns noise into tokens: steps of ancestral sampling, DDIM or DPM-Solver++."""

import copy
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lightgen.models.diffusion import TRAIN_STEPS, Spacing, respaced_chain
from lightgen.models.head import Head, Prediction

# Shapes: R rows (tokens), d token channels, S head steps.

Solver = Literal["ancestral", "ddim", "dpm++"]


@dataclass(frozen=True)
class Steps:
    """Head steps from noise to clean, resident on a device.

    Attributes:
        times: what the head is told, [S] in [0, 1000].
        coefficients: float32 [S, n], what a step of the solver multiplies with.
        num_precise: the first steps, in which an error of the head is multiplied so much that they run in
            fp32 whatever the weights are.
    """

    times: torch.Tensor
    coefficients: torch.Tensor
    num_precise: int

    def __len__(self) -> int:
        """S."""
        return len(self.coefficients)


def make_steps(
    prediction: Prediction, solver: Solver, num_steps: int, spacing: Spacing, device: torch.device
) -> Steps:
    """Head steps from noise to clean.

    Args:
        prediction: of the head.
        solver: `ancestral` for ddpm heads alone.
        num_steps: S.
        spacing: of a ddpm head's steps, see `respaced_chain`; those of a flow are even.
        device: where they are used.
    """
    if prediction != "ddpm":
        assert solver != "ancestral", solver
        edges = 1 - np.arange(num_steps + 1) / num_steps
        times, signal, noise = TRAIN_STEPS * edges[:-1], 1 - edges, edges
    else:
        chain = respaced_chain(num_steps, spacing)
        bars = np.append(chain.alpha_bars[::-1], 1.0)
        times, signal, noise = chain.steps[::-1], np.sqrt(bars), np.sqrt(1 - bars)
        if solver == "ancestral":
            columns = [np.sqrt(1 / bars[:-1]), np.sqrt(1 / bars[:-1] - 1)]
            columns += [each[::-1] for each in (*chain.posterior, *chain.log_variances)]
            return _resident(times, np.stack(columns, axis=1), device)
    clean_of, noise_of = _conversions(prediction, signal[:-1], noise[:-1])
    update = _second_order(signal, noise) if solver == "dpm++" else _first_order(signal, noise)
    return _resident(times, np.concatenate([clean_of, noise_of, update], axis=1), device)


def _resident(times: np.ndarray, table: np.ndarray, device: torch.device) -> Steps:
    # the weight of the noisy token in the clean one: by it an error of the head grows in the first step
    num_precise = 1 if table[0, 0] > 10 else 0
    at, rows = (torch.tensor(each.copy(), dtype=torch.float32).to(device) for each in (times, table))
    return Steps(at, rows, num_precise)


def _conversions(
    prediction: Prediction, signal: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [S, 2] of (noisy token, output) in the clean token and in the noise."""
    one = np.ones_like(signal)
    if prediction == "flow_x":
        # no time is 0, and a step divides by no more than it then multiplies with: nothing is cut off
        return np.stack([0 * one, one], axis=1), np.stack([1 / noise, -signal / noise], axis=1)
    if prediction == "flow":
        return np.stack([one, -noise], axis=1), np.stack([one, signal], axis=1)
    return np.stack([1 / signal, -noise / signal], axis=1), np.stack([0 * one, one], axis=1)


def _first_order(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Weights [S, 4] of (clean token, noise, noisy token, clean token before).

    Source: DDIM, arXiv 2010.02502, eq. 12 with no added noise; on a flow's straight path, Euler's step.
    """
    zero = np.zeros(len(signal) - 1)
    return np.stack([signal[1:], noise[1:], zero, zero], axis=1)


def _second_order(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Weights as of `_first_order`, of which first and last step keep to it.

    The clean token is extrapolated no further than between equal steps: steps of equal times grow many times
    as long towards the clean end, where a handful of them would otherwise overshoot and lose to DDIM.
    Source: DPM-Solver++(2M), arXiv 2211.01095, algorithm 2, data prediction.
    """
    weights = _first_order(signal, noise)
    with np.errstate(divide="ignore"):
        log_ratio = np.log(signal) - np.log(noise)
    for i in range(1, len(weights) - 1):
        step, before = log_ratio[i + 1] - log_ratio[i], log_ratio[i] - log_ratio[i - 1]
        ahead = min(0.5, step / (2 * before))  # 0 after a step from pure noise: its log ratio is infinite
        gain = -signal[i + 1] * math.expm1(-step)
        weights[i] = (gain * (1 + ahead), 0.0, noise[i + 1] / noise[i], -gain * ahead)
    return weights


class HeadSampler:
    """The head's loop, with all that tokens share made once: steps, time embeddings, and an fp32 copy.

    Source: guidance, arXiv 2207.12598, eq. 6, on the head's prediction and never on its variance, both
    halves from one noisy token; guidance interval, arXiv 2404.07724, eq. 5.

    Args:
        head: in eval mode.
        prediction: of the head.
        solver: of its steps.
        spacing: of its steps.
        interval: share of the noise in which guidance acts, 0 = clean, 1 = pure noise.
    """

    def __init__(
        self,
        head: Head,
        prediction: Prediction,
        solver: Solver,
        spacing: Spacing,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self._head, self._precise = head, head
        self._prediction: Prediction = prediction
        self._solver: Solver = solver
        self._spacing: Spacing = spacing
        self._interval = interval
        self._made: dict[int, tuple[Steps, torch.Tensor, torch.Tensor]] = {}

    def __call__(
        self,
        cond: torch.Tensor,
        start: torch.Tensor,
        scale: float | torch.Tensor,
        num_steps: int,
        noises: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens [R, d] reached from noise, in fp32 or wider.

        Args:
            cond: [R, D], or [2R, D] with the rows without text last, unless scale is the number 1.
            start: noise [R, d].
            scale: weight of the text, one number or, for each token, [R, 1].
            num_steps: S.
            noises: [S, R, d] for the ancestral solver, added when leaving step 0 (the cleanest; unused), 1...
        """
        steps, times, precise_times = self._steps(num_steps, start.device)
        x = start.to(torch.promote_types(start.dtype, torch.float32))
        coefficients = steps.coefficients.to(x.dtype)
        embedded = self._head.embed_cond(cond)
        # the last layers' rounding would be multiplied by hundreds in the first step of a ddpm chain
        precise = embedded
        if self._precise is not self._head:
            precise = self._precise.embed_cond(cond.float())
        clean, last = x, len(steps) - 1
        is_weighed = isinstance(scale, torch.Tensor) or scale != 1
        for i in range(len(steps)):
            head, time, rows = self._head, times, embedded
            if i < steps.num_precise:
                head, time, rows = self._precise, precise_times, precise
            guided = is_weighed and self._interval[0] <= 1 - i / len(steps) <= self._interval[1]
            hidden = head.hidden(x, time[i : i + 1], rows if guided else rows[: len(x)])
            output = head.token_out(hidden).to(x.dtype)
            if guided:
                with_text, without = output.chunk(2)
                output = without + scale * (with_text - without)
            row = coefficients[i]
            if self._solver == "ancestral":
                assert head.variance_out is not None and noises is not None
                variance = head.variance_out(hidden[: len(x)]).to(x.dtype)
                x = _ancestral(x, output, variance, row, noises[last - i] if i < last else None)
            else:
                before, clean = clean, row[0] * x + row[1] * output
                noise = row[2] * x + row[3] * output
                x = row[4] * clean + row[5] * noise + row[6] * x + row[7] * before
        return x

    def _steps(self, num_steps: int, device: torch.device) -> tuple[Steps, torch.Tensor, torch.Tensor]:
        """Steps with the embeddings of their times by the head and by its precise copy."""
        if num_steps not in self._made:
            steps = make_steps(self._prediction, self._solver, num_steps, self._spacing, device)
            if steps.num_precise and self._precise is self._head and _is_narrow(self._head):
                self._precise = copy.deepcopy(self._head).float()
            embed = self._head.embed_time, self._precise.embed_time
            self._made[num_steps] = (steps, embed[0](steps.times), embed[1](steps.times))
        return self._made[num_steps]


def _is_narrow(head: Head) -> bool:
    return head.token_in.weight.dtype.itemsize < 4


def _ancestral(
    x: torch.Tensor,
    noise: torch.Tensor,
    variance: torch.Tensor,
    row: torch.Tensor,
    added: torch.Tensor | None,
) -> torch.Tensor:
    """One step of ancestral sampling with learned variance. Source: arXiv 2102.09672, eqs. 12 and 15."""
    clean = row[0] * x - row[1] * noise
    mean = row[2] * clean + row[3] * x
    if added is None:
        return mean
    log_variance = row[4] + (variance + 1) / 2 * (row[5] - row[4])
    return mean + torch.exp(0.5 * log_variance) * added.to(x.dtype)
