"""Speed: seconds, FLOPs and ablations of generators and samplers."""
