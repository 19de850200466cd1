"""The mesh on simulated time: the live policies over machines that are only described."""
