"""Membership and pools of the mesh: who is here, who is gone and what they left behind, and who has which home role."""
