"""What is asked and when: readers of production traces, seeded generators, scaling."""
