"""Links shared by flows, max-min fair."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def max_min_rates(
    flows: Mapping[int, tuple[str, ...]], *, capacity_bytes_per_s: Mapping[str, float]
) -> dict[int, float]:
    """Return the max-min fair rate of every flow.

    Links fill like vessels: the link with the least capacity per flow fixes the rate of its flows,
    they are taken out, and the rest share what is left.

    Parameters
    ----------
    flows : mapping of int to tuple of str
        The links each flow crosses.
    capacity_bytes_per_s : mapping of str to float
        Capacity of the links [B/s].

    Returns
    -------
    dict of int to float
        Rate of each flow [B/s].

    References
    ----------
    .. [1] D. Bertsekas, R. Gallager, "Data networks", 2nd ed., 1992, section 6.5.2.

    Examples
    --------
    >>> max_min_rates({0: ("a",), 1: ("a", "b"), 2: ("b",)}, capacity_bytes_per_s={"a": 4, "b": 10})
    {0: 2.0, 1: 2.0, 2: 8.0}
    """
    crossing: dict[str, list[int]] = {}
    for flow, links in flows.items():
        for link in links:
            crossing.setdefault(link, []).append(flow)
    left = {link: float(capacity_bytes_per_s[link]) for link in crossing}
    count = {link: len(members) for link, members in crossing.items()}
    rates: dict[int, float] = {}
    rate = 0.0
    while len(rates) < len(flows):
        tightest = min(
            (link for link in left if count[link]), key=lambda link: left[link] / count[link]
        )
        rate = max(rate, left[tightest] / count[tightest])  # never falls but by rounding
        for flow in crossing[tightest]:
            if flow in rates:
                continue
            rates[flow] = rate
            for link in flows[flow]:
                left[link] -= rate
                count[link] -= 1
    return {flow: rates[flow] for flow in flows}


class Network:
    """Flows on shared links, in the time of an event environment.

    Arrivals and departures at one instant are taken together; only the flows connected to a
    changed link through shared links get new rates.
    """

    __slots__ = (
        "_capacity", "_changed", "_env", "_flows", "_left", "_members", "_on_done", "_rate",
        "_since", "_version",
    )  # fmt: skip

    def __init__(
        self, env: Any, capacity_bytes_per_s: Mapping[str, float], on_done: Callable[[int], None]
    ) -> None:
        self._env = env
        self._capacity = capacity_bytes_per_s
        self._on_done = on_done
        self._flows: dict[int, tuple[str, ...]] = {}
        self._members: dict[str, dict[int, None]] = {link: {} for link in capacity_bytes_per_s}
        self._left: dict[int, float] = {}
        self._rate: dict[int, float] = {}
        self._since: dict[int, float] = {}
        self._version: dict[int, int] = {}
        self._changed: dict[str, None] = {}

    def add(self, flow: int, links: tuple[str, ...], num_bytes: float) -> None:
        """Start a flow now."""
        self._flows[flow] = links = tuple(dict.fromkeys(links))
        self._left[flow] = num_bytes
        self._rate[flow] = 0.0
        self._since[flow] = self._env.now
        self._version[flow] = 0
        for link in links:
            self._members[link][flow] = None
        self._touch(links)

    def _touch(self, links: Iterable[str]) -> None:
        """Share the bandwidth anew once this instant's events are over."""
        if not self._changed:
            self._env.timeout(0).callbacks.append(self._share)
        self._changed.update(dict.fromkeys(links))

    def _connected(self) -> dict[int, tuple[str, ...]]:
        """Return the flows connected to a changed link, in order of arrival."""
        found: set[int] = set()
        links = list(self._changed)
        seen = set(links)
        while links:
            for flow in self._members[links.pop()]:
                if flow not in found:
                    found.add(flow)
                    fresh = [link for link in self._flows[flow] if link not in seen]
                    seen.update(fresh)
                    links.extend(fresh)
        return {flow: self._flows[flow] for flow in sorted(found)}

    def _share(self, _event: Any) -> None:
        """Give every connected flow its fair rate and time its end."""
        flows = self._connected()
        self._changed.clear()
        now = self._env.now
        for flow, rate in max_min_rates(flows, capacity_bytes_per_s=self._capacity).items():
            if rate == self._rate[flow]:
                continue
            self._left[flow] -= self._rate[flow] * (now - self._since[flow])
            self._rate[flow], self._since[flow] = rate, now
            self._version[flow] += 1
            event = self._env.timeout(
                max(0.0, self._left[flow]) / rate, (flow, self._version[flow])
            )
            event.callbacks.append(self._end)

    def _end(self, event: Any) -> None:
        """End a flow, unless its rate has changed since the event was set."""
        flow, version = event.value
        if self._version.get(flow) != version:
            return
        links = self._flows.pop(flow)
        for state in (self._left, self._rate, self._since, self._version):
            del state[flow]
        for link in links:
            del self._members[link][flow]
        self._touch(links)
        self._on_done(flow)
