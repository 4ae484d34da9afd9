"""How do we look, and repair by hand? One read model, several doors."""
