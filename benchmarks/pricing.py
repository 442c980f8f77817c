"""What pricing one call costs: the compiled rate card beside genai-prices' own calculation, in the same run.

    python benchmarks/pricing.py [--rounds N]

Prints the median and the fastest of interleaved rounds, in microseconds a call, and their ratio. The usage is made
before, in both; the results are equal, or it fails.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from decimal import Decimal

from genai_prices import calc_price
from genai_prices.types import Usage as TheirUsage

from runcap.guardrails import PriceBook, Usage

CALLS = 500
CASES = {
    "gpt-4o": ("openai", {"input_tokens": 2_006, "output_tokens": 300, "cache_read_tokens": 1_920}),
    "claude-opus-4-8": (
        "anthropic",
        {"input_tokens": 12_307, "output_tokens": 550, "cache_write_tokens": 12_304, "cache_write_1h_tokens": 4_000},
    ),
    "gemini-2.5-pro": ("google", {"input_tokens": 250_000, "output_tokens": 900, "cache_read_tokens": 100_000}),
}


def ours(model: str, provider: str, counts: dict[str, int]) -> Callable[[], int]:
    """Nano-dollars: look the card up and price the usage, as every call does."""
    book, usage = PriceBook(), Usage(**counts)
    return lambda: book.card(model, provider=provider).nano(usage)


def theirs(model: str, provider: str, counts: dict[str, int]) -> Callable[[], Decimal]:
    """Dollars: genai-prices' public calculation, of the same counts."""
    usage = TheirUsage(**counts)
    return lambda: calc_price(usage, model, provider_id=provider).total_price


def timed(action: Callable[[], object]) -> float:
    """Microseconds a call."""
    start = time.perf_counter()
    for _ in range(CALLS):
        action()
    return (time.perf_counter() - start) / CALLS * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"{'us a call':<18}{'rate card':>20}{'genai-prices':>22}{'ratio':>10}")
    for model, (provider, counts) in CASES.items():
        one, other = ours(model, provider, counts), theirs(model, provider, counts)
        assert one() == other() * 10**9
        pairs = [(timed(one), timed(other)) for _ in range(rounds)]
        mine, their = ([pair[side] for pair in pairs] for side in (0, 1))
        figures = [f"{statistics.median(side):.2f} (min {min(side):.2f})" for side in (mine, their)]
        ratio = statistics.median(their) / statistics.median(mine)
        print(f"{model:<18}{figures[0]:>20}{figures[1]:>22}{'1/' + format(ratio, '.0f'):>10}")


if __name__ == "__main__":
    main()
