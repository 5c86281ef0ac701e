"""Floor 3: meaning around tensors. Each model hands a recipe down and offers a capability up."""
