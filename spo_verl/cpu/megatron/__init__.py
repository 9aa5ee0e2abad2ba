"""verl's Megatron engine on a CPU: Megatron's packages, the layers of Transformer Engine, optimizer and engine."""
