"""Membership of the mesh: who is here, who is gone, and what the gone ones left behind."""
