"""No reduction: the unreduced model, which every sweep runs beside the others."""

from tokred import METHODS, Assignment, Attention, Method, Tokens


@METHODS.register("none")
class NoReduction(Method):
    """Keeps all tokens; a schedule that removes any is refused."""

    tuning = "none"

    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        raise ValueError("none removes nothing; give it no r, keep_rate, tokens or budget")

    def fewest(self, num_tokens: int, prefix: int) -> int:
        return num_tokens
