"""How each kind of upstream CA is asked."""
