"""Fit software profiles, and devices without kernel tables, on published steps marked calibrate.

Usage: python benchmarks/fit_software.py [NAME ...] [--write]

Reads the case files; only cases with ``role = "calibrate"`` take part, on the devices named below,
whose kernels are measured (except for devices that are fitted here). Prints predicted / measured
of every such case before and after. ``--write`` puts the values into the catalogue.
"""

import argparse
from dataclasses import replace
from math import exp, log
from pathlib import Path

import numpy as np
from profile_text import ProfileText, entry
from scipy.optimize import minimize

from hardware_profiles import load_device, load_software
from paraplan.planning import Options, make_problem, trace
from planner.evaluation import evaluate
from planner.layout_choice import layout_that_fits
from planner.problem import PriceBook
from planner.strategy import parse_strategy
from planner.validation.case_file import load_groups

CATALOG = Path(__file__).parent.parent / "hardware_profiles" / "catalog"
FITTED = {
    "tensorflow-2017": (("p100",), ("convolution_share.fp32",)),
    "mxnet-2017": (("p100",), ("convolution_share.fp32", "host_call")),
    "mxnet-2020": (
        ("v100", "a100"),
        ("convolution_share.fp16", "convolution_share.fp32", "convolution_share.tf32"),
    ),
    "tensorflow-2020-xla": (
        ("v100", "a100"),
        ("convolution_share.fp16", "convolution_share.fp32", "convolution_share.tf32"),
    ),
    "cuda-convnet2": (("k20",), ("convolution_share.fp32",)),
    "composer-2023-hopper": (("h100",), ("product_share",)),
    "k80": (("k80",), ("matmul.sustained_efficiency",)),
    "m40": (("m40",), ("matmul.sustained_efficiency",)),
}
"""Profile to the devices whose cases it is fitted on, and the quantities fitted. Stacks come before
devices, whose cases run on fitted stacks."""
SOFTENING = 0.02
"""Residuals below this count little [1]."""
BOUNDS = {"convolution_share": 1.2, "sustained_efficiency": 1.0, "product_share": 1.0}
"""Largest values that make sense: device rates are those of the best algorithm [1]."""
IN_SECONDS = ("kernel_overhead", "host_call")
"""Quantities that a file states in microseconds."""
TITLE = "paraplan: python benchmarks/fit_software.py on the cases marked calibrate"


class Fit:
    """The calibrate cases of one profile and their predictions under changed quantities."""

    def __init__(self, name, devices, keys):
        self.name, self.keys = name, keys
        self.is_device = (CATALOG / "devices" / f"{name}.toml").is_file()
        graphs = {}
        self.cases = []
        for group in load_groups():
            for case in group.cases:
                if case.role != "calibrate" or case.step_time_s is None:
                    continue
                options = Options(**case.options)
                if not self.is_device and options.software != name:
                    continue
                key = (options.model, options.seq_len)
                problem_of = graphs.get(key)
                if problem_of is None:
                    graphs[key] = trace(options.model, sequence_length=options.seq_len)
                problem = make_problem(options, graph=graphs[key])
                if problem.cluster.device.name.split("-")[0] in devices:
                    self.cases.append((case, problem))

    def start(self):
        profile = load_device(self.name) if self.is_device else load_software(self.name)
        return [log(max(1e-9, read(profile, key))) for key in self.keys]

    def logs(self, values):
        """Return log(predicted / measured) of every case."""
        found = []
        for case, problem in self.cases:
            changed = changed_problem(problem, self, [exp(value) for value in values])
            book = PriceBook(problem=changed)
            strategy = parse_strategy(case.options["strategy"])
            made = evaluate(book, strategy, layout_that_fits(book, strategy))
            found.append(log(made.step.step_time_s / case.step_time_s))
        return np.array(found)

    def loss(self, values):
        over = sum(
            max(0.0, value - log(BOUNDS.get(key.removeprefix("matmul.").split(".")[0], 1e9)))
            for value, key in zip(values, self.keys, strict=True)
        )
        return float(np.mean(np.sqrt(self.logs(values) ** 2 + SOFTENING**2))) + over

    def best(self):
        options = {"maxfev": 30 * len(self.keys), "xatol": 5e-3, "fatol": 1e-4}
        start = self.start()
        simplex = [start] + [
            [value + (0.3 if at == number else 0.0) for at, value in enumerate(start)]
            for number in range(len(start))
        ]
        options["initial_simplex"] = np.array(simplex) - 0.1
        return minimize(self.loss, start, method="Nelder-Mead", options=options).x


def read(profile, key):
    """Return a quantity in the unit of the file."""
    table, _, inner = key.partition(".")
    if table == "convolution_share":
        return profile.convolution_shares.get(inner, 1.0)
    if table == "matmul":
        return getattr(profile.matmul, inner)
    return getattr(profile, f"{key}_s") * 1e6 if key in IN_SECONDS else getattr(profile, key)


def changed(profile, key, value):
    """Return the profile with one quantity changed, in the unit of the file."""
    table, _, inner = key.partition(".")
    if table == "convolution_share":
        return replace(profile, convolution_shares={**profile.convolution_shares, inner: value})
    if table == "matmul":
        return replace(profile, matmul=replace(profile.matmul, **{inner: value}))
    if key in IN_SECONDS:
        return replace(profile, **{f"{key}_s": value * 1e-6})
    return replace(profile, **{key: value})


def changed_problem(problem, fit, values):
    """Return the problem with the fitted quantities at these values."""
    profile = problem.cluster.device if fit.is_device else problem.software
    for key, value in zip(fit.keys, values, strict=True):
        profile = changed(profile, key, value)
    if not fit.is_device:
        return replace(problem, software=profile)
    groups = tuple(replace(group, device=profile) for group in problem.cluster.node_groups)
    return replace(problem, cluster=replace(problem.cluster, node_groups=groups))


def write(fit, values, error):
    folder = "devices" if fit.is_device else "software"
    text = ProfileText(CATALOG / folder / f"{fit.name}.toml")
    text.source("calibrate", TITLE)
    note = f"mean |error| {error:.0%} over {len(fit.cases)} steps"
    for key, value in zip(fit.keys, values, strict=True):
        table, _, inner = key.rpartition(".")
        unit = "us" if inner in IN_SECONDS else "1"
        text.set(table, inner, entry(value, unit, "calibrate", "derived", note))
    text.save()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FITTED))
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    for name in chosen.names or FITTED:
        fit = Fit(name, *FITTED[name])
        start = fit.start()
        best = fit.best()
        before, after = fit.logs(start), fit.logs(best)
        print(f"\n{name}: " + ", ".join(
            f"{key} {exp(old):.3g} -> {exp(new):.3g}"
            for key, old, new in zip(fit.keys, start, best, strict=True)
        ))  # fmt: skip
        errors = [np.mean(np.abs(np.expm1(logs))) for logs in (before, after)]
        bias = np.mean(np.expm1(after))
        print(f"  mean |error| {errors[0]:.1%} -> {errors[1]:.1%}, bias {bias:+.1%}")
        for (case, _), old, new in zip(fit.cases, before, after, strict=True):
            print(f"  {case.name:45} {exp(old):6.3f} -> {exp(new):6.3f}")
        if chosen.write:
            write(fit, [exp(value) for value in best], errors[1])


if __name__ == "__main__":
    main()
