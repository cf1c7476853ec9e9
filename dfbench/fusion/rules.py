"""MoA-DF and its kin: the rules by which several agents' probabilities become one decision.

The paper's rule, `mean_prob` (arXiv:2506.03007, section on MoA-DF): the mean over the agents of the softmaxed pair,
decision by the larger one; a tie is B, as in upstream's `logit_calculation.py`. That script took the 4th and 5th
column of every file, which are log-probabilities in the Qwen file and probabilities in the two others; here columns go
by their names.

A rule is one class, registered here: `logit_calculation.py --fusion` and its help follow. This module is quick to
import; what fitting needs is imported where something is fitted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dfbench.errors import InputError
from dfbench.predictions.probabilities import log_odds, predicts_fake, sigmoid

if TYPE_CHECKING:
    from dfbench.predictions.join import Predictions


@dataclass(frozen=True)
class AgentOutputs:
    """What K agents say about N images.

    prob: (N, K, 2) float64 probabilities of A and B. log_odds: (N, K) log(P(B) / P(A)), all finite.
    """

    prob: np.ndarray
    log_odds: np.ndarray

    def take(self, rows: np.ndarray) -> "AgentOutputs":
        return AgentOutputs(self.prob[rows], self.log_odds[rows])


def agent_outputs(predictions: "Predictions") -> AgentOutputs:
    """An agent's log-odds are the difference of its logits, or those of its probabilities where it has none.

    A probability of exactly 0 only says that the file's digits end; it counts as half the smallest one above 0.
    """
    prob, logits = (array.astype(np.float64) for array in (predictions.prob, predictions.logits))
    floor = np.where(prob > 0, prob, np.inf).min(axis=(0, 2)) / 2
    of_logits = logits[..., 1] - logits[..., 0]
    of_prob = log_odds(prob, floor=floor[:, None])
    return AgentOutputs(prob, np.where(np.isnan(of_logits), of_prob, of_logits))


@dataclass(frozen=True)
class FusionRule:
    """One way to fuse: a frozen dataclass whose fields are its parameters, `float` or (one for each agent) `list`.

    Its docstring stands in the help. name: of `--fusion` and of the metadata JSON. A rule with `is_fitted` has
    parameters, and `fit` to find them.
    """

    name: ClassVar[str]
    is_fitted: ClassVar[bool] = False

    def apply(self, agents: AgentOutputs) -> np.ndarray:
        """(N, 2) fused probabilities of A and B."""
        raise NotImplementedError

    @classmethod
    def fit(cls, agents: AgentOutputs, is_fake: np.ndarray) -> "FusionRule":
        """The rule that makes the labels most likely. is_fake: (N,) bool, both classes in it.

        No class is weighted: probabilities come out calibrated to the share of real images among those given.
        """
        raise NotImplementedError

    def parameters(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self)

    @classmethod
    def from_parameters(cls, parameters: Any, num_agents: int) -> "FusionRule":
        """The reverse of `parameters`. Raises ValueError or TypeError unless they are finite and as many as agents."""
        shapes = {field.name: () if field.type is float else (num_agents,) for field in fields(cls)}
        if not isinstance(parameters, dict) or parameters.keys() != shapes.keys():
            raise ValueError(f"the parameters are not {', '.join(shapes)}")
        for name, shape in shapes.items():
            value = np.array(parameters[name], np.float64)
            if value.shape != shape or not np.isfinite(value).all():
                raise ValueError(f"{name} is not finite numbers of shape {shape}")
        return cls(**parameters)


RULES: dict[str, type[FusionRule]] = {}
"""All rules by name, in the order of the help."""


def register(rule: type[FusionRule]) -> type[FusionRule]:
    """Make a rule known to `--fusion`. Raises ValueError where its name is taken."""
    if rule.name in RULES:
        raise ValueError(f"the fusion rule {rule.name} is registered already")
    RULES[rule.name] = rule
    return rule


@register
class MeanProb(FusionRule):
    """The mean of the probabilities, the paper's rule."""

    name = "mean_prob"

    def apply(self, agents: AgentOutputs) -> np.ndarray:
        return agents.prob.mean(axis=1)


@register
class MeanLogit(FusionRule):
    """The mean of the log-odds."""

    name = "mean_logit"

    def apply(self, agents: AgentOutputs) -> np.ndarray:
        return _pair(agents.log_odds.mean(axis=1))


