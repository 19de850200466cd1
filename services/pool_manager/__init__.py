"""Membership of the mesh: who is here, who is lost, and what the lost ones left behind."""
