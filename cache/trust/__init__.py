"""Who made an artifact: Cosign's keys and signatures, the policy, and what was made on this host (RFC §6)."""
