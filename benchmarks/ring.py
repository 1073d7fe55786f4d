"""What a model of a ring of replicas says of the time of an update; see docs/scaling.md."""

# Replicas, seconds of a step of the ring, bytes per second one way; sources: docs/scaling.md.
LINKS = {
    "NVLink, 8 replicas": (8, 3.4e-6, 450e9),
    "100 Gb/s, 8 replicas": (8, 14e-6, 12.5e9),
    "100 Gb/s, 64 replicas": (64, 14e-6, 12.5e9),
    "100 Gb/s, 1,024 replicas": (1024, 14e-6, 12.5e9),
}
FLOPS, TOKENS = 400e12, 4096  # of a device in a second; of a micro-batch


def ring(replicas, latency, bandwidth, size):
    """Return the seconds that a ring takes to sum `size` bytes."""
    return 2 * (replicas - 1) * (latency + size / replicas / bandwidth)


def update(steps, micro_batch, sums, each):
    """Return the seconds of an update: its micro-batches, and sums that take `each` seconds."""
    return steps * micro_batch + sums * each


def print_table():
    """Print the times of the model; updates with K sums in units of those with one."""
    print("| parameters | link | t | a sum | K = 8 | hidden | K = 64 | hidden |")
    print("| ---: | --- " + "| ---: " * 6 + "|")
    for parameters in (100e6, 7e9):
        micro_batch = 6 * parameters * TOKENS / FLOPS
        for name, link in LINKS.items():
            each = ring(*link, 4 * parameters)
            cells = [f"{1e3 * micro_batch:.0f} ms", f"{1e3 * each:.0f} ms"]
            for steps in (8, 64):
                one = update(steps, micro_batch, 1, each)
                many = update(steps, micro_batch, steps, each)
                hidden = update(steps, max(micro_batch, each), 0, each)
                cells += [f"{many / one:.2f}", f"{hidden / one:.2f}"]
            print(f"| {parameters / 1e6:,.0f} M | {name} | {' | '.join(cells)} |")
