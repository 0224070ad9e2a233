"""What steps the weights: torch in this process, or DeepSpeed in processes of its own."""
