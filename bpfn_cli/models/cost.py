# SPDX-License-Identifier: MIT
"""Parameters and MACs of a network, in closed form: microseconds, where `bpfn_cli.profiling` runs the network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.models.variants import OFFSET_CHANNELS, WEIGHTNET_HIDDEN, Level, Variant
from bpfn_cli.ops.pyramid import level_sizes
from bpfn_cli.structures import LEVELS


@dataclass(frozen=True)
class Cost:
    """Parameters, and MACs of one pair of clouds in the module convention, as `count_modules` counts them."""

    parameters: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs)


@lru_cache(maxsize=1 << 14)  # networks that a search meets again and again
def cost_of(variant: Variant, points: int = PUBLISHED_POINTS) -> Cost:
    """The cost of a network with clouds of this many points."""
    return _Counter(variant, points).total()


class _Counter:
    def __init__(self, variant: Variant, points: int):
        self.variant, self.rows = variant, level_sizes(points, variant.reductions)

    def total(self) -> Cost:
        levels, cost = self.variant.levels, Cost()
        for index, level in enumerate(levels):
            cost += self.encoder(index, level)
            if index < LEVELS:
                coarser = levels[index + 1].width if index == LEVELS - 1 else levels[index + 1].embedding
                cost += self.block(coarser, level.context, calls=2 * self.rows[index])
                cost += self.embedding(index, level) + self.estimator(index, level)
        return cost

    def encoder(self, index: int, level: Level) -> Cost:
        calls, variant = 2 * self.rows[index], self.variant
        if index == 0:
            cost = self.encoder_block(3, level.width, calls)
        else:
            inputs, separable = variant.levels[index - 1].expanded, index in variant.separable.encoder
            k = variant.encoder_neighbors
            cost = self.convolution(inputs, level.width, level.c_mid, calls, k, variant.bn, separable)
        if index == LEVELS:
            return cost
        if variant.residual:
            cost += self.residual(level.width, variant.residual[index], calls)
        else:
            cost += self.encoder_block(level.width, level.width, calls)
        return cost + self.encoder_block(level.width, level.expanded, calls)

    def embedding(self, index: int, level: Level) -> Cost:
        n, w, k = self.rows[index], level.embedding, self.variant.embedding_neighbors
        once = self.linear(level.width + level.context, w, calls=2 * n) + self.linear(w, w, calls=n)
        cost = Cost(2 * once.parameters, 2 * once.macs)
        for calls in (2 * n * k, n * k):  # both ways, then into the embedding
            cost += self.linear(3, w, calls) + Cost(w, calls * w) + self.norm(w) + self.block(w, w, calls)
        return cost

    def estimator(self, index: int, level: Level) -> Cost:
        n, width, variant = self.rows[index], level.estimator, self.variant
        coarser = variant.levels[index + 1].estimator_features if index < LEVELS - 1 else 0
        separable, k = index in variant.separable.estimators, variant.estimator_neighbors
        cost = self.block(width, width, n) + self.block(width, level.estimator_features, n)
        for inputs in (level.width + coarser + level.embedding, width):
            cost += self.convolution(inputs, width, level.c_mid, n, k, norm=True, separable=separable)
        return cost + self.linear(level.estimator_features, 3, n)

    def convolution(
        self, inputs: int, outputs: int, c_mid: int, calls: int, k: int, norm: bool, separable: bool
    ) -> Cost:
        """A PointConv. Its WeightNet has unused batch norms also where batch norm is off."""
        hidden = WEIGHTNET_HIDDEN
        inputs += OFFSET_CHANNELS
        cost = Cost(2 * (2 * hidden + c_mid), calls * outputs)
        for before, after in ((OFFSET_CHANNELS, hidden), (hidden, hidden), (hidden, c_mid)):
            cost += self.linear(before, after, calls * k)
        if separable:
            cost += Cost(2 * inputs, 2 * inputs * calls * c_mid)
            cost += self.linear(inputs, outputs // c_mid, calls * c_mid)
        else:
            cost += self.linear(inputs * c_mid, outputs, calls)
        return cost + Cost(2 * outputs if norm else 0)

    def residual(self, width: int, hidden: int, calls: int) -> Cost:
        cost = self.block(width, hidden, calls) + self.block(hidden, hidden, calls)
        cost += self.linear(hidden, width, calls) + self.norm(width)
        return cost + Cost(2 * width, 4 * calls * width) + self.norm(width)

    def encoder_block(self, inputs: int, outputs: int, calls: int) -> Cost:
        if not self.variant.bottleneck:
            return self.block(inputs, outputs, calls)
        hidden = max(1, outputs // self.variant.bottleneck)
        return self.block(inputs, hidden, calls) + self.block(hidden, outputs, calls)

    def block(self, inputs: int, outputs: int, calls: int) -> Cost:
        """A linear map, batch norm, and an activation."""
        return self.linear(inputs, outputs, calls) + self.norm(outputs) + Cost(0, calls * outputs)

    def norm(self, width: int) -> Cost:
        return Cost(2 * width if self.variant.bn else 0, 0)

    @staticmethod
    def linear(inputs: int, outputs: int, calls: int) -> Cost:
        return Cost(outputs * (inputs + 1), calls * outputs * (inputs + 1))
