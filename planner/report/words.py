"""Sentences and labels that reports share."""

from planner.errors import StrategyError
from planner.strategy import Strategy, parse_strategy

TERM_LABELS = {
    "compute": "compute",
    "tensor": "tensor-parallel exchange",
    "data": "gradient and weight exchange",
    "pipeline": "stage-to-stage sends",
    "context": "context-parallel exchange",
    "expert": "expert exchange",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer",
    "input": "input",
}
"""What the keys of ``breakdown_s`` mean; communication counts where it is exposed."""

_SHARDED = {
    "optimizer": "optimizer state",
    "gradients": "optimizer state and gradients",
    "parameters": "optimizer state, gradients and weights",
}
_RECOMPUTED = {
    "selective": "Attention is recomputed in the backward pass.",
    "selective_op": "Blocks are recomputed but for attention and every second product.",
    "full": "Every block is recomputed in the backward pass.",
}


def term_label(term: str) -> str:
    """Return a key as words.

    Examples
    --------
    >>> term_label("bubble"), term_label("optimizer_state")
    ('pipeline bubble', 'optimizer state')
    """
    return TERM_LABELS.get(term, term.replace("_", " "))


def strategy_in_words(text: str) -> str:
    """Say a strategy in one or two sentences; a text that is no strategy is returned as it is.

    Examples
    --------
    >>> strategy_in_words("dp=8,tp=2,pp=4,microbatch=1,schedule=1f1b")
    'Cut every layer over 2 devices and the depth into 4 stages (1f1b), in 8 copies over the batch.'
    >>> strategy_in_words("dp=4,microbatch=2,sharding=parameters")
    'Keep 4 copies over the batch; share optimizer state, gradients and weights among the copies.'
    >>> strategy_in_words("dp=16,microbatch=2,sharding=optimizer,replicas=2")
    'Keep 16 copies over the batch; share optimizer state among groups of 8 of them.'
    >>> strategy_in_words("dp=1,microbatch=1")
    'Run it on one device.'
    """
    try:
        strategy = parse_strategy(text)
    except StrategyError:
        return text
    cuts = _cuts(strategy)
    copies = strategy.data_parallel_size
    if strategy.num_devices == 1:
        sentence = "Run it on one device"
    elif not cuts:
        sentence = f"Keep {copies} copies over the batch"
    else:
        sentence = "Cut " + " and ".join(cuts)
        if copies > 1:
            sentence += f", in {copies} copies over the batch"
    if strategy.sharding != "none":
        ranks = copies * strategy.context_parallel_size
        among = "the copies"
        if strategy.sharding_replicas > 1:
            among = f"groups of {ranks // strategy.sharding_replicas} of them"
        sentence += f"; share {_SHARDED[strategy.sharding]} among {among}"
    recompute = _RECOMPUTED.get(strategy.recompute)
    return f"{sentence}. {recompute}" if recompute else f"{sentence}."


def _cuts(strategy: Strategy) -> list[str]:
    cuts: list[str] = []
    if strategy.tensor_parallel_size > 1:
        what = "every layer" if strategy.layout == "tensor" else "each layer its own way"
        cuts.append(f"{what} over {strategy.tensor_parallel_size} devices")
    if strategy.context_parallel_size > 1:
        cuts.append(f"the sequence over {strategy.context_parallel_size}")
    if strategy.expert_parallel_size > 1:
        cuts.append(f"the experts over {strategy.expert_parallel_size}")
    if strategy.pipeline_parallel_size > 1:
        cuts.append(
            f"the depth into {strategy.pipeline_parallel_size} stages ({strategy.schedule})"
        )
    return cuts
