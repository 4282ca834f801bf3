"""dne_lab: a laboratory for Dense Network Expansion for class-incremental learning (CVPR 2023)."""
