"""What the tasks on texts share: tokenizing into rows, scores out of logits."""
