"""Losses over pairs of a chosen and a rejected answer, as functions of the answers' log-probabilities.

Every loss looks at one number a pair, the margin by which the chosen answer's reward exceeds the rejected one's; they
differ in what a reward is and in how the margin is judged. Shapes: P pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fivefold.objectives.settings import PreferenceLossSettings


def rewards(
    logps_P2: Tensor, reference_logps_P2: Tensor | None, num_tokens_P2: Tensor, settings: PreferenceLossSettings
) -> Tensor:
    """What the policy counts as the worth of each answer, [P, 2], the chosen one first.

    beta * (log p - log p_ref) for sigmoid, conservative, robust and hinge; the same divided by the answer's tokens for
    sigmoid_norm and ipo; beta * log p / tokens for simpo; log(q / (1 - q)) with q = p^(1 / tokens) for orpo.

    Source: DPO, Rafailov et al. 2023 (arXiv 2305.18290), equation 5 without its constant; SimPO, Meng et al. 2024
        (arXiv 2405.14734), equation 4; ORPO, Hong et al. 2024 (arXiv 2403.07691), equation 4; DPO divided by the tokens
        as in Tulu 3, Lambert et al. 2024 (arXiv 2411.15124).
    Differs: IPO's paper (arXiv 2310.12036) has sums; its authors told TRL's that they divide by the tokens, too.

    Args:
        logps_P2: sums over an answer's tokens, end mark included, under the model that learns.
        reference_logps_P2: the same under the reference; None where the loss has none.
        num_tokens_P2: tokens of each answer.
    """
    match settings.loss_type:
        case "orpo":
            mean = (logps_P2 / num_tokens_P2).clamp(max=-1e-6)  # an answer that is certain has infinite odds
            return mean - torch.log(-torch.expm1(mean))
        case "simpo":
            return settings.strength * logps_P2 / num_tokens_P2
    assert reference_logps_P2 is not None
    ratios = logps_P2 - reference_logps_P2
    return settings.strength * (ratios / num_tokens_P2 if settings.loss_type in ("sigmoid_norm", "ipo") else ratios)


def preference_loss(
    logps_P2: Tensor, reference_logps_P2: Tensor | None, num_tokens_P2: Tensor, settings: PreferenceLossSettings
) -> Tensor:
    """Loss of each pair, [P], with the term of supervised fine-tuning if there is one.

    Args: as `rewards`.
    """
    chosen, rejected = rewards(logps_P2, reference_logps_P2, num_tokens_P2, settings).unbind(-1)
    margin = chosen - rejected
    nll = -logps_P2[:, 0] / num_tokens_P2[:, 0]
    match settings.loss_type:
        case "hinge":
            loss = hinge_loss(margin)
        case "ipo":
            loss = ipo_loss(margin, settings.strength)
        case "conservative":
            loss = conservative_loss(margin, settings.label_smoothing)
        case "robust":
            loss = robust_loss(margin, settings.label_smoothing)
        case "simpo":
            loss = sigmoid_loss(margin - settings.gamma)
        case "orpo":
            return nll + settings.odds_ratio_weight * sigmoid_loss(margin)
        case _:
            loss = sigmoid_loss(margin)
    return loss + settings.sft_weight * nll if settings.sft_weight else loss


def sigmoid_loss(margin: Tensor) -> Tensor:
    """-log sigmoid(margin): the chosen answer won a comparison whose odds are e to the margin.

    Source: DPO, Rafailov et al. 2023 (arXiv 2305.18290), equation 7.
    """
    return -F.logsigmoid(margin)


def conservative_loss(margin: Tensor, label_smoothing: float) -> Tensor:
    """(1 - s) * -log sigmoid(margin) + s * -log sigmoid(-margin): the margin is held at log((1 - s) / s).

    Source: cDPO, Mitchell 2023, A note on DPO with noisy preferences.
    """
    return (1 - label_smoothing) * sigmoid_loss(margin) + label_smoothing * sigmoid_loss(-margin)


def robust_loss(margin: Tensor, label_smoothing: float) -> Tensor:
    """((1 - s) * -log sigmoid(margin) - s * -log sigmoid(-margin)) / (1 - 2 s).

    Where a share s of the labels is flipped at random, its mean is that of `sigmoid_loss` under the true labels; it has
    no floor.

    Source: robust DPO, Chowdhury et al. 2024 (arXiv 2403.00409).
    """
    kept, flipped = (1 - label_smoothing) * sigmoid_loss(margin), label_smoothing * sigmoid_loss(-margin)
    return (kept - flipped) / (1 - 2 * label_smoothing)


def hinge_loss(margin: Tensor) -> Tensor:
    """max(0, 1 - margin): a pair is done with once its margin is 1.

    Source: SLiC-HF, Zhao et al. 2023 (arXiv 2305.10425), on log-ratios as in RSO, Liu et al. 2023 (arXiv 2309.06657).
    """
    return F.relu(1 - margin)


def ipo_loss(margin: Tensor, beta: float) -> Tensor:
    """(margin / beta - 1 / (2 beta))^2: the margin is drawn to 1/2 from both sides.

    Source: IPO, Azar et al. 2023 (arXiv 2310.12036), equation 17, with beta for its tau.
    """
    return ((margin - 0.5) / beta).square()
