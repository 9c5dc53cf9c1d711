"""The method: velocity fields, their ODEs, gradients through them, and objectives on clean images."""