@register
class Vote(FusionRule):
    """The share of the agents that answer so."""

    name = "vote"

    def apply(self, agents: AgentOutputs) -> np.ndarray:
        share_fake = predicts_fake(agents.prob).mean(axis=1)
        return np.stack([1 - share_fake, share_fake], axis=1)


@register
@dataclass(frozen=True)
class Weighted(FusionRule):
    """The mean of the probabilities under given or fitted weights."""

    weights: list[float]

    name = "weighted"
    is_fitted = True

    def apply(self, agents: AgentOutputs) -> np.ndarray:
        return np.einsum("k,nkl->nl", self.weights, agents.prob)

    @classmethod
    def given(cls, weights: Sequence[float], num_agents: int) -> "Weighted":
        """With these weights, scaled to sum to 1.

        Raises InputError unless there is one for each agent, none negative and not all 0.
        """
        values = np.asarray(weights, np.float64)
        if len(values) != num_agents or not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
            raise InputError(
                f"--weights are {' '.join(f'{value:g}' for value in weights)}; expected {num_agents} numbers of at "
                f"least 0, not all 0, one for each CSV. Correct them."
            )
        return cls((values / values.sum()).tolist())

    @classmethod
    def fit(cls, agents: AgentOutputs, is_fake: np.ndarray) -> "Weighted":
        """A concave problem."""
        from scipy.optimize import minimize

        prob_label = np.where(is_fake[:, None], agents.prob[:, :, 1], agents.prob[:, :, 0])
        floor = 1e-12  # every agent may be certain and wrong

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            mixed = prob_label @ weights + floor
            return -np.log(mixed).mean(), -(prob_label / mixed[:, None]).mean(axis=0)

        num_agents = prob_label.shape[1]
        found = minimize(
            loss,
            np.full(num_agents, 1 / num_agents),
            jac=True,
            method="SLSQP",
            bounds=[(0, 1)] * num_agents,
            constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-12, "maxiter": 500},
        )
        return cls.given(np.maximum(found.x, 0), num_agents)


@register
@dataclass(frozen=True)
class Calibrated(FusionRule):
    """The mean of the probabilities after a fitted temperature and bias for each agent."""

    temperature: list[float]
    bias: list[float]

    name = "calibrated"
    is_fitted = True

    def __post_init__(self) -> None:
        if not np.all(np.array(self.temperature) > 0):
            raise ValueError("temperature is not larger than 0")

    def apply(self, agents: AgentOutputs) -> np.ndarray:
        return _pair(agents.log_odds / np.array(self.temperature) + np.array(self.bias)).mean(axis=1)

    @classmethod
    def fit(cls, agents: AgentOutputs, is_fake: np.ndarray) -> "Calibrated":
        fits = [_logistic_regression(column[:, None], is_fake) for column in agents.log_odds.T]
        blind = [number for number, (slope, _) in enumerate(fits, start=1) if slope[0] <= 0]
        if blind:
            raise InputError(
                f"calibrated fusion: agent {blind[0]} is no better than chance on these images. Leave it away, or take "
                f"--fusion stacked."
            )
        return cls([1 / slope[0] for slope, _ in fits], [bias for _, bias in fits])


@register
@dataclass(frozen=True)
class Stacked(FusionRule):
    """A logistic regression on the log-odds."""

    weights: list[float]
    bias: float

    name = "stacked"
    is_fitted = True

    def apply(self, agents: AgentOutputs) -> np.ndarray:
        return _pair(agents.log_odds @ np.array(self.weights) + self.bias)

    @classmethod
    def fit(cls, agents: AgentOutputs, is_fake: np.ndarray) -> "Stacked":
        weights, bias = _logistic_regression(agents.log_odds, is_fake)
        return cls(weights.tolist(), bias)


def _pair(log_odds: np.ndarray) -> np.ndarray:
    """Log-odds (...) -> probabilities of A and B (..., 2); neither tail is lost."""
    return np.stack([sigmoid(-log_odds), sigmoid(log_odds)], axis=-1)


def _logistic_regression(log_odds: np.ndarray, is_fake: np.ndarray) -> tuple[np.ndarray, float]:
    """(weights (K,), bias). The mild L2 penalty keeps them finite where agents separate the classes without error."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=1000).fit(log_odds, is_fake)
    return model.coef_[0], float(model.intercept_[0])
