"""Plans written by hand, for tests of the executor."""

from itertools import pairwise

from planner.plan import (
    Boundary,
    ModuleBoundary,
    Plan,
    PlannedCluster,
    PlannedLayout,
    PlannedMesh,
    PlannedModel,
    PlannedStage,
    PlannedUnits,
    PlannedWorkload,
)
from planner.strategy import parse_strategy

TINY_GPT = "gpt2?num_layers=4&hidden_size=32&num_heads=4&vocab_size=64&max_positions=16&dropout=0"
SMALL_ALEXNET = "alexnet?width_divisor=16&image_size=64&num_classes=8"
_BLOCK_PLACEMENTS = {
    "attention.query": "S0", "attention.key": "S0", "attention.value": "S0", "ffn.up": "S0",
    "attention.output": "S1", "ffn.down": "S1",
}  # fmt: skip


def change(have, want):
    return Boundary(have=have, want=want)


def megatron_layout(size, *, num_layers=4, sequence_parallel=False):
    outside = "S1" if sequence_parallel else "R"
    parameters = {"embedding.token.weight": "S0", "head.projection.weight": "S0"}
    modules = {"embedding.token": ModuleBoundary(output=change("P", outside))}
    if sequence_parallel:
        modules["embedding.position"] = ModuleBoundary(output=change("R", "S0"))
        modules["head.projection"] = ModuleBoundary(input=change("S1", "R"))
    for layer in range(num_layers):
        prefix = f"blocks.{layer}"
        for name, placement in _BLOCK_PLACEMENTS.items():
            parameters[f"{prefix}.{name}.weight"] = placement
            if placement == "S0":
                parameters[f"{prefix}.{name}.bias"] = "S0"
            else:
                modules[f"{prefix}.{name}"] = ModuleBoundary(output=change("P", outside))
        if sequence_parallel:
            for name in ("attention", "ffn"):
                modules[f"{prefix}.{name}"] = ModuleBoundary(input=change("S1", "R"))
    return PlannedLayout(
        axis="tp", size=size, operators={}, parameters=parameters, modules=modules,
        model_output="S2",
    )  # fmt: skip


def hybrid_layout(size):
    """Krizhevsky's: samples in the convolutions, columns and rows in the fully connected layers."""
    return PlannedLayout(
        axis="tp",
        size=size,
        operators={},
        parameters={
            "classifier.1.weight": "S0", "classifier.1.bias": "S0", "classifier.4.weight": "S1",
            "classifier.6.weight": "S0", "classifier.6.bias": "S0",
        },
        modules={
            "classifier": ModuleBoundary(input=change("S0", "R")),
            "classifier.4": ModuleBoundary(output=change("P", "R")),
            "classifier.6": ModuleBoundary(output=change("S1", "S0")),
        },
        model_input="S0",
        model_output="S0",
    )  # fmt: skip


def plan_of(strategy, *, model=TINY_GPT, chain=None, layout=None, batch=8, sequence=16,
            optimizer="adam"):  # fmt: skip
    chosen = parse_strategy(strategy)
    if chain is None and not model.startswith("gpt2"):
        chain = ("",)
    if chain is None:
        chain = ("embedding", *(f"blocks.{i}" for i in range(4)), "head")
    count = chosen.pipeline_parallel_size * chosen.virtual_stages
    edges = [round(i * len(chain) / count) for i in range(count + 1)]
    stages = tuple(
        PlannedStage(
            units=(PlannedUnits(unit="chain", first=low, last=high),),
            module_paths=tuple(chain[low:high]),
        )
        for low, high in pairwise(edges)
    )
    axes = (("pp", chosen.pipeline_parallel_size), ("dp", chosen.data_parallel_size),
            ("cp", chosen.context_parallel_size), ("tp", chosen.tensor_parallel_size))  # fmt: skip
    if layout is None and chosen.tensor_parallel_size > 1:
        layout = megatron_layout(
            chosen.tensor_parallel_size, sequence_parallel=chosen.sequence_parallel
        )
    return Plan(
        paraplan_version="0",
        model=PlannedModel(source=model, name="test", num_parameters=0, content_key=""),
        workload=PlannedWorkload(
            global_batch_size=batch, sequence_length=sequence, precision="fp32",
            optimizer=optimizer, mode="train", attention="auto",
        ),
        cluster=PlannedCluster(
            name="local", device="cpu", device_kind="cpu", num_devices=chosen.num_devices,
            devices_per_node=chosen.num_devices,
        ),
        software="local",
        strategy=str(chosen),
        mesh=PlannedMesh(axes=tuple((axis, size) for axis, size in axes if size > 1)),
        stages=stages,
        layouts=(layout,) if layout else (),
        prediction={"step_time_s": 1.0},
    )  # fmt: skip
