"""StepTimes: how long the next step will take, learned from those that ended."""

import math
from bisect import bisect

# How fast it follows a change: about the last 8 steps count.
_FOLLOW = 0.125
# Steps whose sizes differ by less than this share of their mean say nothing of what a step costs beside its tokens.
_ALIKE = 0.1
# A step of a known size that took more than so many times what was expected says more of the machine than of steps: it
# counts as so many times that. If the next one does so too, things have changed, and it counts as it is.
_OUTLIER = 2.0


class StepTimes:
    """A step's seconds are a constant, for launching its operations, and so much for each token.

    Both are fitted to the latest steps (least squares, exponentially weighted). Those of a size that was seen before,
    or lies between two, are known better: many large steps say little of a small one. So the latest steps of
    each size, up to twice as large, have a mean of their own.
    """

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        # By the bits of a number of tokens: how much the mean weighs, its tokens and its seconds.
        self._sizes: dict[int, tuple[float, float, float]] = {}
        self.largest = 0  # tokens of all that ended
        self._odd = False  # whether the last one took much longer than expected

    def learn(self, tokens: int, seconds: float) -> None:
        kept = 1 - _FOLLOW
        expected = self.expect(tokens)
        odd = tokens <= self.largest and 0 < _OUTLIER * expected < seconds
        if odd and not self._odd:
            seconds = _OUTLIER * expected
        self._odd = odd
        self.largest = max(self.largest, tokens)
        weight, mean, mean_s = self._sizes.get(tokens.bit_length(), (0.0, 0.0, 0.0))
        weight = kept * weight + 1
        means = (mean + (tokens - mean) / weight, mean_s + (seconds - mean_s) / weight)
        self._sizes[tokens.bit_length()] = (weight, *means)
        self._weight = kept * self._weight + 1
        self._x = kept * self._x + tokens
        self._y = kept * self._y + seconds
        self._xx = kept * self._xx + tokens * tokens
        self._xy = kept * self._xy + tokens * seconds

    def expect(self, tokens: int) -> float:
        """Seconds; 0.0 before the first step has ended."""
        if not self._weight:
            return 0.0
        known = sorted((mean, mean_s) for _, mean, mean_s in self._sizes.values())
        above = bisect(known, (tokens, math.inf))
        if 0 < above < len(known):
            (less, less_s), (more, more_s) = known[above - 1 : above + 1]
            return less_s + (more_s - less_s) * (tokens - less) / (more - less)
        # Beyond them the fit says how much less or more a token makes.
        nearest, nearest_s = known[0] if above == 0 else known[-1]
        return max(0.0, nearest_s + self._fit()[1] * (tokens - nearest))

    def tokens_within(self, seconds: float, least: int, most: int) -> int:
        """Tokens of a step that takes no longer, from `least` to `most`; `most` before the first step has ended."""
        if not self._weight:
            return most
        constant, each = self._fit()
        if constant + each * most <= seconds:
            return most
        return max(least, int((seconds - constant) / each)) if each > 0 else least

    def _fit(self) -> tuple[float, float]:
        mean, mean_s = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean * mean
        if variance > (_ALIKE * mean) ** 2:
            each = (self._xy / self._weight - mean * mean_s) / variance
            constant = mean_s - each * mean
            if each < 0:  # all take about as long
                return mean_s, 0.0
            if constant >= 0:
                return constant, each
        return 0.0, self._y / self._x
