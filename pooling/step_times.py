"""StepTimes: how long the next step will take, learned from those that ended."""

# How fast it follows a change: about the last 8 steps count.
_FOLLOW = 0.125
# Steps whose sizes differ by less than this share of their mean say nothing of what a step costs beside its tokens.
_ALIKE = 0.1
# A step of a known size that took more than so many times what was expected says more of the machine than of steps: it
# counts as so many times that. If the next one does so too, things have changed, and it counts as it is.
_OUTLIER = 2.0


class StepTimes:
    """A step's seconds are a constant, for launching its operations, and so much for each token.

    Both are fitted to the latest steps (least squares, exponentially weighted).
    """

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
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
        self._weight = kept * self._weight + 1
        self._x = kept * self._x + tokens
        self._y = kept * self._y + seconds
        self._xx = kept * self._xx + tokens * tokens
        self._xy = kept * self._xy + tokens * seconds

    def expect(self, tokens: int) -> float:
        """Seconds; 0.0 before the first step has ended."""
        if not self._weight:
            return 0.0
        constant, each = self._fit()
        return constant + each * tokens

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
