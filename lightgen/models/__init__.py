"""Networks: tensors to tensors."""
