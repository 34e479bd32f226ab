"""bundles(): what a placement group reserves for the ranks of one replica; pure."""


def bundles(ranks: int, num_cpus: float, num_gpus: float) -> list[dict[str, float]]:
    """One bundle for each rank, rank 0's first. Place them STRICT_PACK: the ranks of a group meet on one machine."""
    each = {name: amount for name, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
    return [dict(each) for _ in range(ranks)]
