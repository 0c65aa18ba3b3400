"""The parts every prototype model is made of. Knows no paper; needs PyTorch and nothing else."""
