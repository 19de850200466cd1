"""Placement of each request: prompt and token worker chosen together, made true by one atomic forward."""
