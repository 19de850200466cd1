"""What it was like: latencies, attainment, goodput and their confidence, from records alone."""
