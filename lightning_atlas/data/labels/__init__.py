"""What somebody drew, what the names mean, and how both are brought to a grid and to a recipe's classes."""
